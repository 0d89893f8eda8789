//! Trust anchors of `clusterTrustBundle` sources: which bundles are meant, and the one file that they come to. Pure.
//!
//! The file has every anchor once, as plain PEM without what the bundles' authors wrote in between, in the order of their
//! bytes. (kubelet's order is arbitrary and another one after each restart; an order that stays rewrites nothing.)

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::pem;
use crate::objects::{TrustBundle, TrustBundleRef};
use crate::selector;

/// What a source chooses.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Chosen {
    /// `name`.
    Named(String),
    /// `signerName` with a `labelSelector`; an empty selector means all of the signer.
    Signed { signer: String, labels: LabelSelector },
    /// `signerName` without a `labelSelector`, which the API defines as none.
    Nothing,
}

impl Chosen {
    /// What has to be watched for it.
    pub(super) fn reference(&self) -> Option<TrustBundleRef> {
        match self {
            Self::Named(name) => Some(TrustBundleRef::Name(name.clone())),
            Self::Signed { signer, .. } => Some(TrustBundleRef::Signer(signer.clone())),
            Self::Nothing => None,
        }
    }

    fn covers(&self, bundle: &TrustBundle) -> Result<bool, String> {
        match self {
            Self::Named(name) => Ok(bundle.name == *name),
            Self::Signed { signer, labels } => {
                let is_met = selector::matches_labels(labels, &bundle.labels);
                Ok(is_met.map_err(|e| format!("while parsing label selector: {e}"))?
                    && bundle.signer.as_ref() == Some(signer))
            }
            Self::Nothing => Ok(false),
        }
    }

    fn missing(&self) -> String {
        match self {
            Self::Named(name) => {
                format!("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found")
            }
            Self::Signed { .. } | Self::Nothing => {
                "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned()
            }
        }
    }
}

/// The file of a source. An optional one that finds nothing is an empty file, as under kubelet.
pub(super) fn anchors(chosen: &Chosen, bundles: &[Arc<TrustBundle>], optional: bool) -> Result<Vec<u8>, String> {
    let mut is_missing = true;
    let mut anchors = BTreeSet::new();
    for bundle in bundles {
        if !chosen.covers(bundle)? {
            continue;
        }
        is_missing = false;
        let found = pem::certificates(&bundle.pem);
        let problem = |e| format!("while normalizing trust anchors of ClusterTrustBundle {:?}: {e}", bundle.name);
        anchors.extend(found.map_err(problem)?);
    }
    if is_missing && !optional {
        return Err(chosen.missing());
    }
    Ok(anchors.iter().map(|anchor| pem::encode(pem::CERTIFICATE, anchor)).collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests;
