//! From API objects to files: what is in a configMap, secret, downwardAPI or projected volume. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::plan::Atomic;
use super::projection::{Certificate, Piece};
use super::{pem, trust};
use crate::objects::{PodCertificate, Token, TrustBundle};
use crate::quantity::Quantity;

/// Longest path of a file, as kubelet checks it.
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;

/// One file. It has no `Debug` of its content, because Secrets are files too.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) data: Vec<u8>,
    pub(super) mode: u32,
    /// Owner other than root.
    pub(super) user: Option<u32>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File {{ {} bytes, mode {:o}, user {:?} }}", self.data.len(), self.mode, self.user)
    }
}

/// Files by clean relative path.
pub(super) type Payload = BTreeMap<String, File>;

/// What was fetched for a piece.
#[derive(Clone)]
pub(super) enum Fetched {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Token(Token),
    TrustBundles(Vec<Arc<TrustBundle>>),
    Certificate(PodCertificate),
    /// Needs nothing, or an optional object that is not there.
    Nothing,
    /// Why it could not be had.
    Failed(String),
    /// The same, but the answer is not the last: the API server is away, or has not answered yet.
    Unavailable(String),
}

/// What the content depends on besides the objects.
pub(super) struct Context<'a> {
    pub(super) pod: &'a Pod,
    pub(super) allocatable: &'a BTreeMap<String, Quantity>,
    /// `fsGroup`.
    pub(super) group: Option<u32>,
    /// The user that all containers share.
    pub(super) user: Option<u32>,
}

/// The files of a volume; later pieces replace files of earlier ones. All problems are reported together.
pub(super) fn payload(atomic: &Atomic, fetched: &[Fetched], context: &Context<'_>) -> Result<Payload, String> {
    let mut files = Payload::new();
    let mut problems = Vec::new();
    for (piece, fetched) in atomic.pieces.iter().zip(fetched) {
        match piece_files(piece, fetched, atomic.mode, context) {
            Ok(more) => files.extend(more),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { clean(files) } else { Err(problems.join(", ")) }
}

fn piece_files(piece: &Piece, fetched: &Fetched, mode: u32, context: &Context<'_>) -> Result<Payload, String> {
    match (piece, fetched) {
        (Piece::Refused(reason), _) => Err(reason.clone()),
        (_, Fetched::Failed(reason) | Fetched::Unavailable(reason)) => Err(reason.clone()),
        (Piece::ConfigMap { items, optional, .. }, Fetched::ConfigMap(map)) => {
            selected(&config_map_keys(map), items, mode, *optional, "configmap references non-existent config key")
        }
        (Piece::Secret { items, optional, .. }, Fetched::Secret(secret)) => {
            selected(&secret_keys(secret), items, mode, *optional, "references non-existent secret key")
        }
        (Piece::Downward { items }, _) => downward(items, mode, context),
        (Piece::Token { path, .. }, Fetched::Token(token)) => {
            Ok([(path.clone(), private(token.token.clone().into_bytes(), mode, context))].into())
        }
        (Piece::TrustBundles { chosen, optional, path }, fetched) => {
            let bundles = match fetched {
                Fetched::TrustBundles(bundles) => bundles.as_slice(),
                _ => &[],
            };
            Ok([(path.clone(), private(trust::anchors(chosen, bundles, *optional)?, mode, context))].into())
        }
        (Piece::Certificate(piece), Fetched::Certificate(issued)) => certificate(piece, issued, mode, context),
        (Piece::ConfigMap { .. } | Piece::Secret { .. } | Piece::Token { .. } | Piece::Certificate(_), _) => {
            Ok(Payload::new())
        }
    }
}

/// Key and chain, in one file, in two, or both. Key before chain, as kubelet writes them.
fn certificate(
    piece: &Certificate,
    issued: &PodCertificate,
    mode: u32,
    context: &Context<'_>,
) -> Result<Payload, String> {
    let chain = pem::certificates(&issued.chain);
    let chain = chain.map_err(|e| format!("certificate chain of signer {}: {e}", piece.signer))?;
    let chain: String = chain.iter().map(|der| pem::encode(pem::CERTIFICATE, der)).collect();
    let key = pem::encode(pem::PRIVATE_KEY, &issued.key);
    let files = [(&piece.bundle_path, format!("{key}{chain}")), (&piece.key_path, key), (&piece.chain_path, chain)];
    let wanted = files.into_iter().filter_map(|(path, text)| Some((path.clone()?, text)));
    Ok(wanted.map(|(path, text)| (path, private(text.into_bytes(), mode, context))).collect())
}

/// A file that is its owner's alone where it can have one.
fn private(data: Vec<u8>, mode: u32, context: &Context<'_>) -> File {
    // With fsGroup, 0600 becomes 0640 when the group is set.
    let mode = if context.user.is_some() || context.group.is_some() { 0o600 } else { mode };
    File { data, mode, user: context.user }
}

fn config_map_keys(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let binary = map.binary_data.iter().flatten().map(|(key, data)| (key.as_str(), data.0.as_slice()));
    let text = map.data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes()));
    binary.chain(text).collect()
}

fn secret_keys(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    let text = secret.string_data.iter().flatten().map(|(key, text)| (key.as_str(), text.as_bytes()));
    let data = secret.data.iter().flatten().map(|(key, data)| (key.as_str(), data.0.as_slice()));
    data.chain(text).collect()
}

fn selected(
    keys: &BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
    missing: &str,
) -> Result<Payload, String> {
    let file = |data: &[u8], mode| File { data: data.to_vec(), mode, user: None };
    if items.is_empty() {
        return Ok(keys.iter().map(|(key, data)| ((*key).to_owned(), file(data, mode))).collect());
    }
    let mut files = Payload::new();
    for item in items {
        match keys.get(item.key.as_str()) {
            Some(data) => {
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
                files.insert(item.path.clone(), file(data, mode));
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(files)
}

fn downward(items: &[DownwardAPIVolumeFile], mode: u32, context: &Context<'_>) -> Result<Payload, String> {
    let mut files = Payload::new();
    let mut problems = Vec::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            metadata_field(context.pod, &field.field_path)
        } else if let Some(resource) = &item.resource_field_ref {
            let divisor = resource.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok());
            let name = resource.container_name.as_deref().unwrap_or_default();
            container(context.pod, name)
                .and_then(|c| resource_field(c, &resource.resource, divisor, context.allocatable))
        } else {
            Ok(String::new())
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        match text {
            Ok(text) => drop(files.insert(item.path.clone(), File { data: text.into_bytes(), mode, user: None })),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems.join(", ")) }
}

fn container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Container, String> {
    let spec = pod.spec.as_ref();
    let regular = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let mut all = regular.iter().chain(init);
    all.find(|c| c.name == name).ok_or_else(|| format!("container {name} not found"))
}

/// A field of the pod's metadata as text; labels and annotations as `key="value"` lines in order of the keys.
fn metadata_field(pod: &Pod, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let map = match path.split('[').next() {
        Some("metadata.labels") => metadata.labels.as_ref(),
        Some("metadata.annotations") => metadata.annotations.as_ref(),
        _ => None,
    };
    if let Some((_, subscript)) = path.split_once("['").filter(|_| path.starts_with("metadata.")) {
        let key = subscript.strip_suffix("']").ok_or_else(|| format!("unsupported fieldPath: {path}"))?;
        return match path.split("['").next() {
            Some("metadata.labels" | "metadata.annotations") => {
                Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
            }
            _ => Err(format!("fieldPath {path:?} does not support subscript")),
        };
    }
    match path {
        "metadata.name" => Ok(metadata.name.clone().unwrap_or_default()),
        "metadata.namespace" => Ok(metadata.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Ok(metadata.uid.clone().unwrap_or_default()),
        "metadata.labels" | "metadata.annotations" => {
            let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
            Ok(lines.collect::<Vec<_>>().join("\n"))
        }
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// A string literal as Go writes it, which is the format that readers of these files parse.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            // Go escapes what it does not call printable: controls, and every space but U+0020.
            c if c.is_control()
                || (c != ' ' && c.is_whitespace())
                || matches!(c, '\u{ad}' | '\u{feff}' | '\u{200b}'..='\u{200f}') =>
            {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A request or limit of a container in units of `divisor`, rounded up. A limit that is not set is what the node can
/// give, except for huge pages, which are never overcommitted.
fn resource_field(
    container: &Container,
    resource: &str,
    divisor: Option<Quantity>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, String> {
    let unsupported = || format!("unsupported container resource : {resource}");
    let (list, name) = resource.split_once('.').ok_or_else(unsupported)?;
    let overcommitted = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if !overcommitted && !name.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let resources = container.resources.as_ref();
    let stated = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let stated = stated.and_then(|l| l.get(name)).and_then(|q| Quantity::parse(&q.0).ok()).filter(|q| !q.is_zero());
    let fallback = || allocatable.get(name).copied().filter(|_| list == "limits" && overcommitted);
    let amount = stated.or_else(fallback).unwrap_or(Quantity::from_millis(0));
    let divisor = divisor.filter(|d| !d.is_zero()).unwrap_or(Quantity::from_millis(1000));
    let (amount, divisor) = match name {
        "cpu" => (amount.milli_value(), divisor.milli_value()),
        _ => (amount.value(), divisor.value()),
    };
    // Both are whole and the divisor is at least one, because quantities round away from zero.
    Ok(i128::from(amount).div_euclid(i128::from(divisor)).saturating_add(i128::from(amount % divisor != 0)).to_string())
}

/// Checks and normalizes paths: relative, inside the volume, and no part of the writer's own names.
fn clean(files: Payload) -> Result<Payload, String> {
    let mut cleaned = Payload::new();
    for (path, file) in files {
        cleaned.insert(clean_path(&path)?, file);
    }
    // A path cannot be a file and the directory of another file.
    for path in cleaned.keys() {
        let mut parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        if let Some(parent) = parents.find(|parent| cleaned.contains_key(*parent)) {
            return Err(format!("invalid path: {parent} is a file, and {path} needs it to be a directory"));
        }
    }
    Ok(cleaned)
}

fn clean_path(path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err(r#"invalid path: must not be empty: """#.to_owned());
    }
    if path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    if path.len() > MAX_PATH {
        return Err(format!("invalid path: must be less than or equal to {MAX_PATH} characters"));
    }
    if path.contains('\0') {
        return Err("invalid path: must not contain a NUL byte".to_owned());
    }
    let components: Vec<&str> = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    if components.contains(&"..") {
        return Err(format!("invalid path: must not contain '..': {path}"));
    }
    if components.iter().any(|c| c.len() > MAX_NAME) {
        return Err(format!("invalid path: filenames must be less than or equal to {MAX_NAME} characters"));
    }
    match components.first() {
        None => Err(format!("invalid path: must name a file: {path}")),
        Some(first) if first.starts_with("..") => Err(format!("invalid path: must not start with '..': {path}")),
        Some(_) => Ok(components.join("/")),
    }
}

#[cfg(test)]
mod tests;
