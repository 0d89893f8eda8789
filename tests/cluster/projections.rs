//! Projected volumes of what the API server's certificates group has, with the node's own rights.

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::rig::{NAME, PATIENCE, Rig};

const SIGNER: &str = "example.com/anchors";

/// A kind of the group `certificates.k8s.io`: the client's types end before Kubernetes 1.37.
pub(crate) fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("certificates.k8s.io", "v1", kind))
}

/// A self-signed authority as PEM text with the line ends and the width that the agent writes.
fn anchor(name: &str) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params.self_signed(&KeyPair::generate()?)?.pem().replace("\r\n", "\n"))
}

fn bundle(name: &str, signer: Option<&str>, alive: bool, pem: &str) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "ClusterTrustBundle",
        "metadata": { "name": name, "labels": { "alive": alive.to_string() } },
        "spec": { "signerName": signer, "trustBundle": format!("# {name}\n{pem}") },
    })
}

/// A pod with one projected volume at `/v`.
pub(crate) fn pod(name: &str, sources: &Value) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": NAME,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "volumes": [{ "name": "v", "projected": { "sources": sources } }],
            "containers": [{
                "name": "c",
                "image": "localhost/busybox:1",
                "command": ["sleep", "100000"],
                "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
            }],
        },
    })
}

/// How many watches of a resource the API server serves, the controllers' included.
async fn watches(rig: &Rig, resource: &str) -> anyhow::Result<u64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = rig.client.request_text(request).await?;
    let lines = text.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{"));
    let of_resource = lines.filter(|line| line.contains(&format!("resource=\"{resource}\"")));
    let counts = of_resource.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum::<f64>() as u64)
}

pub(crate) async fn are_told(rig: &Rig, pod: &str, text: &str) -> anyhow::Result<()> {
    let events = rig.api::<Event>();
    eventually(PATIENCE, "an event about the volume", async || {
        let list = events.list(&ListParams::default()).await?.items;
        let of_pod = list.iter().filter(|event| event.involved_object.name.as_deref() == Some(pod));
        let told: Vec<&str> = of_pod.filter_map(|event| event.message.as_deref()).collect();
        ensure!(told.iter().any(|message| message.contains(text)), "{told:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_see_trust_bundles_and_their_changes_and_a_node_without_such_pods_watches_none() {
    trust_bundles().await.unwrap();
}

async fn trust_bundles() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Bridge).await?;
    let bundles: Api<DynamicObject> = Api::all_with(rig.client.clone(), &resource("ClusterTrustBundle"));
    let create = async |name: &str, signer: Option<&str>, alive: bool, pem: &str| {
        let object = serde_json::from_value(bundle(name, signer, alive, pem))?;
        bundles.create(&PostParams::default(), &object).await.with_context(|| name.to_owned())
    };
    let [one, two, three] = [anchor("one")?, anchor("two")?, anchor("three")?];
    create("plain", None, true, &one).await?;
    create("example.com:anchors:1", Some(SIGNER), true, &two).await?;
    create("example.com:anchors:3", Some(SIGNER), false, &three).await?;
    let before = watches(&rig, "clustertrustbundles").await?;

    rig.create::<Pod>(pod(
        "trusting",
        &json!([
            { "clusterTrustBundle": { "name": "plain", "path": "named.pem" } },
            { "clusterTrustBundle": { "signerName": SIGNER, "labelSelector": { "matchLabels": { "alive": "true" } }, "path": "signed.pem" } },
            { "clusterTrustBundle": { "signerName": SIGNER, "optional": true, "path": "no-selector.pem" } },
        ]),
    ))
    .await?;
    rig.create::<Pod>(pod("waiting", &json!([{ "clusterTrustBundle": { "name": "late", "path": "late.pem" } }])))
        .await?;
    rig.pod_is_ready("trusting").await?;
    ensure!(rig.node.exec("trusting", &["cat", "/v/named.pem"]).await? == one);
    ensure!(rig.node.exec("trusting", &["cat", "/v/signed.pem"]).await? == two);
    ensure!(rig.node.exec("trusting", &["stat", "-c", "%s", "-L", "/v/no-selector.pem"]).await? == "0\n");
    ensure!(watches(&rig, "clustertrustbundles").await? == before + 1, "one watch for all pods");

    are_told(&rig, "waiting", "clustertrustbundle.certificates.k8s.io \"late\" not found").await?;
    create("late", None, true, &three).await?;
    let start = std::time::Instant::now();
    bundles.patch("plain", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "trustBundle": three } }))).await?;
    let revived = json!({ "metadata": { "labels": { "alive": "true" } } });
    bundles.patch("example.com:anchors:3", &PatchParams::default(), &Patch::Merge(revived)).await?;
    eventually(PATIENCE, "the changes to reach the container", async || {
        ensure!(rig.node.exec("trusting", &["cat", "/v/named.pem"]).await? == three);
        let signed = rig.node.exec("trusting", &["cat", "/v/signed.pem"]).await?;
        ensure!(signed == format!("{two}{three}") || signed == format!("{three}{two}"), "{signed}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    rig.pod_is_ready("waiting").await?;

    rig.delete::<Pod>("trusting").await?;
    rig.delete::<Pod>("waiting").await?;
    rig.nothing_is_left().await?;
    eventually(PATIENCE, "the watch to end", async || {
        let now = watches(&rig, "clustertrustbundles").await?;
        ensure!(now == before, "{now} instead of {before}");
        anyhow::Ok(())
    })
    .await?;
    rig.finish()
}
