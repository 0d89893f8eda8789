use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    let amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")];
    Node {
        name: "n1".into(),
        labels: [("zone", "a"), ("kubernetes.io/os", "linux"), ("cores", "8")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        allocatable: amounts.map(|(name, text)| (name.to_owned(), Quantity::parse(text).unwrap())).into(),
        ..Node::default()
    }
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec})).unwrap()
}

fn asking(cpu: &str) -> Pod {
    pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
}

fn reason(pod: &Pod, others: &[&Pod]) -> Option<String> {
    admit(pod, false, &node(), others).err().map(|rejection| rejection.reason)
}

#[test]
fn resources_are_counted_with_those_of_the_pods_that_are_there() {
    assert_eq!(reason(&asking("1500m"), &[&asking("500m")]), None);
    let rejection = admit(&asking("1501m"), false, &node(), &[&asking("500m")]).unwrap_err();
    assert_eq!(rejection.reason, "OutOfcpu");
    let text = "Pod was rejected: Node didn't have enough resource: cpu, requested: 1501, used: 500, capacity: 2000";
    assert_eq!(rejection.status_message(), text);
    let empty = pod(json!({}));
    assert_eq!(reason(&empty, &[&empty, &empty]), None);
    assert_eq!(reason(&empty, &[&empty, &empty, &empty]), Some("OutOfpods".into()));
}

fn requesting(requests: Value) -> Pod {
    pod(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
}

#[test]
fn each_resource_has_a_reason_and_its_numbers_in_the_message() {
    let mut node = node();
    for (name, text) in [("ephemeral-storage", "10Gi"), ("hugepages-2Mi", "4Mi"), ("example.com/gpu", "1")] {
        node.allocatable.insert(name.to_owned(), Quantity::parse(text).unwrap());
    }
    for (requests, reason, numbers) in [
        (json!({"cpu": "3"}), "OutOfcpu", "cpu, requested: 3000, used: 100, capacity: 2000"),
        (json!({"memory": "1Gi"}), "OutOfmemory", "memory, requested: 1073741824, used: 1048576, capacity: 1073741824"),
        (
            json!({"ephemeral-storage": "11Gi"}),
            "OutOfephemeral-storage",
            "ephemeral-storage, requested: 11811160064, used: 0, capacity: 10737418240",
        ),
        (
            json!({"hugepages-2Mi": "6Mi"}),
            "OutOfhugepages-2Mi",
            "hugepages-2Mi, requested: 6291456, used: 0, capacity: 4194304",
        ),
        (
            json!({"example.com/gpu": "2"}),
            "OutOfexample.com/gpu",
            "example.com/gpu, requested: 2, used: 0, capacity: 1",
        ),
        (json!({"memory": "2Gi", "cpu": "3"}), "OutOfcpu", "cpu, requested: 3000, used: 100, capacity: 2000"),
        (
            json!({"hugepages-2Mi": "6Mi", "memory": "2Gi"}),
            "OutOfmemory",
            "memory, requested: 2147483648, used: 1048576",
        ),
    ] {
        let other = requesting(json!({"cpu": "100m", "memory": "1Mi"}));
        let rejection = admit(&requesting(requests), false, &node, &[&other]).unwrap_err();
        assert_eq!(rejection.reason, reason);
        let start = format!("Node didn't have enough resource: {numbers}");
        assert!(rejection.message.starts_with(&start), "{}, not {start}", rejection.message);
    }
    let huge = admit(&requesting(json!({"hugepages-2Mi": "6Mi"})), false, &node, &[]).unwrap_err();
    assert_eq!(huge.event_reason(), "OutOfhugepages-2Mi");
}

#[test]
fn what_a_node_does_not_have_is_refused_unless_it_is_somebodys_device() {
    assert_eq!(reason(&requesting(json!({"example.com/gpu": "1"})), &[]), None);
    let huge = requesting(json!({"hugepages-1Gi": "1Gi"}));
    assert_eq!(reason(&huge, &[]), Some("OutOfhugepages-1Gi".to_owned()));
}

#[test]
fn a_pod_that_was_resized_counts_with_what_it_was_allocated_and_overhead_counts() {
    let overhead = pod(json!({"overhead": {"cpu": "1900m"}}));
    assert_eq!(reason(&asking("100m"), &[&overhead]), None);
    assert_eq!(reason(&asking("101m"), &[&overhead]), Some("OutOfcpu".to_owned()));
    let init = json!({"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]});
    assert_eq!(reason(&pod(init), &[&asking("1m")]), Some("OutOfcpu".to_owned()), "while it starts");
}

#[test]
fn checks_come_in_kubelets_order() {
    let mut all = json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}],
        "appArmorProfile": {"type": "RuntimeDefault"}}, "os": {"name": "windows"}, "nodeSelector": {"zone": "b"},
        "nodeName": "n2", "containers": [{"name": "c", "resources": {"requests": {"cpu": "9"}}}]});
    let mut next = |wanted: &str, remove: &mut dyn FnMut(&mut Value)| {
        assert_eq!(reason(&pod(all.clone()), &[]).as_deref(), Some(wanted));
        remove(&mut all);
    };
    next("SysctlForbidden", &mut |spec| spec["securityContext"]["sysctls"] = json!([]));
    next("PodOSNotSupported", &mut |spec| spec["os"] = json!(null));
    next("OutOfcpu", &mut |spec| spec["containers"] = json!([{"name": "c"}]));
    next("NodeAffinity", &mut |spec| spec["nodeSelector"] = json!({}));
    next("NodeName", &mut |spec| spec["nodeName"] = json!("n1"));
    next("AppArmor", &mut |spec| spec["securityContext"] = json!({}));
    assert_eq!(reason(&pod(all), &[]), None);
}

#[test]
fn selector_and_affinity_must_match_the_labels() {
    let affinity = |terms: Value| {
        pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": terms}}}}))
    };
    let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let no = Some("NodeAffinity".to_owned());
    assert_eq!(reason(&pod(json!({"nodeSelector": {"zone": "a"}})), &[]), None);
    assert_eq!(reason(&pod(json!({"nodeSelector": {"zone": "b"}})), &[]), no);
    for (operator, values, fits) in [
        ("In", json!(["a", "b"]), true),
        ("In", json!(["b"]), false),
        ("NotIn", json!(["b"]), true),
        ("Exists", json!([]), true),
        ("DoesNotExist", json!([]), false),
    ] {
        let found = reason(&affinity(json!([expression("zone", operator, values)])), &[]);
        assert_eq!(found.is_none(), fits, "{operator}");
    }
    assert_eq!(reason(&affinity(json!([expression("cores", "Gt", json!(["7"]))])), &[]), None);
    assert_eq!(reason(&affinity(json!([expression("cores", "Lt", json!(["8"]))])), &[]), no);
    let alternatives = json!([expression("zone", "In", json!(["b"])), expression("zone", "In", json!(["a"]))]);
    assert_eq!(reason(&affinity(alternatives), &[]), None);
    assert_eq!(reason(&affinity(json!([{}])), &[]), no, "an empty term matches nothing");
    let field = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]);
    assert_eq!(reason(&affinity(field), &[]), None);
}

#[test]
fn a_host_port_is_taken_per_address_and_protocol() {
    let with = |ip: &str, protocol: &str| {
        pod(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol}]}]}))
    };
    let taken = Some("NodePorts".to_owned());
    assert_eq!(reason(&with("", "TCP"), &[&with("", "TCP")]), taken);
    assert_eq!(reason(&with("", "TCP"), &[&with("", "UDP")]), None);
    assert_eq!(reason(&with("127.0.0.1", "TCP"), &[&with("", "TCP")]), taken);
    assert_eq!(reason(&with("127.0.0.1", "TCP"), &[&with("10.0.0.1", "TCP")]), None);
}

#[test]
fn only_safe_and_allowed_sysctls_pass() {
    let with = |name: &str, host_network: bool| {
        pod(json!({"hostNetwork": host_network, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
    };
    let forbidden = Some("SysctlForbidden".to_owned());
    assert_eq!(reason(&with("net.ipv4.tcp_syncookies", false), &[]), None);
    assert_eq!(reason(&with("net/ipv4/tcp_syncookies", false), &[]), None);
    assert_eq!(reason(&with("net.ipv4.tcp_syncookies", true), &[]), forbidden);
    assert_eq!(reason(&with("kernel.msgmax", false), &[]), forbidden);
    let node = Node { allowed_unsafe_sysctls: vec!["kernel.msg*".into()], ..node() };
    assert_eq!(admit(&with("kernel.msgmax", false), false, &node, &[]), Ok(()));
    let rejection = admit(&with("kernel.shmmax", false), false, &node, &[]).unwrap_err();
    assert_eq!(rejection.message, "forbidden sysctl: \"kernel.shmmax\" not allowlisted");
}

#[test]
fn another_operating_system_is_refused() {
    assert_eq!(reason(&pod(json!({"os": {"name": "windows"}})), &[]), Some("PodOSNotSupported".into()));
    let mut labelled = pod(json!({}));
    labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
    assert_eq!(reason(&labelled, &[]), Some("PodOSSelectorNodeLabelDoesNotMatch".into()));
    let selector = json!({"nodeSelector": {"kubernetes.io/os": "windows"}});
    assert_eq!(reason(&pod(selector), &[]), Some("NodeAffinity".into()), "as any selector");
}

#[test]
fn a_taint_that_evicts_keeps_pods_out_unless_they_tolerate_it_or_are_static() {
    let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoExecute".into(), ..Taint::default() };
    let node = Node { taints: vec![taint], ..node() };
    let plain = pod(json!({}));
    assert_eq!(admit(&plain, false, &node, &[]).unwrap_err().reason, "TaintToleration");
    assert_eq!(admit(&plain, true, &node, &[]), Ok(()));
    for toleration in [json!({"operator": "Exists"}), json!({"key": "k", "value": "v", "effect": "NoExecute"})] {
        assert_eq!(admit(&pod(json!({"tolerations": [toleration]})), false, &node, &[]), Ok(()));
    }
    let other = json!({"tolerations": [{"key": "k", "value": "w"}]});
    assert!(admit(&pod(other), false, &node, &[]).is_err());
}

#[test]
fn apparmor_is_refused_where_the_kernel_does_not_enforce_it() {
    let with = |kind: &str| pod(json!({"securityContext": {"appArmorProfile": {"type": kind}}}));
    let mut annotated = pod(json!({}));
    let key = "container.apparmor.security.beta.kubernetes.io/c".to_owned();
    annotated.metadata.annotations = Some([(key, "localhost/mine".to_owned())].into());
    for needs in [with("RuntimeDefault"), with("Localhost"), with(""), annotated] {
        let rejection = admit(&needs, false, &node(), &[]).unwrap_err();
        assert_eq!((rejection.reason.as_str(), rejection.event_reason()), ("AppArmor", "AppArmor"));
        assert_eq!(rejection.message, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        let enforcing = Node { has_apparmor: true, ..node() };
        assert_eq!(admit(&needs, false, &enforcing, &[]), Ok(()));
    }
    assert_eq!(admit(&with("Unconfined"), false, &node(), &[]), Ok(()));
}

#[test]
fn strict_groups_are_refused_where_the_runtime_ignores_them() {
    let with = |policy: &str| pod(json!({"securityContext": {"supplementalGroupsPolicy": policy}}));
    let on = |strict_groups| Node { strict_groups, ..node() };
    let rejection = admit(&with("Strict"), false, &on(Some(false)), &[]).unwrap_err();
    assert_eq!(rejection.reason, "SupplementalGroupsPolicyNotSupported");
    assert_eq!(rejection.message, "SupplementalGroupsPolicy=Strict is not supported in this node");
    for (policy, strict) in [("Strict", Some(true)), ("Strict", None), ("Merge", Some(false))] {
        assert_eq!(admit(&with(policy), false, &on(strict), &[]), Ok(()), "{policy} {strict:?}");
    }
}
