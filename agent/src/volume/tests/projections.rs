//! Projected sources beside those of ConfigMaps and Secrets, on disk.

use super::*;

const ONE: &str = "-----BEGIN CERTIFICATE-----\nMAEB\n-----END CERTIFICATE-----\n";
const TWO: &str = "-----BEGIN CERTIFICATE-----\nMAEC\n-----END CERTIFICATE-----\n";

fn set(node: &Node, bundles: &[(&str, Option<&str>, &str)]) {
    let bundles = bundles.iter().map(|(name, signer, pem)| {
        let signer = signer.map(str::to_owned);
        Arc::new(TrustBundle { name: (*name).to_owned(), labels: BTreeMap::new(), signer, pem: (*pem).to_owned() })
    });
    *node.objects.bundles.lock().unwrap() = bundles.collect();
}

fn trusting(security: Value) -> Arc<Pod> {
    let sources = json!([
        {"clusterTrustBundle": {"name": "a", "path": "named/a.pem"}},
        {"clusterTrustBundle": {"signerName": "s/x", "labelSelector": {}, "path": "signed.pem"}},
        {"clusterTrustBundle": {"name": "none", "optional": true, "path": "none.pem"}}]);
    make_pod_with(json!([{"name": "v", "projected": {"sources": sources}}]), security)
}

#[tokio::test]
async fn trust_bundles_are_files_that_follow_their_objects_and_stay_while_the_api_server_is_away() {
    let mut node = Node::new();
    set(&node, &[("a", None, ONE), ("b", Some("s/x"), TWO), ("c", Some("s/x"), ONE)]);
    let pod = trusting(json!({}));
    let placed = node.ensure(&pod).await.unwrap();
    let path = placed.host_path("v").unwrap().to_owned();
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!([read("named/a.pem"), read("signed.pem"), read("none.pem")], [ONE, &(ONE.to_owned() + TWO), ""]);
    assert_eq!(mode(&path.join("..data/signed.pem")), 0o644);

    set(&node, &[("a", None, TWO), ("b", Some("s/x"), TWO)]);
    node.ensure(&pod).await.unwrap();
    assert_eq!([read("named/a.pem"), read("signed.pem")], [TWO, TWO]);

    node.objects.is_away.store(true, Ordering::Relaxed);
    node.restart();
    let placed = node.ensure(&pod).await.unwrap();
    assert_eq!((read("named/a.pem").as_str(), placed.refresh_at.is_some()), (TWO, true), "to be looked at again");
}

#[tokio::test]
async fn a_missing_trust_bundle_is_named_and_the_file_of_a_group_is_the_groups() {
    let node = Node::new();
    let pod = trusting(json!({"fsGroup": 4321}));
    let error = node.ensure(&pod).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "MountVolume.SetUp failed for volume \"v\" : while getting ClusterTrustBundle: \
         clustertrustbundle.certificates.k8s.io \"a\" not found, combination of signerName and labelSelector matched \
         zero ClusterTrustBundles"
    );
    set(&node, &[("a", None, ONE), ("b", Some("s/x"), TWO)]);
    let placed = node.ensure(&pod).await.unwrap();
    let file = placed.host_path("v").unwrap().join("..data/signed.pem");
    assert_eq!((mode(&file), std::fs::metadata(&file).unwrap().gid()), (0o640, 4321));
}

#[test]
fn a_pod_uses_the_bundles_of_its_sources_and_none_without_a_selector() {
    let sources = json!([
        {"clusterTrustBundle": {"name": "a", "path": "1"}},
        {"clusterTrustBundle": {"signerName": "s/x", "labelSelector": {"matchLabels": {"k": "v"}}, "path": "2"}},
        {"clusterTrustBundle": {"signerName": "s/y", "path": "3"}},
        {"clusterTrustBundle": {"path": "4"}}]);
    let refs = object_refs(&make_pod(json!([{"name": "v", "projected": {"sources": sources}}])));
    let expected = [TrustBundleRef::Name("a".to_owned()), TrustBundleRef::Signer("s/x".to_owned())];
    assert_eq!(refs, expected.map(ObjectRef::TrustBundles));
}
