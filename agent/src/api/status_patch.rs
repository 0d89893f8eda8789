//! The difference between two pod statuses as a strategic merge patch. Pure.
//!
//! The merge keys are those of `k8s.io/api/core/v1` `PodStatus`: `conditions` merge by `type`, `podIPs` and `hostIPs` by
//! `ip`, lists of container statuses are replaced as a whole, objects merge field by field. Conditions of others
//! (readiness gates, the scheduler's) and the fields that the kubelet does not own (`nominatedNodeName`, claim statuses)
//! are never named, so they stay.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Conditions that belong to the kubelet, as its `PodConditionsByKubelet` lists them.
const OWNED_CONDITIONS: [&str; 8] = [
    "PodScheduled",
    "Ready",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
    "PodResizeInProgress",
    "PodResizePending",
    "AllContainersRestarting",
];
/// Set by the kubelet on eviction and shutdown, but also by others; so it is set here and never removed.
const SHARED_CONDITION: &str = "DisruptionTarget";

/// How a field of the status is merged by the server.
enum Merge {
    /// The new value takes the place of the old one: scalars and atomic lists.
    Atomic,
    /// Objects, and lists with a merge key: the server would merge, so a directive asks for replacement.
    Object,
    /// See [`Merge::Object`].
    KeyedList,
}

const FIELDS: [(&str, Merge); 15] = [
    ("allocatedResources", Merge::Object),
    ("containerStatuses", Merge::Atomic),
    ("ephemeralContainerStatuses", Merge::Atomic),
    ("hostIP", Merge::Atomic),
    ("hostIPs", Merge::KeyedList),
    ("initContainerStatuses", Merge::Atomic),
    ("message", Merge::Atomic),
    ("observedGeneration", Merge::Atomic),
    ("phase", Merge::Atomic),
    ("podIP", Merge::Atomic),
    ("podIPs", Merge::KeyedList),
    ("qosClass", Merge::Atomic),
    ("reason", Merge::Atomic),
    ("resources", Merge::Object),
    ("startTime", Merge::Atomic),
];

/// The part of a status that this agent owns, in a form that can be compared and kept.
pub fn owned(status: &PodStatus) -> Map<String, Value> {
    let Ok(Value::Object(all)) = serde_json::to_value(status) else {
        // A PodStatus has string keys only, so this cannot happen; an empty map would just write everything.
        return Map::new();
    };
    let mut kept = Map::new();
    for (name, value) in all {
        if name == "conditions" {
            let conditions: Vec<Value> =
                elements(Some(&value)).filter(|c| is_ours(condition_type(c))).cloned().collect();
            kept.insert(name, Value::Array(conditions));
        } else if FIELDS.iter().any(|(field, _)| *field == name) && !is_absent(&value) {
            kept.insert(name, value);
        }
    }
    kept
}

/// The patch that turns `base` into `desired`, or `None` when nothing differs.
///
/// `base` is what the server has as far as we know, as [`owned`] made it; `None` when nothing is known. The pod's UID is
/// part of the patch, so that a new pod of the same name refuses it.
pub fn build(uid: &str, base: Option<&Map<String, Value>>, desired: &PodStatus) -> Option<Value> {
    let mut desired = owned(desired);
    if let Some(base) = base {
        keep_times(base, &mut desired);
    }
    let mut status = Map::new();
    for (name, merge) in &FIELDS {
        let old = base.and_then(|base| base.get(*name));
        match (old, desired.get(*name)) {
            (old, Some(new)) if old == Some(new) => {}
            (_, Some(new)) => {
                status.insert((*name).to_owned(), replacement(merge, new));
            }
            (Some(_), None) => {
                status.insert((*name).to_owned(), Value::Null);
            }
            (None, None) if base.is_none() => {
                status.insert((*name).to_owned(), Value::Null);
            }
            (None, None) => {}
        }
    }
    conditions(base, &desired, &mut status);
    match status.is_empty() {
        true => None,
        false => Some(json!({ "metadata": { "uid": uid }, "status": status })),
    }
}

fn replacement(merge: &Merge, new: &Value) -> Value {
    match (merge, new) {
        (Merge::Object, Value::Object(fields)) => {
            let mut fields = fields.clone();
            fields.insert("$patch".to_owned(), "replace".into());
            Value::Object(fields)
        }
        (Merge::KeyedList, Value::Array(items)) => {
            let mut items = items.clone();
            items.push(json!({ "$patch": "replace" }));
            Value::Array(items)
        }
        (Merge::Atomic | Merge::Object | Merge::KeyedList, value) => value.clone(),
    }
}

/// A pod starts once, and a condition that keeps its status keeps its transition time, even if this agent has just
/// started and does not remember either.
fn keep_times(base: &Map<String, Value>, desired: &mut Map<String, Value>) {
    if let (Some(start), true) = (base.get("startTime"), desired.contains_key("startTime")) {
        desired.insert("startTime".to_owned(), start.clone());
    }
    let Some(Value::Array(new)) = desired.get_mut("conditions") else { return };
    for condition in new {
        let Some(old) = find(base, condition_type(condition)) else { continue };
        if old.get("status") == condition.get("status")
            && let (Some(time), Value::Object(fields)) = (old.get("lastTransitionTime"), condition)
            && !time.is_null()
        {
            fields.insert("lastTransitionTime".to_owned(), time.clone());
        }
    }
}

fn conditions(base: Option<&Map<String, Value>>, desired: &Map<String, Value>, status: &mut Map<String, Value>) {
    let mut changes = Vec::new();
    let mut order = Vec::new();
    for new in elements(desired.get("conditions")) {
        order.push(json!({ "type": condition_type(new) }));
        let old = base.and_then(|base| find(base, condition_type(new)));
        if old != Some(new) {
            changes.push(with_removed_fields(new));
        }
    }
    for old in elements(base.and_then(|base| base.get("conditions"))) {
        let kind = condition_type(old);
        // PodScheduled comes from the scheduler first; a status that does not repeat it does not deny it.
        if kind != SHARED_CONDITION && kind != "PodScheduled" && find(desired, kind).is_none() {
            changes.push(json!({ "$patch": "delete", "type": kind }));
        }
    }
    if !changes.is_empty() {
        status.insert("conditions".to_owned(), Value::Array(changes));
        status.insert("$setElementOrder/conditions".to_owned(), Value::Array(order));
    }
}

/// Merging keeps fields that a patch does not name, so those that must go are named with null.
fn with_removed_fields(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Value::Object(fields) = &mut condition {
        for optional in ["lastProbeTime", "message", "observedGeneration", "reason"] {
            fields.entry(optional).or_insert(Value::Null);
        }
    }
    condition
}

fn is_ours(kind: &str) -> bool {
    kind == SHARED_CONDITION || OWNED_CONDITIONS.contains(&kind)
}

fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn condition_type(condition: &Value) -> &str {
    condition.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn elements(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}

fn find<'a>(status: &'a Map<String, Value>, kind: &str) -> Option<&'a Value> {
    elements(status.get("conditions")).find(|condition| condition_type(condition) == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).expect("status")
    }

    fn patch(base: Value, desired: Value) -> Option<Value> {
        build("u1", Some(&owned(&status(base))), &status(desired)).map(|patch| {
            assert_eq!(patch["metadata"], json!({ "uid": "u1" }));
            patch["status"].clone()
        })
    }

    fn condition(kind: &str, value: &str, time: &str) -> Value {
        json!({ "type": kind, "status": value, "lastTransitionTime": time })
    }

    const T1: &str = "2026-01-01T00:00:00Z";
    const T2: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn equal_statuses_need_no_patch() {
        let full = json!({ "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }], "startTime": T1,
            "conditions": [condition("Ready", "True", T1)], "observedGeneration": 2 });
        assert_eq!(patch(full.clone(), full), None);
        assert_eq!(patch(json!({ "message": "", "podIPs": [] }), json!({})), None);
    }

    #[test]
    fn only_what_changed_is_sent() {
        let changed = patch(
            json!({ "phase": "Pending", "hostIP": "10.0.0.2", "observedGeneration": 1 }),
            json!({ "phase": "Running", "hostIP": "10.0.0.2", "observedGeneration": 2 }),
        );
        assert_eq!(changed, Some(json!({ "phase": "Running", "observedGeneration": 2 })));
    }

    #[test]
    fn removed_fields_are_null() {
        let changed = patch(
            json!({ "phase": "Running", "message": "m", "podIPs": [{ "ip": "10.0.0.1" }] }),
            json!({ "phase": "Running" }),
        );
        assert_eq!(changed, Some(json!({ "message": null, "podIPs": null })));
    }

    #[test]
    fn merged_lists_and_objects_are_replaced() {
        let changed = patch(
            json!({ "podIPs": [{ "ip": "10.0.0.1" }], "allocatedResources": { "cpu": "1", "memory": "1Gi" } }),
            json!({ "podIPs": [{ "ip": "10.0.0.2" }], "allocatedResources": { "cpu": "2" } }),
        );
        assert_eq!(
            changed,
            Some(json!({
                "podIPs": [{ "ip": "10.0.0.2" }, { "$patch": "replace" }],
                "allocatedResources": { "cpu": "2", "$patch": "replace" },
            }))
        );
    }

    #[test]
    fn foreign_conditions_and_fields_are_left_alone() {
        let base = json!({ "conditions": [condition("example.com/gate", "True", T1), condition("Ready", "False", T1)],
            "nominatedNodeName": "n", "resourceClaimStatuses": [{ "name": "c" }] });
        let changed = patch(
            base,
            json!({ "conditions": [condition("Ready", "True", T2), condition("example.com/gate", "False", T2)] }),
        )
        .expect("changed");
        assert_eq!(
            changed["conditions"],
            json!([{ "type": "Ready", "status": "True", "lastTransitionTime": T2,
            "lastProbeTime": null, "message": null, "observedGeneration": null, "reason": null }])
        );
        assert_eq!(changed["$setElementOrder/conditions"], json!([{ "type": "Ready" }]));
        assert_eq!(changed.as_object().expect("object").len(), 2);
    }

    #[test]
    fn an_own_condition_that_ended_is_deleted_but_shared_ones_stay() {
        let base = json!({ "conditions": [condition("PodResizePending", "True", T1), condition("PodScheduled", "True", T1),
            condition("DisruptionTarget", "True", T1)] });
        let changed = patch(base, json!({})).expect("changed");
        assert_eq!(changed["conditions"], json!([{ "$patch": "delete", "type": "PodResizePending" }]));
    }

    #[test]
    fn an_agent_that_forgot_transition_times_does_not_change_them() {
        let base = json!({ "startTime": T1, "conditions": [condition("Ready", "True", T1)] });
        let again = json!({ "startTime": T2, "conditions": [condition("Ready", "True", T2)] });
        assert_eq!(patch(base, again), None);
    }

    #[test]
    fn without_knowledge_everything_is_written() {
        let patch = build("u1", None, &status(json!({ "phase": "Failed" }))).expect("patch");
        assert_eq!(patch["status"]["phase"], "Failed");
        assert_eq!(patch["status"]["message"], Value::Null);
        assert_eq!(patch["status"].as_object().expect("object").len(), FIELDS.len());
    }
}
