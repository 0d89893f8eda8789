//! Projected `podCertificate` sources: the API server checks our requests, a signer of the test's own answers them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::projections::{are_told, pod, resource};
use crate::rig::{NAME, PATIENCE, Rig};

const GOOD: &str = "example.com/good";
const STRICT: &str = "example.com/strict";

/// The public key of a request.
struct Subject(Vec<u8>);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.0.len() {
            32 => &rcgen::PKCS_ED25519,
            65 => &rcgen::PKCS_ECDSA_P256_SHA256,
            _ => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }
}

/// Signs what is asked of `GOOD`, refuses what is asked of `STRICT`.
struct Signer {
    requests: Api<DynamicObject>,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new(rig: &Rig) -> anyhow::Result<Self> {
        let requests = Api::namespaced_with(rig.client.clone(), "default", &resource("PodCertificateRequest"));
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate()?);
        Ok(Self { requests, issuer })
    }

    /// Requests without an answer, when there are as many as are waited for.
    async fn pending(&self, count: usize) -> anyhow::Result<Vec<DynamicObject>> {
        eventually(PATIENCE, "requests for certificates", async || {
            let all = self.requests.list(&ListParams::default()).await?.items;
            let pending: Vec<_> = all.into_iter().filter(|r| r.data["status"]["conditions"].is_null()).collect();
            ensure!(pending.len() == count, "{} instead of {count}: {}", pending.len(), json!(pending));
            anyhow::Ok(pending)
        })
        .await
    }

    async fn answer(&self, request: &DynamicObject) -> anyhow::Result<()> {
        let status = match request.data["spec"]["signerName"].as_str() {
            Some(GOOD) => self.issue(request)?,
            _ => json!({ "conditions": [condition("Denied", "NotYou", "only for the good")] }),
        };
        let name = request.metadata.name.as_deref().context("no name")?;
        let patch = Patch::Merge(json!({ "status": status }));
        self.requests.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn issue(&self, request: &DynamicObject) -> anyhow::Result<Value> {
        let spec = &request.data["spec"];
        let encoded: k8s_openapi::ByteString = serde_json::from_value(spec["stubPKCS10Request"].clone())?;
        let (_, asked) = X509CertificationRequest::from_der(&encoded.0)?;
        let key = asked.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let until = now + spec["maxExpirationSeconds"].as_u64().context("no maxExpirationSeconds")?;
        let mut params = CertificateParams::new(vec!["pod.example.com".to_owned()])?;
        params.not_before = (UNIX_EPOCH + Duration::from_secs(now)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(until)).into();
        let chain = params.signed_by(&Subject(key), &self.issuer)?.pem();
        Ok(json!({
            "conditions": [condition("Issued", "Fine", "here it is")],
            "certificateChain": format!("# of the test\n{chain}"),
            "notBefore": time(now),
            "notAfter": time(until),
            "beginRefreshAt": time(until - 1200),
        }))
    }
}

fn time(seconds: u64) -> String {
    let format = |t: i64| k8s_openapi::jiff::Timestamp::from_second(t).map(|t| t.to_string());
    i64::try_from(seconds).ok().and_then(|t| format(t).ok()).unwrap_or_default()
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time(now) })
}

fn source(signer: &str, key_type: &str, paths: &Value) -> Value {
    let mut source = json!({ "signerName": signer, "keyType": key_type, "maxExpirationSeconds": 3600,
        "userAnnotations": { "example.com/for": key_type } });
    if let (Some(source), Some(paths)) = (source.as_object_mut(), paths.as_object()) {
        source.extend(paths.clone());
    }
    json!({ "podCertificate": source })
}

/// The key that a container sees, once it is that of the certificate beside it.
async fn key_of(rig: &Rig, key: &str, chain: &str) -> anyhow::Result<KeyPair> {
    let key = KeyPair::from_pem(&rig.node.exec("signed", &["cat", key]).await?)?;
    let chain = rig.node.exec("signed", &["cat", chain]).await?;
    let chain = chain.get(chain.find("-----BEGIN CERTIFICATE").context("no certificate")?..).unwrap_or_default();
    let (_, block) = x509_parser::pem::parse_x509_pem(chain.as_bytes())?;
    let (_, leaf) = X509Certificate::from_der(&block.contents)?;
    ensure!(leaf.public_key().subject_public_key.data.as_ref() == key.public_key_raw(), "another key's certificate");
    Ok(key)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_keys_with_certificates_of_their_signers_or_are_told_why_not() {
    pod_certificates().await.unwrap();
}

async fn pod_certificates() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Bridge).await?;
    let signer = Signer::new(&rig)?;
    let made: Pod = rig
        .create(pod(
            "signed",
            &json!([
                source(GOOD, "ECDSAP256", &json!({ "credentialBundlePath": "bundle.pem" })),
                source(GOOD, "ED25519", &json!({ "keyPath": "key.pem", "certificateChainPath": "chain.pem" })),
                source(GOOD, "ECDSAP384", &json!({ "credentialBundlePath": "other.pem" })),
            ]),
        ))
        .await?;
    let requests = signer.pending(3).await?;
    let mut kinds: Vec<&str> = Vec::new();
    for request in &requests {
        let spec = &request.data["spec"];
        ensure!(spec["podName"] == "signed" && spec["podUID"] == json!(made.metadata.uid), "{spec}");
        ensure!(spec["nodeName"] == NAME && spec["serviceAccountName"] == "default", "{spec}");
        ensure!(spec["maxExpirationSeconds"] == 3600, "{spec}");
        kinds.extend(spec["unverifiedUserAnnotations"]["example.com/for"].as_str());
        ensure!(
            request
                .metadata
                .owner_references
                .iter()
                .flatten()
                .any(|owner| Some(&owner.uid) == made.metadata.uid.as_ref())
        );
        signer.answer(request).await?;
    }
    kinds.sort_unstable();
    ensure!(kinds == ["ECDSAP256", "ECDSAP384", "ED25519"], "{kinds:?}");
    rig.pod_is_ready("signed").await?;
    let first = key_of(&rig, "/v/key.pem", "/v/chain.pem").await?;
    for bundle in ["/v/bundle.pem", "/v/other.pem"] {
        key_of(&rig, bundle, bundle).await?;
    }
    let chain = rig.node.exec("signed", &["cat", "/v/chain.pem"]).await?;
    ensure!(chain.starts_with("-----BEGIN CERTIFICATE-----\n") && !chain.contains('#'), "{chain}");

    refusals_are_told(&rig, &signer).await?;

    // Keys and refusals are written down nowhere: another agent asks again, and the old files serve meanwhile.
    rig.node.agent()?.kill9();
    rig.node.restart_agent()?;
    for request in signer.pending(4).await? {
        key_of(&rig, "/v/key.pem", "/v/chain.pem").await?;
        signer.answer(&request).await?;
    }
    eventually(PATIENCE, "the new key", async || {
        ensure!(key_of(&rig, "/v/key.pem", "/v/chain.pem").await?.serialized_der() != first.serialized_der());
        anyhow::Ok(())
    })
    .await?;
    for pod in ["signed", "denied", "rsa"] {
        rig.delete::<Pod>(pod).await?;
    }
    rig.nothing_is_left().await?;
    rig.finish()
}

async fn refusals_are_told(rig: &Rig, signer: &Signer) -> anyhow::Result<()> {
    let bundle = json!({ "credentialBundlePath": "bundle.pem" });
    rig.create::<Pod>(pod("denied", &json!([source(STRICT, "ECDSAP256", &bundle)]))).await?;
    rig.create::<Pod>(pod("rsa", &json!([source(GOOD, "RSA3072", &bundle)]))).await?;
    let request = signer.pending(1).await?.remove(0);
    signer.answer(&request).await?;
    let name = request.metadata.name.unwrap_or_default();
    let said = r#"reason="NotYou", message="only for the good""#;
    are_told(rig, "denied", &format!("PodCertificateRequest default/{name} was denied, {said}")).await?;
    let text = r#"PodCertificateRequest was permanently denied: reason="NotYou" message="only for the good""#;
    are_told(rig, "denied", text).await?;
    are_told(rig, "rsa", r#"keyType "RSA3072" is not supported by this node agent: choose ECDSAP256"#).await
}
