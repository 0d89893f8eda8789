//! Node selectors: terms over a node's labels, as pods and PersistentVolumes have them. Pure.
//!
//! Source: `NodeSelector` of the core API. Preferences have no meaning here: they are the scheduler's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// Whether a node meets one of the terms; no term is met by none.
pub fn matches(terms: &[NodeSelectorTerm], name: &str, labels: &BTreeMap<String, String>) -> bool {
    terms.iter().any(|term| matches_term(term, name, labels))
}

/// All requirements of a term; a term without any matches nothing.
fn matches_term(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |requirement: &NodeSelectorRequirement| {
        matches_requirement(requirement, labels.get(&requirement.key).map(String::as_str))
    };
    let field = |requirement: &NodeSelectorRequirement| {
        matches_requirement(requirement, (requirement.key == "metadata.name").then_some(name))
    };
    expressions.iter().all(label) && fields.iter().all(field)
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => is_listed(),
        "NotIn" => !is_listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(ours, bound)| ours > bound),
        "Lt" => numbers().is_some_and(|(ours, bound)| ours < bound),
        // The API server lets no other through; what is not understood does not match.
        _ => false,
    }
}
