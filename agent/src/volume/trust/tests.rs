use super::*;
use serde_json::{Value, json};

/// Two blocks of bytes that stand for certificates: nothing here looks into them.
const ONE: &str = "-----BEGIN CERTIFICATE-----\nMAEB\n-----END CERTIFICATE-----\n";
const TWO: &str = "-----BEGIN CERTIFICATE-----\nMAEC\n-----END CERTIFICATE-----\n";

fn bundle(name: &str, signer: Option<&str>, labels: Value, pem: &str) -> Arc<TrustBundle> {
    let signer = signer.map(str::to_owned);
    let labels = serde_json::from_value(labels).unwrap();
    Arc::new(TrustBundle { name: name.to_owned(), labels, signer, pem: pem.to_owned() })
}

fn signed(signer: &str, labels: Value) -> Chosen {
    Chosen::Signed { signer: signer.to_owned(), labels: serde_json::from_value(labels).unwrap() }
}

fn text(chosen: &Chosen, bundles: &[Arc<TrustBundle>], optional: bool) -> Result<String, String> {
    anchors(chosen, bundles, optional).map(|data| String::from_utf8(data).unwrap())
}

#[test]
fn every_anchor_is_there_once_in_plain_pem() {
    let spoken = format!("Our first:\n{ONE}# and\n{TWO}{ONE}");
    let bundles = [bundle("a", None, json!({}), &spoken)];
    assert_eq!(text(&Chosen::Named("a".to_owned()), &bundles, false), Ok(format!("{ONE}{TWO}")));
}

#[test]
fn a_signer_and_a_selector_choose_among_bundles() {
    let bundles = [
        bundle("a", Some("s/x"), json!({"alive": "true"}), ONE),
        bundle("b", Some("s/x"), json!({"alive": "false"}), TWO),
        bundle("c", Some("s/y"), json!({"alive": "true"}), TWO),
        bundle("d", None, json!({"alive": "true"}), TWO),
    ];
    let chosen = |labels| text(&signed("s/x", labels), &bundles, false);
    assert_eq!(chosen(json!({"matchLabels": {"alive": "true"}})), Ok(ONE.to_owned()));
    assert_eq!(chosen(json!({})), Ok(format!("{ONE}{TWO}")), "an empty selector means all of the signer");
    assert!(chosen(json!({"matchLabels": {"alive": "maybe"}})).is_err());
    let wrong = json!({"matchExpressions": [{"key": "alive", "operator": "Is"}]});
    assert!(chosen(wrong).is_err_and(|e| e.starts_with("while parsing label selector")));
}

#[test]
fn what_is_missing_is_an_error_unless_optional_and_then_an_empty_file() {
    let bundles = [bundle("a", Some("s/x"), json!({}), ONE)];
    for (chosen, said) in [
        (Chosen::Named("b".to_owned()), "clustertrustbundle.certificates.k8s.io \"b\" not found"),
        (signed("s/y", json!({})), "matched zero ClusterTrustBundles"),
        (Chosen::Nothing, "matched zero ClusterTrustBundles"),
    ] {
        assert_eq!(text(&chosen, &bundles, true), Ok(String::new()), "{chosen:?}");
        assert!(text(&chosen, &bundles, false).is_err_and(|e| e.contains(said)), "{chosen:?}");
    }
}

#[test]
fn text_that_is_no_pem_names_its_bundle() {
    let bundles = [bundle("bad", None, json!({}), "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")];
    let error = text(&Chosen::Named("bad".to_owned()), &bundles, true).unwrap_err();
    assert!(error.contains("\"bad\""), "{error}");
}

proptest::proptest! {
    #[test]
    fn the_same_anchors_in_any_bundles_are_the_same_file(
        ders in proptest::collection::btree_set(proptest::collection::vec(0u8.., 1..200), 1..6),
    ) {
        let all: String = ders.iter().map(|der| pem::encode(pem::CERTIFICATE, der)).collect();
        let reversed: String = ders.iter().rev().map(|der| pem::encode(pem::CERTIFICATE, der)).collect();
        let bundles = [bundle("b", Some("s/x"), json!({}), &reversed), bundle("a", Some("s/x"), json!({}), &all)];
        proptest::prop_assert_eq!(text(&signed("s/x", json!({})), &bundles, false), Ok(all));
    }
}
