//! Manifest files become typed Kubernetes objects.
//!
//! A file holds any number of YAML documents (JSON is YAML too), each one object or a `List`. The pipeline is
//! text → documents → a tree that knows its lines → typed object → API server defaults → validation.
//! Without a control plane nobody else finds a user's mistake, so every finding names file, document, line and field,
//! and says what was expected. One bad document refuses the whole file: half a file applied is worse than none.
//!
//! What it does not do: read files ([`super::manifest_dir`]), or decide identity (UIDs, static pod names).
//! Everything here is pure.

use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ids::ObjectKey;

mod de;
pub mod defaults;
mod tree;
pub mod validate;

#[cfg(test)]
mod tests;

pub use defaults::{pod_defaults, service_defaults};
pub use validate::{Invalid, validate_pod};

use de::Typed;
use tree::{Node, Value};

/// What kinds a manifest may hold, for messages.
const KNOWN: &str = "Pod, ConfigMap, Secret, Service, EndpointSlice, List";

/// A larger manifest is refused: etcd's own request limit is 1.5 MiB, so no object of a real cluster is larger.
const MAX_BYTES: usize = 3 * 1024 * 1024;

/// An object of a manifest, defaulted and validated.
#[derive(Clone, PartialEq)]
pub enum Object {
    /// A pod.
    Pod(Box<Pod>),
    /// A ConfigMap.
    ConfigMap(Box<ConfigMap>),
    /// A Secret; `stringData` is already merged into `data`.
    Secret(Box<Secret>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
}

impl Object {
    /// The kind as manifests write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pod(_) => "Pod",
            Self::ConfigMap(_) => "ConfigMap",
            Self::Secret(_) => "Secret",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
        }
    }

    /// Namespace (always set after decoding) and name.
    pub fn key(&self) -> ObjectKey {
        let meta = self.metadata();
        ObjectKey::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
    }

    /// Standard metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Pod(o) => &o.metadata,
            Self::ConfigMap(o) => &o.metadata,
            Self::Secret(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Pod(o) => &mut o.metadata,
            Self::ConfigMap(o) => &mut o.metadata,
            Self::Secret(o) => &mut o.metadata,
            Self::Service(o) => &mut o.metadata,
            Self::EndpointSlice(o) => &mut o.metadata,
        }
    }
}

// Only kind and name: a Secret's content must not reach a log.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.key())
    }
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// Number of the document in its file, from 1.
    pub document: usize,
    /// First line of the object in its file, from 1.
    pub line: u64,
}

/// Something to say about one place of a manifest: an error or a warning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Finding {
    /// The file, as the caller named it.
    pub file: String,
    /// Number of the document in the file, from 1.
    pub document: usize,
    /// Line in the file, from 1; 0 when it is about the file as a whole.
    pub line: u64,
    /// Path of the field such as `spec.containers[0].image`; empty when it is about the document.
    pub path: String,
    /// What was expected, what was found, what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}: document {}", self.line, self.document)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All errors of one file, in the order of its lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeErrors(pub Vec<Finding>);

impl fmt::Display for DecodeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DecodeErrors {}

/// What a good file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// Objects in file order.
    pub objects: Vec<Located>,
    /// Unknown kinds and unknown fields: said, then ignored.
    pub warnings: Vec<Finding>,
}

/// Decodes, defaults and validates all objects of one file. `file` is only a name for messages.
///
/// Objects without a namespace get `default`.
pub fn decode(file: &str, text: &str) -> Result<Decoded, DecodeErrors> {
    let mut run = Run { file, document: 0, out: Decoded::default(), errors: Vec::new() };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", text.len());
        return Err(DecodeErrors(vec![run.finding(0, "", message)]));
    }
    let documents = tree::documents(text);
    for (index, document) in documents.iter().enumerate() {
        run.document = index + 1;
        match tree::parse(document) {
            Ok(None) => {}
            Ok(Some(node)) => run.object(&node, ""),
            Err((line, message)) => {
                let finding = run.finding(line, "", message);
                run.errors.push(finding);
            }
        }
    }
    if run.errors.is_empty() { Ok(run.out) } else { Err(DecodeErrors(run.errors)) }
}

/// [`decode`] for bytes as they were read from disk.
pub fn decode_bytes(file: &str, bytes: &[u8]) -> Result<Decoded, DecodeErrors> {
    match std::str::from_utf8(bytes) {
        Ok(text) => decode(file, text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64 + 1;
            Err(DecodeErrors(vec![Finding {
                file: file.to_owned(),
                document: 1,
                line,
                path: String::new(),
                message: "the file is not UTF-8 text; save it as UTF-8, and put binary content in base64 (binaryData, \
                          Secret data)"
                    .to_owned(),
            }]))
        }
    }
}

struct Run<'a> {
    file: &'a str,
    document: usize,
    out: Decoded,
    errors: Vec<Finding>,
}

impl Run<'_> {
    fn finding(&self, line: u64, path: &str, message: impl Into<String>) -> Finding {
        Finding {
            file: self.file.to_owned(),
            document: self.document,
            line,
            path: path.to_owned(),
            message: message.into(),
        }
    }

    fn error(&mut self, line: u64, path: &str, message: impl Into<String>) {
        let finding = self.finding(line, path, message);
        self.errors.push(finding);
    }

    fn warn(&mut self, line: u64, path: &str, message: impl Into<String>) {
        let finding = self.finding(line, path, message);
        self.out.warnings.push(finding);
    }

    /// Reads one object below `prefix` (empty, or `items[2]` in a List).
    fn object(&mut self, node: &Node, prefix: &str) {
        if !matches!(node.value, Value::Map(_)) {
            let found = node.value.describe();
            return self.error(
                node.line,
                prefix,
                format!("expected an object with apiVersion, kind and metadata, found {found}"),
            );
        }
        let (Some(kind), Some(api_version)) = (node.text("kind"), node.text("apiVersion")) else {
            let missing = if node.text("kind").is_none() { "kind" } else { "apiVersion" };
            let message = format!("{missing} is missing; every object begins with apiVersion and kind ({KNOWN})");
            return self.error(node.line, prefix, message);
        };
        match (api_version, kind) {
            ("v1", "Pod") => self.typed(node, prefix, |o| Object::Pod(Box::new(o))),
            ("v1", "ConfigMap") => self.typed(node, prefix, |o| Object::ConfigMap(Box::new(o))),
            ("v1", "Secret") => self.typed(node, prefix, |o| Object::Secret(Box::new(o))),
            ("v1", "Service") => self.typed(node, prefix, |o| Object::Service(Box::new(o))),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.typed(node, prefix, |o| Object::EndpointSlice(Box::new(o)));
            }
            ("v1", "List" | "PodList" | "ConfigMapList" | "SecretList" | "ServiceList")
            | ("discovery.k8s.io/v1", "EndpointSliceList") => self.list(node, prefix),
            (_, "Pod" | "ConfigMap" | "Secret" | "Service") => self.wrong_version(node, kind, api_version, "v1"),
            (_, "EndpointSlice") => self.wrong_version(node, kind, api_version, "discovery.k8s.io/v1"),
            _ => {
                let name = node.get("metadata").and_then(|m| m.text("name")).unwrap_or("without a name");
                let message = format!("{kind} {name} ({api_version}) ignored: a node running alone takes {KNOWN}");
                self.warn(node.line, prefix, message);
            }
        }
    }

    fn wrong_version(&mut self, node: &Node, kind: &str, found: &str, expected: &str) {
        let line = node.get("apiVersion").map_or(node.line, |n| n.line);
        self.error(line, "apiVersion", format!("expected {expected} for kind {kind}, found {found}"));
    }

    fn list(&mut self, node: &Node, prefix: &str) {
        let at = |field: String| if prefix.is_empty() { field } else { format!("{prefix}.{field}") };
        match node.get("items").map(|n| (&n.value, n.line)) {
            Some((Value::Seq(items), _)) => {
                for (i, item) in items.iter().enumerate() {
                    self.object(item, &at(format!("items[{i}]")));
                }
            }
            None | Some((Value::Null, _)) => {}
            Some((other, line)) => {
                let message = format!("expected a list of objects, found {}", other.describe());
                self.error(line, &at("items".to_owned()), message);
            }
        }
    }

    /// Typed decoding, defaults, validation.
    fn typed<T>(&mut self, node: &Node, prefix: &str, wrap: impl Fn(T) -> Object)
    where
        T: for<'de> serde::Deserialize<'de>,
    {
        let secret = node.text("kind") == Some("Secret");
        let Typed { result, unknown } = de::typed::<T>(node, prefix, secret);
        for (path, line) in unknown {
            self.warn(line, &path, "unknown field, ignored; check its spelling and its place");
        }
        let value = match result {
            Ok(value) => value,
            Err(error) => return self.error(error.line, &error.path, error.message),
        };
        let mut object = wrap(value);
        object.metadata_mut().namespace.get_or_insert_with(|| "default".to_owned());
        defaults::apply(&mut object);
        for invalid in validate::object(&object) {
            let path = if prefix.is_empty() { invalid.path.clone() } else { format!("{prefix}.{}", invalid.path) };
            self.error(node.line_of(&invalid.path), &path, invalid.message);
        }
        self.out.objects.push(Located { object, document: self.document, line: node.line });
    }
}
