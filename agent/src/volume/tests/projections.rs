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

fn certified() -> Arc<Pod> {
    let sources = json!([
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"podCertificate": {"signerName": "s/x", "keyType": "ED25519", "maxExpirationSeconds": 7200,
            "userAnnotations": {"s/a": "b"}, "credentialBundlePath": "bundle.pem", "keyPath": "key.pem",
            "certificateChainPath": "chain.pem"}}]);
    make_pod_with(json!([{"name": "v", "projected": {"sources": sources}}]), json!({"runAsUser": 7}))
}

#[tokio::test]
async fn key_and_chain_of_a_certificate_are_written_together_and_looked_at_when_it_is_time() {
    let mut node = Node::new();
    let pod = certified();
    let error = node.ensure(&pod).await.unwrap_err().to_string();
    assert!(error.contains("not issued yet"), "{error}");
    let issue = |node: &Node, key: &[u8], chain: String, look_again_at| {
        let issued = PodCertificate { key: key.into(), chain: chain.into(), look_again_at: Some(look_again_at) };
        *node.objects.certificate.lock().unwrap() = Some(issued);
    };
    issue(&node, &[0x30, 1, 1], format!("spoken\n{ONE}{TWO}"), 5000);
    let placed = node.ensure(&pod).await.unwrap();
    let ask = node.objects.asked.lock().unwrap().pop().unwrap();
    assert_eq!((&*ask.volume, ask.source, &*ask.signer, &*ask.service_account), ("v", 1, "s/x", "default"));
    assert_eq!((ask.max_expiration_seconds, ask.annotations.len()), (Some(7200), 1));
    let path = placed.host_path("v").unwrap().to_owned();
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nMAEB\n-----END PRIVATE KEY-----\n";
    assert_eq!([read("key.pem"), read("chain.pem")], [key.to_owned(), format!("{ONE}{TWO}")]);
    assert_eq!((read("bundle.pem"), read("name")), (format!("{key}{ONE}{TWO}"), "p".to_owned()));
    let file = std::fs::metadata(path.join("key.pem")).unwrap();
    assert_eq!((mode(&path.join("..data/key.pem")), file.uid()), (0o600, 7), "the containers' user and nobody else");
    assert_eq!(placed.refresh_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(5000)));

    issue(&node, &[0x30, 1, 2], TWO.to_owned(), 9000);
    node.ensure(&pod).await.unwrap();
    assert_eq!((read("key.pem").contains("MAEC"), read("chain.pem").as_str()), (true, TWO));

    // Another agent has to ask again, and what is there serves meanwhile.
    *node.objects.certificate.lock().unwrap() = None;
    node.restart();
    node.ensure(&pod).await.unwrap();
    assert_eq!(read("chain.pem"), TWO);
}
