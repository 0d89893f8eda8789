//! Restart policies and restart rules. Pure.
//!
//! A container's own rules come first, then its policy, then the pod's (KEP-5307). A rule may also say that the whole pod
//! starts over in its sandbox (KEP-5532).
//! Source: `pkg/api/v1/pod/util.go` and `pkg/kubelet/container/helpers.go` of k8s.io/kubernetes v1.37.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use super::{Role, restart_policy, spec};
use crate::cri::{ContainerState, PodRuntime};

const RESTART: &str = "Restart";
const RESTART_ALL: &str = "RestartAllContainers";

/// The first rule that an exit code fits.
fn matching(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    })
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = spec(pod);
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
}

/// Whether a container that ended with `exit_code` is to run again. Sidecars always run again, ephemeral containers never,
/// and an init container that has succeeded is done.
pub fn restarts(pod: &Pod, name: &str, role: Role, exit_code: i32) -> bool {
    match role {
        Role::Ephemeral => return false,
        Role::Sidecar => return true,
        Role::Init if exit_code == 0 => return false,
        Role::Init | Role::App => {}
    }
    let container = find(pod, name);
    let own = container.and_then(|c| c.restart_policy.as_deref());
    if own.is_some() {
        let action = container.and_then(|c| matching(c, exit_code)).map(|rule| rule.action.as_str());
        if matches!(action, Some(RESTART | RESTART_ALL)) {
            return true;
        }
    }
    match own.unwrap_or_else(|| restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a container may not run any more once a probe has given up on it. Rules ask for an exit code, and a container that
/// runs has none.
pub fn restarts_after_probe(pod: &Pod, name: &str, role: Role) -> bool {
    let own = find(pod, name).and_then(|c| c.restart_policy.as_deref());
    role == Role::Sidecar || own.unwrap_or_else(|| restart_policy(pod)) != "Never"
}

/// Whether some rule of the pod can make all of it start over.
pub fn may_restart_all(pod: &Pod) -> bool {
    let spec = spec(pod);
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.any(|c| c.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL))
}

/// Whether this end of a container makes the whole pod start over.
pub fn restarts_all(pod: &Pod, name: &str, exit_code: i32) -> bool {
    find(pod, name).and_then(|c| matching(c, exit_code)).is_some_and(|rule| rule.action == RESTART_ALL)
}

/// Whether the pod is to start over: the newest container of some name has ended so that a rule asks for it. This holds until
/// that container is removed, which is done last.
pub fn is_starting_over(pod: &Pod, runtime: &PodRuntime) -> bool {
    may_restart_all(pod)
        && super::roles(pod).filter(|(_, role)| *role != Role::Ephemeral).any(|(name, _)| {
            matches!(runtime.latest(name).map(|c| &c.state),
                Some(ContainerState::Exited { exit_code, .. }) if restarts_all(pod, name, *exit_code))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pod with an init container `i` and an app container `c`, both with this policy and these rules.
    fn make_pod(pod_policy: &str, own: Option<&str>, rules: &serde_json::Value) -> Pod {
        let container =
            |name: &str| serde_json::json!({ "name": name, "restartPolicy": own, "restartPolicyRules": rules });
        let spec = serde_json::json!({ "restartPolicy": pod_policy, "initContainers": [container("i")],
            "containers": [container("c")] });
        serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_goes_before_the_containers_policy_and_that_before_the_pods() {
        let rule = |action: &str, operator: &str, codes: &[i32]| {
            serde_json::json!({ "action": action,
            "exitCodes": { "operator": operator, "values": codes } })
        };
        let (in_42, not_in_1) = (rule(RESTART, "In", &[42]), rule(RESTART, "NotIn", &[1]));
        let all = rule(RESTART_ALL, "In", &[42]);
        // (pod's policy, container's policy, rules, exit code) -> restarts
        let table = [
            (("Always", None, vec![], 0), true),
            (("OnFailure", None, vec![], 0), false),
            (("OnFailure", None, vec![], 1), true),
            (("Never", None, vec![], 1), false),
            (("Never", Some("Always"), vec![], 0), true),
            (("Never", Some("OnFailure"), vec![], 0), false),
            (("Always", Some("Never"), vec![], 1), false),
            (("Always", Some("Never"), vec![in_42.clone()], 42), true),
            (("Always", Some("Never"), vec![in_42.clone()], 43), false),
            (("Never", Some("Never"), vec![not_in_1.clone()], 0), true),
            (("Never", Some("Never"), vec![not_in_1], 1), false),
            (("Never", Some("Never"), vec![all], 42), true),
            // Without a policy of its own a container has no rules; the API server refuses such.
            (("Never", None, vec![in_42.clone()], 42), false),
            // What is not known leaves it to the policy.
            (("Never", Some("Never"), vec![rule("Explode", "In", &[42]), in_42], 42), false),
        ];
        for ((policy, own, rules, code), expected) in table {
            let pod = make_pod(policy, own, &serde_json::json!(rules));
            assert_eq!(restarts(&pod, "c", Role::App, code), expected, "{policy} {own:?} {rules:?} exit {code}");
        }
    }

    #[test]
    fn an_init_container_that_succeeded_is_done_a_sidecar_never_and_an_ephemeral_container_always() {
        let rules = serde_json::json!([{ "action": RESTART, "exitCodes": { "operator": "In", "values": [0, 1] } }]);
        let pod = make_pod("Never", Some("Never"), &rules);
        assert!(!restarts(&pod, "i", Role::Init, 0) && restarts(&pod, "i", Role::Init, 1));
        assert!(restarts(&pod, "i", Role::Sidecar, 0));
        assert!(!restarts(&pod, "x", Role::Ephemeral, 1));
    }

    #[test]
    fn a_rule_of_any_container_that_is_not_ephemeral_makes_the_whole_pod_start_over() {
        let rules =
            serde_json::json!([{ "action": RESTART_ALL, "exitCodes": { "operator": "In", "values": [0, 42] } }]);
        let pod = make_pod("Never", Some("Never"), &rules);
        assert!(may_restart_all(&pod));
        assert!(restarts_all(&pod, "c", 42) && restarts_all(&pod, "i", 0) && !restarts_all(&pod, "c", 1));
        assert!(!may_restart_all(&make_pod("Never", Some("Never"), &serde_json::Value::Null)));
    }
}
