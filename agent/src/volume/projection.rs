//! The sources of files of a volume: one of a configMap, secret or downwardAPI volume, several of a projected one. Pure.

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, VolumeProjection,
};

use super::trust::Chosen;
use crate::ids::ObjectKey;
use crate::objects::ObjectRef;

/// One source of files.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    ConfigMap { name: String, items: Vec<KeyToPath>, optional: bool },
    Secret { name: String, items: Vec<KeyToPath>, optional: bool },
    Downward { items: Vec<DownwardAPIVolumeFile> },
    Token { audience: String, expiration_seconds: i64, path: String },
    TrustBundles { chosen: Chosen, optional: bool, path: String },
    Refused(String),
}

impl Piece {
    /// The object that it is made from, if there is one that changes.
    pub(super) fn object_ref(&self, namespace: &str) -> Option<ObjectRef> {
        match self {
            Self::ConfigMap { name, .. } => Some(ObjectRef::ConfigMap(ObjectKey::new(namespace, name))),
            Self::Secret { name, .. } => Some(ObjectRef::Secret(ObjectKey::new(namespace, name))),
            Self::TrustBundles { chosen, .. } => chosen.reference().map(ObjectRef::TrustBundles),
            Self::Downward { .. } | Self::Token { .. } | Self::Refused(_) => None,
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
    let what = if source.pod_certificate.is_some() { "podCertificate" } else { "of this kind" };
    Piece::Refused(format!("projected sources {what} are not supported by this node agent yet"))
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
