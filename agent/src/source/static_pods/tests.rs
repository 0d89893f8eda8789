use super::identity::{HASH_ANNOTATION, static_pod};
use super::mirror::{Action, Mirror, plan};
use super::*;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd, namespace: kube-system}\nspec:\n  containers: [{name: c, image: 'etcd:3'}]\n";

fn node() -> NodeName {
    NodeName::new("Node-1")
}

fn parse(content: &str) -> Result<Pod, String> {
    static_pod(Path::new("/m/etcd.yaml"), content.as_bytes(), &node(), "2026-01-01T00:00:00Z")
}

#[test]
fn a_static_pod_has_kubelets_marks() {
    let pod = parse(POD).expect("pod");
    assert_eq!(pod.metadata.name.as_deref(), Some("etcd-node-1"));
    let uid = pod.metadata.uid.clone().expect("uid");
    assert_eq!(uid.len(), 32);
    let annotations = pod.metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations[HASH_ANNOTATION], uid);
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.seen"], "2026-01-01T00:00:00Z");
    let spec = pod.spec.expect("spec");
    assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
    let toleration = &spec.tolerations.expect("tolerations")[0];
    assert_eq!((toleration.operator.as_deref(), toleration.effect.as_deref()), (Some("Exists"), Some("NoExecute")));
    assert_eq!(spec.termination_grace_period_seconds, Some(30), "defaults are applied");
}

#[test]
fn only_content_changes_the_identity() {
    let uid = |content: &str| parse(content).expect("pod").metadata.uid;
    assert_eq!(uid(POD), uid(&format!("# a comment\n{POD}\n")));
    assert_ne!(uid(POD), uid(&POD.replace("etcd:3", "etcd:4")));
}

#[test]
fn references_to_api_objects_are_refused_with_the_way_out() {
    let with = |spec: &str| parse(&POD.replace("spec:\n", &format!("spec:\n  {spec}\n"))).expect_err("refused");
    let cases = [
        ("serviceAccountName: x", "serviceaccounts"),
        ("imagePullSecrets: [{name: x}]", "secrets"),
        ("volumes: [{name: v, configMap: {name: x}}]", "configmaps (via configmap volumes)"),
        ("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]", "persistentvolumeclaims"),
        ("volumes: [{name: v, projected: {sources: [{secret: {name: x}}]}}]", "secrets (via projected volumes)"),
    ];
    for (spec, what) in cases {
        let error = with(spec);
        assert!(error.contains(&format!("static pods may not reference {what}:")), "{error}");
        assert!(error.starts_with("/m/etcd.yaml: "), "{error}");
    }
    assert!(
        parse("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
            .expect_err("kind")
            .contains("found a ConfigMap")
    );
    assert!(parse(&format!("{POD}---\n{POD}")).expect_err("two").contains("several objects"));
}

fn pass(content: &str) -> BTreeMap<PathBuf, FileRead> {
    BTreeMap::from([(PathBuf::from("/m/a.yaml"), FileRead::Content(content.as_bytes().to_vec()))])
}

#[test]
fn a_broken_file_is_said_once_and_its_pod_stays() {
    let mut files = Files::default();
    assert!(files.apply(pass(POD), &node(), "t").is_empty());
    let (before, _) = files.pods();
    let reports = files.apply(pass("kind: Pod\nspec: ["), &node(), "t");
    assert_eq!(reports.len(), 1);
    assert!(reports[0].ends_with("its last good state stays"), "{reports:?}");
    assert!(files.apply(pass("kind: Pod\nspec: ["), &node(), "t").is_empty());
    assert_eq!(diff(&before, &files.pods().0).len(), 0);
    let unreadable = BTreeMap::from([(PathBuf::from("/m/a.yaml"), FileRead::Failed("I/O error".into()))]);
    assert_eq!(files.apply(unreadable, &node(), "t").len(), 1);
    assert_eq!(files.pods().0.len(), 1);
    files.apply(BTreeMap::new(), &node(), "t");
    assert!(matches!(diff(&before, &files.pods().0).as_slice(), [SourceUpdate::Remove(SourceName::Static, _)]));
}

#[test]
fn an_edited_file_stops_the_old_pod_before_the_new_one_starts() {
    let mut files = Files::default();
    files.apply(pass(POD), &node(), "t1");
    let (old, _) = files.pods();
    files.apply(pass(&format!("# comment\n{POD}")), &node(), "t2");
    assert!(diff(&old, &files.pods().0).is_empty(), "a comment is no change");
    files.apply(pass(&POD.replace("etcd:3", "etcd:4")), &node(), "t2");
    let changes = diff(&old, &files.pods().0);
    assert!(
        matches!(changes.as_slice(), [SourceUpdate::Remove(..), SourceUpdate::Upsert(SourceName::Static, _)]),
        "{changes:?}"
    );
}

#[test]
fn of_two_files_with_one_pod_the_first_counts() {
    let mut files = Files::default();
    let mut read = pass(POD);
    read.insert(PathBuf::from("/m/b.yaml"), FileRead::Content(POD.replace("etcd:3", "etcd:4").into_bytes()));
    files.apply(read, &node(), "t");
    let (pods, reports) = files.pods();
    assert_eq!((pods.len(), reports.len()), (1, 1));
    assert!(reports[0].starts_with("/m/b.yaml: pod kube-system/etcd-node-1 is already defined"), "{reports:?}");
}

fn mirrors(hash: &str, deleting: bool) -> BTreeMap<ObjectKey, Mirror> {
    let mirror = Mirror { uid: PodUid::new("m"), hash: hash.to_owned(), deleting };
    BTreeMap::from([(ObjectKey::new("kube-system", "etcd-node-1"), mirror)])
}

#[test]
fn mirrors_follow_static_pods() {
    let mut files = Files::default();
    files.apply(pass(POD), &node(), "t");
    let (pods, _) = files.pods();
    let key = ObjectKey::new("kube-system", "etcd-node-1");
    let uid = pods[&key].metadata.uid.clone().expect("uid");
    let none = BTreeSet::new();
    assert!(matches!(plan(&pods, &BTreeMap::new(), &none).as_slice(), [Action::Create(_)]));
    assert_eq!(plan(&pods, &mirrors(&uid, false), &none), []);
    let delete = [Action::Delete(key.clone(), PodUid::new("m"))];
    assert_eq!(plan(&pods, &mirrors("other", false), &none), delete, "made anew when its deletion is seen");
    assert_eq!(plan(&pods, &mirrors(&uid, true), &none), delete, "a deletion that somebody asked for is completed");
    assert_eq!(plan(&StaticPods::new(), &mirrors(&uid, false), &none), delete, "an orphan goes");
    let stopping = BTreeSet::from([key]);
    assert_eq!(plan(&StaticPods::new(), &mirrors(&uid, false), &stopping), [], "but not while its pod stops");
}

#[tokio::test]
async fn a_file_that_is_written_or_removed_is_seen_without_waiting_for_a_rescan() {
    let dir = tempfile::tempdir().expect("dir");
    let (updates, mut rx) = mpsc::unbounded_channel();
    let (events, _events) = Recorder::new();
    let pods = watch::Sender::new(StaticPods::new());
    let source = StaticSource { path: dir.path().to_owned(), node: node(), updates, pods, events };
    let task = tokio::spawn(run(source));
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.expect("in time").expect("open");
    assert!(matches!(next().await, SourceUpdate::Synced(SourceName::Static, uids) if uids.is_empty()));
    let file = dir.path().join("etcd.yaml");
    std::fs::write(&file, POD).expect("write");
    assert!(matches!(next().await, SourceUpdate::Upsert(SourceName::Static, _)));
    std::fs::remove_file(file).expect("remove");
    assert!(matches!(next().await, SourceUpdate::Remove(SourceName::Static, _)));
    task.abort();
}
