//! Reading configuration files: the kubelet's with its drop-ins (KEP-3983), kube-proxy's as it is.
//!
//! Drop-ins are the files `*.conf` of a directory, in the order of their names, merged over the main file: maps are
//! merged, lists and everything else are replaced, null removes.

use std::path::{Path, PathBuf};

use super::fields::{Findings, Problem};
use super::tree::{Kind, Node};

/// `kind` and `apiVersion` of a file.
type Header = (&'static str, &'static str);
const KUBELET: Header = ("KubeletConfiguration", "kubelet.config.k8s.io/v1beta1");
const PROXY: Header = ("KubeProxyConfiguration", "kubeproxy.config.k8s.io/v1alpha1");

/// The main file with all drop-ins merged over it; empty without a file.
pub fn kubelet(file: Option<&Path>, directory: Option<&Path>, findings: &mut Findings) -> Node {
    let mut node = read(file, KUBELET, findings);
    let Some(directory) = directory else { return node };
    for drop_in in list(directory, findings) {
        node.merge(read(Some(&drop_in), KUBELET, findings));
    }
    node
}

/// kube-proxy's file; empty without a file.
pub fn proxy(file: Option<&Path>, findings: &mut Findings) -> Node {
    read(file, PROXY, findings)
}

fn list(directory: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut files: Vec<PathBuf> = match entries {
        Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
        Err(error) => {
            findings.errors.push(problem(directory, "--config-dir", format!("cannot be read: {error}")));
            return Vec::new();
        }
    };
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    files
}

fn problem(path: &Path, field: &str, text: String) -> Problem {
    Problem { file: path.display().to_string(), line: None, field: field.to_owned(), text }
}

/// The fields of a file, without `apiVersion` and `kind`, which are checked.
fn read(path: Option<&Path>, (kind, api_version): Header, findings: &mut Findings) -> Node {
    let Some(path) = path else { return Node::empty(kind) };
    let name = path.display().to_string();
    let mut fail = |text: String| {
        findings.errors.push(problem(path, kind, text));
        Node::empty(&name)
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return fail(format!("cannot be read: {error}")),
    };
    let mut node = match Node::parse(&name, &text) {
        Ok(node) => node,
        Err(error) => return fail(format!("is not YAML: {error}")),
    };
    let Kind::Map(map) = &mut node.kind else {
        // A file of comments only is an empty one; everything else is refused when its fields are read.
        return if node.is_zero() { Node::empty(&name) } else { node };
    };
    for (key, expected) in [("apiVersion", api_version), ("kind", kind)] {
        let Some(found) = map.remove(key) else { continue };
        if found.value() != expected {
            let text = format!("{} is not allowed; expected {expected}", found.value());
            findings.errors.push(Problem::at(&found.origin, key, text));
        }
    }
    node
}
