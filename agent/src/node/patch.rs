//! The difference between two node statuses, how urgent it is, and the strategic merge patch that carries it. Pure.
//!
//! `conditions` merge by `type`, so those of others (`NetworkUnavailable`) stay. `addresses` claim to merge by `type` too,
//! which loses one of two InternalIPs; they are replaced as a whole, as kubelet does. In `capacity` and `allocatable` only
//! own resources are named: those that an operator advertised by hand stay.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde_json::{Map, Value, json};

use crate::quantity::Quantity;

/// How soon a difference has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Only heartbeat times differ.
    Nothing,
    /// Something that may be gathered with other changes: images, volumes, facts.
    Soon,
    /// A condition or an address: the scheduler and controllers act on it.
    Now,
}

/// Compares what the server has with what is true.
pub fn urgency(base: &NodeStatus, new: &NodeStatus) -> Urgency {
    let conditions = new.conditions.iter().flatten().any(|condition| {
        base.conditions
            .iter()
            .flatten()
            .find(|old| old.type_ == condition.type_)
            .is_none_or(|old| !same_condition(old, condition))
    });
    match () {
        () if conditions
            || base.addresses.as_deref().unwrap_or_default() != new.addresses.as_deref().unwrap_or_default() =>
        {
            Urgency::Now
        }
        () if fields(base, new).is_empty() => Urgency::Nothing,
        () => Urgency::Soon,
    }
}

fn same_condition(old: &NodeCondition, new: &NodeCondition) -> bool {
    old.status == new.status && old.reason == new.reason && old.message == new.message
}

/// The patch of `nodes/status`: what changed, and all own conditions with their new heartbeat time.
pub fn build(base: &NodeStatus, new: &NodeStatus) -> Value {
    let mut status = fields(base, new);
    let conditions = new.conditions.as_deref().unwrap_or_default();
    status.insert("conditions".to_owned(), json!(conditions));
    let order: Vec<Value> = conditions.iter().map(|condition| json!({ "type": condition.type_ })).collect();
    status.insert("$setElementOrder/conditions".to_owned(), Value::Array(order));
    json!({ "status": status })
}

fn fields(base: &NodeStatus, new: &NodeStatus) -> Map<String, Value> {
    let mut status = Map::new();
    let mut set = |name: &str, value: Value| drop(status.insert(name.to_owned(), value));
    if base.addresses.as_deref().unwrap_or_default() != new.addresses.as_deref().unwrap_or_default() {
        let mut addresses: Vec<Value> = new.addresses.iter().flatten().map(|address| json!(address)).collect();
        addresses.push(json!({ "$patch": "replace" }));
        set("addresses", Value::Array(addresses));
    }
    for (name, old, wanted) in
        [("capacity", &base.capacity, &new.capacity), ("allocatable", &base.allocatable, &new.allocatable)]
    {
        let changes = resources(old.as_ref(), wanted.as_ref());
        if !changes.is_empty() {
            set(name, Value::Object(changes));
        }
    }
    if base.node_info != new.node_info {
        set("nodeInfo", replaced(json!(new.node_info)));
    }
    if base.daemon_endpoints != new.daemon_endpoints {
        set("daemonEndpoints", json!(new.daemon_endpoints));
    }
    if base.declared_features != new.declared_features {
        set("declaredFeatures", json!(new.declared_features));
    }
    if base.features != new.features {
        set("features", json!(new.features));
    }
    if base.images.as_deref().unwrap_or_default() != new.images.as_deref().unwrap_or_default() {
        set("images", json!(new.images));
    }
    if base.runtime_handlers.as_deref().unwrap_or_default() != new.runtime_handlers.as_deref().unwrap_or_default() {
        set("runtimeHandlers", json!(new.runtime_handlers));
    }
    if base.volumes_in_use.as_deref().unwrap_or_default() != new.volumes_in_use.as_deref().unwrap_or_default() {
        set("volumesInUse", json!(new.volumes_in_use));
    }
    status
}

fn replaced(value: Value) -> Value {
    match value {
        Value::Object(mut fields) => {
            fields.insert("$patch".to_owned(), "replace".into());
            Value::Object(fields)
        }
        other => other,
    }
}

type ApiResources = BTreeMap<String, ApiQuantity>;

fn resources(old: Option<&ApiResources>, new: Option<&ApiResources>) -> Map<String, Value> {
    let empty = ApiResources::new();
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let changed = new.iter().filter(|(name, quantity)| !old.get(*name).is_some_and(|old| same(old, quantity)));
    let mut changes: Map<String, Value> =
        changed.map(|(name, quantity)| (name.clone(), quantity.0.as_str().into())).collect();
    // A huge page size that the kernel no longer has.
    for name in old.keys().filter(|name| name.starts_with("hugepages-") && !new.contains_key(*name)) {
        changes.insert(name.clone(), Value::Null);
    }
    changes
}

fn same(old: &ApiQuantity, new: &ApiQuantity) -> bool {
    old == new || matches!((Quantity::parse(&old.0), Quantity::parse(&new.0)), (Ok(old), Ok(new)) if old == new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> NodeStatus {
        serde_json::from_value(value).expect("status")
    }

    fn ready(status: &str, heartbeat: &str) -> Value {
        json!({ "type": "Ready", "status": status, "lastHeartbeatTime": heartbeat })
    }

    const T1: &str = "2026-01-01T00:00:00Z";
    const T2: &str = "2026-01-02T00:00:00Z";

    #[test]
    fn urgency_follows_who_acts_on_the_change() {
        let base =
            status(json!({ "conditions": [ready("True", T1), { "type": "NetworkUnavailable", "status": "False" }],
            "capacity": { "cpu": "1000m", "example.com/gpu": "2" } }));
        let of = |value: Value| urgency(&base, &status(value));
        let same = json!({ "conditions": [ready("True", T2)], "capacity": { "cpu": "1" } });
        assert_eq!(
            of(same.clone()),
            Urgency::Nothing,
            "heartbeat, spelling of a quantity and foreign parts do not count"
        );
        let mut images = same.clone();
        images["images"] = json!([{ "names": ["a"] }]);
        assert_eq!(of(images), Urgency::Soon);
        let mut condition = same.clone();
        condition["conditions"] = json!([ready("False", T2)]);
        assert_eq!(of(condition), Urgency::Now);
        let mut address = same;
        address["addresses"] = json!([{ "type": "Hostname", "address": "n" }]);
        assert_eq!(of(address), Urgency::Now);
    }

    #[test]
    fn foreign_conditions_and_resources_are_not_named() {
        let base = status(json!({ "conditions": [{ "type": "NetworkUnavailable", "status": "False" }],
            "capacity": { "cpu": "1", "example.com/gpu": "2", "hugepages-2Mi": "4Mi" } }));
        let patch = build(&base, &status(json!({ "conditions": [ready("True", T1)], "capacity": { "cpu": "2" } })));
        assert_eq!(patch["status"]["capacity"], json!({ "cpu": "2", "hugepages-2Mi": null }));
        assert_eq!(patch["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(patch["status"]["$setElementOrder/conditions"], json!([{ "type": "Ready" }]));
    }

    #[test]
    fn two_internal_addresses_both_arrive() {
        let addresses =
            json!([{ "type": "InternalIP", "address": "10.0.0.1" }, { "type": "InternalIP", "address": "fd00::1" }]);
        let patch = build(&NodeStatus::default(), &status(json!({ "addresses": addresses })));
        assert_eq!(patch["status"]["addresses"][2], json!({ "$patch": "replace" }));
        assert_eq!(patch["status"]["addresses"].as_array().map(Vec::len), Some(3));
    }
}
