//! Selectors: terms over a node's labels, as pods and PersistentVolumes have them, and `LabelSelector`s. Pure.
//!
//! Sources: `NodeSelector` of the core API (preferences have no meaning here: they are the scheduler's), and
//! `LabelSelector` of meta/v1.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

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

/// Whether labels meet a `LabelSelector`; an empty one is met by all. The error says what is wrong with the selector.
pub fn matches_labels(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool, String> {
    let is_equal = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    let mut is_met = selector.match_labels.iter().flatten().all(is_equal);
    // All of them, so that what is wrong is told whatever the labels are.
    for requirement in selector.match_expressions.iter().flatten() {
        is_met &= meets(requirement, labels.get(&requirement.key))?;
    }
    Ok(is_met)
}

fn meets(requirement: &LabelSelectorRequirement, value: Option<&String>) -> Result<bool, String> {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = value.is_some_and(|value| values.contains(value));
    let wants_values = matches!(requirement.operator.as_str(), "In" | "NotIn");
    if wants_values == values.is_empty() {
        let wanted = if wants_values { "at least one value" } else { "no values" };
        let found = values.len();
        return Err(format!("{} of label {}: expected {wanted}, found {found}", requirement.operator, requirement.key));
    }
    match requirement.operator.as_str() {
        "In" => Ok(is_listed),
        "NotIn" => Ok(!is_listed),
        "Exists" => Ok(value.is_some()),
        "DoesNotExist" => Ok(value.is_none()),
        other => Err(format!("{other:?} is not a valid label selector operator")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn is_met(selector: Value, labels: Value) -> Result<bool, String> {
        matches_labels(&serde_json::from_value(selector).unwrap(), &serde_json::from_value(labels).unwrap())
    }

    #[test]
    fn label_selectors_are_the_apis() {
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
        for (selector, labels, met) in [
            (json!({}), json!({}), true),
            (json!({}), json!({"k": "v"}), true),
            (json!({"matchLabels": {"k": "v"}}), json!({"k": "v", "l": "w"}), true),
            (json!({"matchLabels": {"k": "v", "l": "x"}}), json!({"k": "v", "l": "w"}), false),
            (json!({"matchLabels": {"k": ""}}), json!({}), false),
            (expression("In", &["a", "v"]), json!({"k": "v"}), true),
            (expression("In", &["a", "v"]), json!({}), false),
            (expression("NotIn", &["a", "v"]), json!({"k": "v"}), false),
            (expression("NotIn", &["a", "v"]), json!({"k": "w"}), true),
            (expression("NotIn", &["a", "v"]), json!({}), true),
            (expression("Exists", &[]), json!({"k": ""}), true),
            (expression("Exists", &[]), json!({"l": ""}), false),
            (expression("DoesNotExist", &[]), json!({"k": ""}), false),
            (expression("DoesNotExist", &[]), json!({}), true),
        ] {
            assert_eq!(is_met(selector.clone(), labels.clone()), Ok(met), "{selector} {labels}");
        }
    }

    #[test]
    fn a_label_selector_that_means_nothing_is_an_error() {
        for (operator, values) in [("In", json!([])), ("Exists", json!(["v"])), ("in", json!(["v"])), ("Gt", json!([]))]
        {
            let selector = json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
            assert!(is_met(selector, json!({})).is_err_and(|e| e.contains(operator)), "{operator}");
        }
    }
}
