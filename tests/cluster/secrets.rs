//! Nothing of a Secret or a token may be found where it does not belong: CVE-2020-8564 and its kin.
//!
//! Every secret here has a word in it that is nowhere else. The agent logs all that it can (`-v=9`); its log, its state
//! directory and its part of the certificate directory are searched for the words as they are and in base64.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::node::Node;

/// In a key of a Secret that a pod has in its environment and as a volume.
const PASSWORD: &str = "canary-in-a-secret-7Qx";
/// In the password of an image pull secret.
const REGISTRY: &str = "canary-of-a-registry-9Zk";
/// In two of the wrong shape: an error of a parser likes to show what it was given.
const BROKEN: &str = "canary-of-the-wrong-shape-2Jm";
const BROKEN_SECRETS: [&str; 2] = ["broken", "broken-auth"];
/// A bearer token that a caller shows.
pub(crate) const TOKEN: &str = "canary-of-a-caller-4Wp";

/// Makes the Secrets that the test's pod uses.
pub(crate) fn make(plane: &ControlPlane, node: &Node) -> anyhow::Result<()> {
    let file = node.path("secrets.yaml");
    let docker = format!(r#"{{"auths":{{"example.com":{{"username":"u","password":"{REGISTRY}"}}}}}}"#);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: canary}}\nstringData: {{password: {PASSWORD}}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: registry}}\ntype: kubernetes.io/dockerconfigjson\n\
         stringData: {{.dockerconfigjson: '{docker}'}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: broken}}\ntype: kubernetes.io/dockerconfigjson\n\
         stringData: {{.dockerconfigjson: '{{\"auths\": \"{BROKEN}\"}}'}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: broken-auth}}\ntype: kubernetes.io/dockerconfigjson\n\
         stringData: {{.dockerconfigjson: '{{\"auths\": {{\"example.com\": {{\"auth\": \"{BROKEN}\"}}}}}}'}}\n"
    );
    let puller = |secret: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pulls-with-{secret}}}\nspec:\n  nodeName: n1\n  \
             automountServiceAccountToken: false\n  imagePullSecrets: [{{name: {secret}}}]\n  containers: [{{name: c, \
             image: 'example.invalid/none:1', imagePullPolicy: Always}}]\n"
        )
    };
    let text = text + &BROKEN_SECRETS.map(puller).concat();
    std::fs::write(&file, text)?;
    let done = plane.kubectl(&["apply", "-f", &file.display().to_string()])?.output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Waits until the pods whose pull secrets cannot be read say so: from then on there is something to be found.
pub(crate) async fn of_the_wrong_shape_are_complained_about(plane: &ControlPlane) -> anyhow::Result<()> {
    eventually(Duration::from_secs(20), "complaints about pull secrets", async || {
        for secret in BROKEN_SECRETS {
            let path = "jsonpath={.status.containerStatuses[0].state.waiting.message}";
            let said = plane.kubectl(&["get", "pod", &format!("pulls-with-{secret}"), "-o", path])?.output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            ensure!(said.contains(&format!("image pull secret default/{secret}")), "{secret}: {said}");
        }
        anyhow::Ok(())
    })
    .await
}

/// Searches everything that the agent wrote for itself, and what it told others of pods.
pub(crate) fn are_nowhere(plane: &ControlPlane, node: &Node) -> anyhow::Result<()> {
    for kinds in ["events", "pods", "nodes"] {
        let told = plane.kubectl(&["get", kinds, "-A", "-o", "json"])?.output()?;
        std::fs::write(node.path("state").join(format!("told-{kinds}")), &told.stdout)?;
        ensure!(told.status.success() && told.stdout.len() > 1000, "{told:?}");
    }
    let words = [PASSWORD, REGISTRY, BROKEN, TOKEN]
        .into_iter()
        .flat_map(|word| [word.as_bytes().to_vec(), inside_base64(word)]);
    let words: Vec<Vec<u8>> = words.collect();
    let places = [node.path("state"), node.path("pki"), node.path("nodelet.log")];
    let files: Vec<PathBuf> = places.iter().flat_map(|place| files(place)).collect();
    let mut bytes = 0;
    for file in &files {
        let content = std::fs::read(file).unwrap_or_default();
        bytes += content.len();
        for word in &words {
            let found = content.windows(word.len()).position(|window| window == word);
            let shown = String::from_utf8_lossy(word);
            if let Some(at) = found {
                let around = &content[at.saturating_sub(300)..(at + 100).min(content.len())];
                let around = String::from_utf8_lossy(around);
                anyhow::bail!("{}: {shown} is in it: {around}", file.display());
            }
        }
    }
    ensure!(bytes > 100_000, "only {bytes} bytes in {files:?}: this searched nothing");
    Ok(())
}

/// The part of a word that is the same in the base64 of whatever begins with it.
fn inside_base64(word: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let triples = word.as_bytes().chunks_exact(3).flat_map(|triple| {
        let bits = triple.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        [bits >> 18, bits >> 12, bits >> 6, bits].map(|six| ALPHABET[six & 63])
    });
    triples.collect()
}

fn files(path: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().flat_map(|entry| files(&entry.path())).collect(),
        Err(_) => vec![path.to_owned()],
    }
}
