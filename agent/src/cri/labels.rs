//! The label and annotation keys through which a pod's identity survives in the runtime, and the container fingerprint.
//!
//! They are kubelet's own, so that either agent can take over the other's pods and so that log shippers and monitors
//! find what they look for. Source: `pkg/kubelet/types` and `pkg/kubelet/kuberuntime` of k8s.io/kubernetes v1.37.

/// Label: pod name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: pod namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: pod UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Annotation: [`container_hash`] of the spec the container was made from.
pub const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how many containers of this name came before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: `terminationMessagePath`.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `terminationMessagePolicy`.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: `deletionGracePeriodSeconds` at creation.
pub const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
/// Annotation: `terminationGracePeriodSeconds`.
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Annotation: the preStop handler as JSON.
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Annotation: the container ports as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";

/// The fingerprint of the container fields that a running pod may change: name and image.
///
/// The value equals kubelet's (FNV-1a of Go's rendering of the JSON bytes), because a kubelet that takes the node back
/// restarts every container whose annotation differs from its own result.
pub fn container_hash(name: &str, image: &str) -> String {
    let json = format!("{{\"image\":{},\"name\":{}}}", go_json_string(image), go_json_string(name));
    let mut hash = Fnv32a::default();
    hash.write(b"([]uint8)[");
    for (index, byte) in json.bytes().enumerate() {
        if index > 0 {
            hash.write(b" ");
        }
        hash.write(byte.to_string().as_bytes());
    }
    hash.write(b"]");
    format!("{:x}", hash.0)
}

/// Go's `encoding/json` escapes `<`, `>` and `&` on top of what JSON asks for.
fn go_json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

struct Fnv32a(u32);

impl Default for Fnv32a {
    fn default() -> Self {
        Self(0x811c_9dc5)
    }
}

impl Fnv32a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_kubelet_writes() {
        // Printed by `container.HashContainer` of k8s.io/kubernetes v1.37.2.
        assert_eq!(container_hash("web", "nginx:1"), "855627a5");
        assert_eq!(container_hash("a-b", "r.io/x&y<z>@sha256:abc"), "e1ac9906");
    }
}
