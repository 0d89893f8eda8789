use serde_json::{Value, json};

use super::*;

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u1"}})).unwrap()
}

fn wanted() -> ClaimRef {
    ClaimRef {
        volume: "data".to_owned(),
        claim: "c".to_owned(),
        read_only: false,
        is_ephemeral: false,
        is_mounted: true,
        is_device: false,
    }
}

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "k1"}, "spec": {"volumeName": "pv1"},
        "status": {"phase": "Bound"}});
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn volume(change: impl FnOnce(&mut Value)) -> PersistentVolume {
    let mut value = json!({"metadata": {"name": "pv1"}, "spec": {
        "claimRef": {"name": "c", "namespace": "n", "uid": "k1"},
        "accessModes": ["ReadWriteOnce"], "local": {"path": "/mnt/d"}}});
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn labels() -> BTreeMap<String, String> {
    [("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into()
}

fn resolved(wanted: &ClaimRef, pv: &PersistentVolume) -> Result<Claimed, String> {
    resolve(&pod(), wanted, &claim(|_| {}), pv, &labels()).map_err(|failure| failure.to_string())
}

#[test]
fn a_claim_counts_once_it_is_bound_and_not_while_it_goes_away() {
    let ask = |change: fn(&mut Value)| bound(&pod(), &wanted(), &claim(change)).map(str::to_owned);
    assert_eq!(ask(|_| {}), Ok("pv1".to_owned()));
    let error = |problem: &str| Err(format!("error processing PVC n/c: {problem}"));
    assert_eq!(ask(|c| c["status"] = json!({"phase": "Pending"})), error("PVC is not bound"));
    assert_eq!(ask(|c| c["status"] = json!({"phase": "Lost"})), error("PVC is not bound"));
    assert_eq!(ask(|c| c["spec"] = json!({})), error("PVC has empty pvc.Spec.VolumeName"));
    assert_eq!(
        ask(|c| c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        error("PVC is being deleted")
    );
    let protected = ask(|c| {
        c["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        c["metadata"]["finalizers"] = json!([PROTECTION]);
    });
    assert_eq!(protected, Ok("pv1".to_owned()), "pods that run keep a claim that is protected for them");
}

#[test]
fn an_ephemeral_claim_must_be_the_pods_own() {
    let wanted = ClaimRef { is_ephemeral: true, claim: "p-data".to_owned(), ..wanted() };
    let ask = |owner: Value| bound(&pod(), &wanted, &claim(|c| c["metadata"]["ownerReferences"] = owner)).map(drop);
    let owner = |uid: &str, controller: bool| json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": controller}]);
    assert_eq!(ask(owner("u1", true)), Ok(()));
    let refused = Err("PVC n/p-data was not created for pod n/p (pod is not owner)".to_owned());
    assert_eq!(ask(owner("u0", true)), refused, "an earlier pod of the same name");
    assert_eq!(ask(owner("u1", false)), refused);
    assert_eq!(ask(json!([])), refused);
}

#[test]
fn a_volume_must_be_bound_to_this_very_claim() {
    let unbound = resolved(&wanted(), &volume(|v| v["spec"]["claimRef"] = Value::Null)).unwrap_err();
    assert!(
        unbound.contains("failed to process volumes=[data]: error processing PVC n/c: found PV object pv1"),
        "{unbound}"
    );
    let other = resolved(&wanted(), &volume(|v| v["spec"]["claimRef"]["uid"] = json!("k0"))).unwrap_err();
    assert!(other.ends_with("its pv.Spec.ClaimRef.UID k0 does not point to claim.UID k1"), "{other}");
}

#[test]
fn node_affinity_is_checked_by_labels() {
    let terms = |host: &str| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}})
    };
    assert!(resolved(&wanted(), &volume(|v| v["spec"]["nodeAffinity"] = terms("n1"))).is_ok());
    assert_eq!(
        resolved(&wanted(), &volume(|v| v["spec"]["nodeAffinity"] = terms("n2"))).unwrap_err(),
        "MountVolume.NodeAffinity check failed for volume \"pv1\" : no matching NodeSelectorTerms"
    );
}

#[test]
fn the_mode_of_a_volume_must_be_how_containers_use_it() {
    let block = volume(|v| v["spec"]["volumeMode"] = json!("Block"));
    let device = ClaimRef { is_mounted: false, is_device: true, ..wanted() };
    assert_eq!(resolved(&device, &block).unwrap().backing, Backing::LocalDevice { path: "/mnt/d".to_owned() });
    for (wanted, pv, text) in [
        (wanted(), block, "volume data has volumeMode Block, but is specified in volumeMounts"),
        (device, volume(|_| {}), "volume data has volumeMode Filesystem, but is specified in volumeDevices"),
        (wanted(), volume(|v| v["spec"]["volumeMode"] = json!("")), "has unknown volumeMode \"\""),
    ] {
        let error = resolved(&wanted, &pv).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn sources_and_options_come_to_what_the_node_can_do() {
    let ask = |change: fn(&mut Value)| resolved(&wanted(), &volume(change)).map(|claimed| claimed.backing);
    let local = |path: &str, options| Backing::Local { path: path.to_owned(), options };
    assert_eq!(ask(|_| {}), Ok(local("/mnt/d", vec![])));
    assert_eq!(ask(|v| v["spec"]["local"]["path"] = json!("mnt")), Ok(local("/mnt", vec![])));
    let options = ask(|v| v["spec"]["mountOptions"] = json!(["noexec", "ro"]));
    assert_eq!(options, Ok(local("/mnt/d", vec![BindOption::NoExec, BindOption::Ro])));
    let host = |v: &mut Value| {
        v["spec"]["local"] = Value::Null;
        v["spec"]["hostPath"] = json!({"path": "/h", "type": "Directory"});
    };
    assert_eq!(
        resolved(&wanted(), &volume(host)).unwrap().backing,
        Backing::HostPath { path: "/h".to_owned(), kind: "Directory".to_owned() }
    );
    for (change, text) in [
        ((|v| v["spec"]["local"]["path"] = json!("/a/../b")) as fn(&mut Value), "must not contain '..'"),
        (|v| v["spec"]["local"]["path"] = json!(""), "path is empty"),
        (|v| v["spec"]["mountOptions"] = json!(["sync"]), "found \"sync\""),
        (|v| v["metadata"]["name"] = json!(".."), "cannot be a file name"),
        (
            |v| {
                v["spec"]["local"] = Value::Null;
                v["spec"]["nfs"] = json!({"server": "s", "path": "/"});
            },
            "MountVolume.SetUp failed for volume \"pv1\" : no volume plugin matched: nfs",
        ),
        (
            |v| {
                v["spec"]["local"] = Value::Null;
                v["spec"]["hostPath"] = json!({"path": "/h"});
                v["spec"]["mountOptions"] = json!(["ro"]);
            },
            "MountVolume.MountOptionSupport check failed for volume \"pv1\" : Mount options are not supported",
        ),
    ] {
        let error = ask(change).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn read_write_once_pod_counts_only_as_the_only_mode() {
    let ask = |modes: Value| resolved(&wanted(), &volume(|v| v["spec"]["accessModes"] = modes)).unwrap().is_exclusive;
    assert!(ask(json!(["ReadWriteOncePod"])));
    assert!(!ask(json!(["ReadWriteOncePod", "ReadWriteOnce"])));
    assert!(!ask(json!(["ReadWriteOnce"])));
}

#[test]
fn a_record_reads_back_as_it_was() {
    let claimed = resolved(&wanted(), &volume(|v| v["spec"]["mountOptions"] = json!(["nosuid"]))).unwrap();
    let text = serde_json::to_string(&claimed).unwrap();
    assert_eq!(serde_json::from_str::<Claimed>(&text).unwrap(), claimed, "{text}");
}
