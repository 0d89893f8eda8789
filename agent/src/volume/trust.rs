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

    /// Whether the labels of a bundle are what is asked for.
    fn selects(&self, bundle: &TrustBundle) -> Result<bool, String> {
        match self {
            Self::Signed { labels, .. } => selector::matches_labels(labels, &bundle.labels)
                .map_err(|e| format!("while parsing label selector: {e}")),
            Self::Named(_) | Self::Nothing => Ok(true),
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
    let wanted = chosen.reference();
    let is_wanted = |bundle: &TrustBundle| wanted.as_ref().is_some_and(|wanted| wanted.covers(bundle));
    let mut is_missing = true;
    let mut anchors = BTreeSet::new();
    for bundle in bundles {
        // A selector that means nothing is told, whosever the bundle is.
        if !chosen.selects(bundle)? || !is_wanted(bundle) {
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
