//! The sources of files of a volume: one of a configMap, secret or downwardAPI volume, several of a projected one. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, KeyToPath, PodCertificateProjection, ProjectedVolumeSource,
    VolumeProjection,
};

use super::trust::Chosen;
use crate::ids::ObjectKey;
use crate::objects::{KeyType, ObjectRef};

/// One source of files.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    ConfigMap { name: String, items: Vec<KeyToPath>, optional: bool },
    Secret { name: String, items: Vec<KeyToPath>, optional: bool },
    Downward { items: Vec<DownwardAPIVolumeFile> },
    Token { audience: String, expiration_seconds: i64, path: String },
    TrustBundles { chosen: Chosen, optional: bool, path: String },
    Certificate(Certificate),
    Refused(String),
}

/// A `podCertificate` source.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Certificate {
    pub(super) signer: String,
    pub(super) key_type: KeyType,
    pub(super) max_expiration_seconds: Option<i32>,
    pub(super) annotations: BTreeMap<String, String>,
    /// Key and chain in one file.
    pub(super) bundle_path: Option<String>,
    pub(super) key_path: Option<String>,
    pub(super) chain_path: Option<String>,
}

impl Piece {
    /// The object that it is made from, if there is one that changes.
    pub(super) fn object_ref(&self, namespace: &str) -> Option<ObjectRef> {
        match self {
            Self::ConfigMap { name, .. } => Some(ObjectRef::ConfigMap(ObjectKey::new(namespace, name))),
            Self::Secret { name, .. } => Some(ObjectRef::Secret(ObjectKey::new(namespace, name))),
            Self::TrustBundles { chosen, .. } => chosen.reference().map(ObjectRef::TrustBundles),
            Self::Downward { .. } | Self::Token { .. } | Self::Certificate(_) | Self::Refused(_) => None,
        }
    }
}

/// The sources of a projected volume, in their order.
pub(super) fn pieces(projected: &ProjectedVolumeSource) -> Vec<Piece> {
    projected.sources.iter().flatten().map(piece).collect()
}

fn piece(source: &VolumeProjection) -> Piece {
    if let Some(map) = &source.config_map {
        let items = map.items.clone().unwrap_or_default();
        return Piece::ConfigMap { name: map.name.clone(), items, optional: map.optional == Some(true) };
    }
    if let Some(secret) = &source.secret {
        let items = secret.items.clone().unwrap_or_default();
        return Piece::Secret { name: secret.name.clone(), items, optional: secret.optional == Some(true) };
    }
    if let Some(downward) = &source.downward_api {
        return Piece::Downward { items: downward.items.clone().unwrap_or_default() };
    }
    if let Some(token) = &source.service_account_token {
        return Piece::Token {
            audience: token.audience.clone().unwrap_or_default(),
            // The API's default: one hour.
            expiration_seconds: token.expiration_seconds.unwrap_or(3600),
            path: token.path.clone(),
        };
    }
    if let Some(bundles) = &source.cluster_trust_bundle {
        return trust_bundles(bundles);
    }
    if let Some(source) = &source.pod_certificate {
        return certificate(source);
    }
    Piece::Refused("projected sources of this kind are not supported by this node agent yet".to_owned())
}

fn certificate(source: &PodCertificateProjection) -> Piece {
    let Some(key_type) = KeyType::parse(&source.key_type) else {
        return Piece::Refused(format!(
            "podCertificate keyType {:?} is not supported by this node agent: choose ECDSAP256, ECDSAP384 or ED25519",
            source.key_type
        ));
    };
    let path = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
    Piece::Certificate(Certificate {
        signer: source.signer_name.clone(),
        key_type,
        max_expiration_seconds: source.max_expiration_seconds,
        annotations: source.user_annotations.clone().unwrap_or_default(),
        bundle_path: path(&source.credential_bundle_path),
        key_path: path(&source.key_path),
        chain_path: path(&source.certificate_chain_path),
    })
}

fn trust_bundles(source: &ClusterTrustBundleProjection) -> Piece {
    let chosen = match (&source.name, &source.signer_name, &source.label_selector) {
        (Some(name), _, _) => Chosen::Named(name.clone()),
        (None, Some(signer), Some(labels)) => Chosen::Signed { signer: signer.clone(), labels: labels.clone() },
        (None, Some(_), None) => Chosen::Nothing,
        (None, None, _) => {
            return Piece::Refused(
                "ClusterTrustBundle projection requires either name or signerName to be set".to_owned(),
            );
        }
    };
    Piece::TrustBundles { chosen, optional: source.optional == Some(true), path: source.path.clone() }
}
