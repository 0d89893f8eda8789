use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::ids::{ObjectKey, PodUid};
use crate::objects::{ObjectError, ObjectRef, Objects, TokenAsk};

fn pod(name: &str, image: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels:\n    l: {label}\nspec:\n  containers:\n  - name: \
         main\n    image: {image}\n"
    )
}

fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  key: {value}\n")
}

fn state() -> State {
    State::new(NodeName::new("node-1"))
}

fn scan(files: &[(&str, &str)]) -> Scan {
    let content = |text: &str| FileRead::Content { bytes: text.as_bytes().to_vec(), last_good: None };
    Scan { files: files.iter().map(|(name, text)| ((*name).to_owned(), content(text))).collect() }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap()
}

fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap())
}

fn refused(changes: &Changes) -> Vec<&str> {
    changes.notes.iter().filter_map(|n| if let Note::Refused(text) = n { Some(text.as_str()) } else { None }).collect()
}

#[test]
fn a_changed_spec_is_a_new_pod_and_a_changed_label_is_not() {
    let mut state = state();
    let first = state.apply(scan(&[("a.yaml", &pod("web", "nginx:1", "x"))])).pods.remove(0);
    assert_eq!(first.spec.as_ref().unwrap().node_name.as_deref(), Some("node-1"));

    let labelled = state.apply(scan(&[("a.yaml", &pod("web", "nginx:1", "z"))]));
    assert!(labelled.removed_pods.is_empty());
    assert_eq!(uid(&labelled.pods[0]), uid(&first));

    let changed = state.apply(scan(&[("a.yaml", &pod("web", "nginx:2", "z"))]));
    assert_eq!(changed.removed_pods, [uid(&first)]);
    assert_ne!(uid(&changed.pods[0]), uid(&first));
}

#[test]
fn a_pod_keeps_its_identity_over_files_nodes_names_and_restarts() {
    let mut one = state();
    let a = one.apply(scan(&[("a.yaml", &pod("web", "nginx:1", "x"))])).pods.remove(0);
    let moved = one.apply(scan(&[("b.yaml", &pod("web", "nginx:1", "x"))]));
    assert!(moved.removed_pods.is_empty() && moved.pods.is_empty(), "only its file changed");
    let on_node = pod("web", "nginx:1", "x").replace("spec:\n", "spec:\n  nodeName: elsewhere\n");
    let b = state().apply(scan(&[("c.yaml", &on_node)])).pods.remove(0);
    assert_eq!(uid(&a), uid(&b));
    assert_eq!(uid(&a).as_str().len(), 36);
}

#[test]
fn a_bad_edit_keeps_the_last_good_state_and_is_said_once() {
    let mut state = state();
    let good = pod("web", "nginx:1", "x");
    let uids = {
        state.apply(scan(&[("a.yaml", &good)]));
        state.pod_uids()
    };
    let bad = good.replace("image: nginx:1", "image:");
    let first = state.apply(scan(&[("a.yaml", &bad)]));
    assert!(first.pods.is_empty() && first.removed_pods.is_empty());
    assert_eq!(
        refused(&first),
        ["a.yaml:9: document 1: spec.containers[0].image: is required; its last good state (1 object) stays"]
            .map(|s| s.replace(":9:", ":10:"))
    );
    let second = state.apply(scan(&[("a.yaml", &bad)]));
    assert!(second.notes.is_empty(), "the same content is not reported again");
    assert_eq!(state.problems().len(), 1);
    assert_eq!(state.pod_uids(), uids);
    let fixed = state.apply(scan(&[("a.yaml", &good)]));
    assert!(fixed.pods.is_empty() && state.problems().is_empty());
}

#[test]
fn a_file_that_broke_while_the_agent_was_away_starts_from_its_copy() {
    let good = pod("web", "nginx:1", "x");
    let read = FileRead::Content { bytes: b"kind: [".to_vec(), last_good: Some(good.clone().into_bytes()) };
    let mut restarted = state();
    let changes = restarted.apply(Scan { files: BTreeMap::from([("a.yaml".to_owned(), read)]) });
    assert_eq!(changes.pods.len(), 1);
    assert_eq!(refused(&changes).len(), 1);
    assert!(changes.good_files.is_empty(), "a bad file must not replace its good copy");
}

#[test]
fn of_an_object_in_two_files_the_first_file_wins_and_the_second_takes_over() {
    let mut state = state();
    let (a, b) = (pod("web", "nginx:1", "x"), pod("web", "nginx:2", "x"));
    let both = state.apply(scan(&[("b.yaml", &b), ("a.yaml", &a)]));
    assert_eq!(both.pods.len(), 1);
    assert_eq!(both.pods[0].spec.as_ref().unwrap().containers[0].image.as_deref(), Some("nginx:1"));
    assert_eq!(refused(&both), ["b.yaml: Pod default/web is already defined in a.yaml; this one is not used"]);
    assert!(state.apply(scan(&[("b.yaml", &b), ("a.yaml", &a)])).notes.is_empty());
    let alone = state.apply(scan(&[("b.yaml", &b)]));
    assert_eq!((alone.removed_pods.len(), alone.pods.len()), (1, 1));
}

#[test]
fn a_removed_file_removes_all_its_objects() {
    let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\nspec:\n  ports:\n  - port: 80\n";
    let text = format!("{}---\n{}---\n{service}", pod("web", "nginx:1", "x"), config_map("c", "v"));
    let mut state = state();
    let added = state.apply(scan(&[("all.yaml", &text)]));
    assert_eq!((added.pods.len(), added.services.len(), state.config_maps().len()), (1, 1, 1));
    let removed = state.apply(scan(&[]));
    assert_eq!(removed.removed_pods, [uid(&added.pods[0])]);
    assert!(matches!(removed.services.as_slice(), [WatchEvent::Delete(_)]));
    assert!(state.config_maps().is_empty());
    assert_eq!(removed.gone_files, ["all.yaml"]);
}

proptest::proptest! {
    /// Whatever the order of edits, the told changes lead a listener to exactly what a fresh start would tell.
    #[test]
    fn changes_lead_to_what_a_fresh_start_would_say(
        steps in proptest::collection::vec(proptest::collection::btree_map(0u8..4, (0u8..3, 0u8..3, 0u8..2), 0..4), 1..8)
    ) {
        let text = |(n, image, label): &(u8, u8, u8)| pod(&format!("p{n}"), &format!("i:{image}"), &format!("l{label}"));
        let as_scan = |step: &BTreeMap<u8, (u8, u8, u8)>| Scan {
            files: step.iter().map(|(f, p)| (
                format!("f{f}.yaml"),
                FileRead::Content { bytes: text(p).into_bytes(), last_good: None },
            )).collect(),
        };
        let mut state = state();
        let mut listener: BTreeMap<PodUid, Arc<Pod>> = BTreeMap::new();
        for step in &steps {
            let changes = state.apply(as_scan(step));
            for uid in changes.removed_pods {
                proptest::prop_assert!(listener.remove(&uid).is_some());
            }
            for pod in changes.pods {
                listener.insert(uid(&pod), pod);
            }
        }
        let mut fresh = self::state();
        let expected = fresh.apply(as_scan(steps.last().unwrap())).pods;
        let expected: BTreeMap<_, _> = expected.into_iter().map(|p| (uid(&p), p)).collect();
        proptest::prop_assert_eq!(&listener, &expected);
        proptest::prop_assert_eq!(state.pod_uids(), expected.keys().cloned().collect::<BTreeSet<_>>());
    }
}

/// A running watch over a real directory.
struct Live {
    dir: TempDir,
    copies: TempDir,
    pods: mpsc::Receiver<SourceUpdate>,
    services: mpsc::UnboundedReceiver<ServiceUpdate>,
    changed: mpsc::UnboundedReceiver<PodUid>,
    events: mpsc::Receiver<Event>,
    objects: Arc<AloneObjects>,
    stop: CancellationToken,
}

impl Live {
    fn start(dir: TempDir, copies: TempDir) -> Self {
        let (pods_tx, pods) = mpsc::channel(100);
        let (services_tx, services) = mpsc::unbounded_channel();
        let (changed_tx, changed) = mpsc::unbounded_channel();
        let (recorder, events) = Recorder::new();
        let objects = Arc::new(AloneObjects::new(changed_tx));
        let outputs = Outputs { pods: pods_tx, objects: objects.clone(), services: services_tx, recorder };
        let settings = Settings {
            dir: dir.path().to_owned(),
            last_good: copies.path().join("last-good"),
            node_name: NodeName::new("n"),
        };
        let stop = CancellationToken::new();
        tokio::spawn(ManifestDir::open(settings, outputs).unwrap().run(stop.clone()));
        Self { dir, copies, pods, services, changed, events, objects, stop }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    async fn update(&mut self) -> SourceUpdate {
        tokio::time::timeout(Duration::from_secs(10), self.pods.recv()).await.expect("an update in time").unwrap()
    }

    async fn upserted(&mut self) -> Arc<Pod> {
        match self.update().await {
            SourceUpdate::Upsert(SourceName::Manifests, pod) => pod,
            other => panic!("expected an upsert, got {other:?}"),
        }
    }

    async fn removed(&mut self) -> PodUid {
        match self.update().await {
            SourceUpdate::Remove(SourceName::Manifests, uid) => uid,
            other => panic!("expected a removal, got {other:?}"),
        }
    }

    async fn synced(&mut self) -> BTreeSet<PodUid> {
        loop {
            if let SourceUpdate::Synced(SourceName::Manifests, uids) = self.update().await {
                return uids;
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn temp() -> TempDir {
    TempDir::new().unwrap()
}

fn symlink(target: &str, link: &Path) {
    std::os::unix::fs::symlink(target, link).unwrap();
}

#[tokio::test]
async fn files_written_replaced_and_removed_take_effect() {
    let dir = temp();
    fs::write(dir.path().join("a.yaml"), pod("a", "i:1", "x")).unwrap();
    fs::write(dir.path().join("README.md"), "not a manifest").unwrap();
    let mut live = Live::start(dir, temp());
    assert_eq!(live.synced().await.len(), 1);

    fs::write(live.path("b.yaml"), pod("b", "i:1", "x")).unwrap();
    let b = live.upserted().await;
    assert_eq!(name(&b), "b");

    // As editors save: a new file is moved over the old one.
    fs::write(live.path(".b.yaml.swp"), pod("b", "i:2", "x")).unwrap();
    fs::rename(live.path(".b.yaml.swp"), live.path("b.yaml")).unwrap();
    assert_eq!(live.removed().await, uid(&b));
    let b2 = live.upserted().await;
    assert_ne!(uid(&b2), uid(&b));

    fs::remove_file(live.path("b.yaml")).unwrap();
    assert_eq!(live.removed().await, uid(&b2));
}

#[tokio::test]
async fn a_half_written_file_is_not_applied() {
    use std::io::Write as _;
    let mut live = Live::start(temp(), temp());
    live.synced().await;
    let text = pod("a", "registry/image:1", "x");
    // Cut inside the image: what is there by then is a good pod of another image.
    let (head, tail) = text.split_at(text.find(":1").unwrap());
    let mut file = fs::File::create(live.path("a.yaml")).unwrap();
    file.write_all(head.as_bytes()).unwrap();
    file.sync_all().unwrap();
    // Another file goes through meanwhile, so the watch is known to be at work.
    fs::write(live.path("b.yaml"), pod("b", "i:1", "x")).unwrap();
    assert_eq!(live.upserted().await.metadata.name.as_deref(), Some("b"));
    file.write_all(tail.as_bytes()).unwrap();
    drop(file);
    let a = live.upserted().await;
    assert_eq!(a.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("registry/image:1"));
}

#[tokio::test]
async fn a_file_moved_away_and_back_stops_no_pod() {
    let dir = temp();
    fs::write(dir.path().join("a.yaml"), pod("a", "i:1", "x")).unwrap();
    let mut live = Live::start(dir, temp());
    live.synced().await;
    // vim with `backup`: the old file is moved away, a new one is written.
    fs::rename(live.path("a.yaml"), live.path("a.yaml~")).unwrap();
    fs::write(live.path("a.yaml"), pod("a", "i:1", "z")).unwrap();
    let updated = live.upserted().await;
    assert_eq!(updated.metadata.labels.as_ref().unwrap()["l"], "z");
}

#[tokio::test]
async fn a_config_map_mount_swaps_all_its_files() {
    let dir = temp();
    let write = |generation: &str, image: &str| {
        fs::create_dir(dir.path().join(generation)).unwrap();
        fs::write(dir.path().join(generation).join("a.yaml"), pod("a", image, "x")).unwrap();
    };
    write("..1", "i:1");
    symlink("..1", &dir.path().join("..data"));
    symlink("..data/a.yaml", &dir.path().join("a.yaml"));
    write("..2", "i:2");
    let mut live = Live::start(dir, temp());
    let before = live.synced().await;
    symlink("..2", &live.path("..data_tmp"));
    fs::rename(live.path("..data_tmp"), live.path("..data")).unwrap();
    assert!(before.contains(&live.removed().await));
    let after = live.upserted().await;
    assert_eq!(after.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("i:2"));
}

#[tokio::test]
async fn a_broken_file_is_evented_and_survives_a_restart() {
    let dir = temp();
    fs::write(dir.path().join("a.yaml"), pod("a", "i:1", "x")).unwrap();
    let mut live = Live::start(dir, temp());
    let wanted = live.synced().await;
    fs::write(live.path("a.yaml"), "kind: [\n").unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), live.events.recv()).await.unwrap().unwrap();
    assert_eq!(event.reason, "FailedValidation");
    assert!(event.message.starts_with("a.yaml:"), "{}", event.message);
    assert!(event.message.ends_with("its last good state (1 object) stays"), "{}", event.message);

    live.stop.cancel();
    let dir = std::mem::replace(&mut live.dir, temp());
    let copies = std::mem::replace(&mut live.copies, temp());
    let mut again = Live::start(dir, copies);
    assert_eq!(again.synced().await, wanted);
}

#[tokio::test]
async fn pods_are_woken_by_the_objects_they_use() {
    let dir = temp();
    fs::write(dir.path().join("c.yaml"), format!("{}---\n{}", config_map("c", "one"), config_map("d", "one"))).unwrap();
    let mut live = Live::start(dir, temp());
    let key = ObjectKey::new("default", "c");
    let map = live.objects.config_map(&key).await.unwrap();
    assert_eq!(map.data.as_ref().unwrap()["key"], "one");
    let (user, other) = (PodUid::new("user"), PodUid::new("other"));
    live.objects.register(&user, vec![ObjectRef::ConfigMap(key.clone())]);
    live.objects.register(&other, vec![ObjectRef::ConfigMap(ObjectKey::new("default", "d"))]);
    fs::write(live.path("c.yaml"), format!("{}---\n{}", config_map("c", "two"), config_map("d", "one"))).unwrap();
    let woken = tokio::time::timeout(Duration::from_secs(10), live.changed.recv()).await.unwrap().unwrap();
    assert_eq!(woken, user);
    assert_eq!(live.objects.config_map(&key).await.unwrap().data.as_ref().unwrap()["key"], "two");
    assert!(live.changed.try_recv().is_err(), "a pod whose objects did not change is left alone");
    let missing = live.objects.secret(&key).await.unwrap_err();
    assert_eq!(missing.to_string(), "secret default/c not found");
}

#[tokio::test]
async fn the_first_pass_is_a_complete_list_of_services() {
    let dir = temp();
    let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\nspec:\n  ports:\n  - port: 80\n";
    fs::write(dir.path().join("s.yaml"), service).unwrap();
    let mut live = Live::start(dir, temp());
    let mut kinds = Vec::new();
    while kinds.len() < 5 {
        let update = tokio::time::timeout(Duration::from_secs(10), live.services.recv()).await.unwrap().unwrap();
        kinds.push(match update {
            ServiceUpdate::Slice(WatchEvent::Restart) => "slice restart",
            ServiceUpdate::Slice(WatchEvent::InitDone) => "slice done",
            ServiceUpdate::Service(WatchEvent::Restart) => "service restart",
            ServiceUpdate::Service(WatchEvent::InitApply(_)) => "service",
            ServiceUpdate::Service(WatchEvent::InitDone) => "service done",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(kinds, ["slice restart", "service restart", "service", "slice done", "service done"]);
}

#[tokio::test]
async fn a_token_is_refused_with_the_reason() {
    let (tx, _rx) = mpsc::unbounded_channel();
    let ask = TokenAsk {
        service_account: ObjectKey::new("default", "default"),
        pod_name: "p".to_owned(),
        pod_uid: PodUid::new("u"),
        audience: String::new(),
        expiration_seconds: 3600,
    };
    match AloneObjects::new(tx).token(&ask).await {
        Err(ObjectError::Unavailable { reason, .. }) => assert!(reason.contains("runs alone"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("there is nobody to issue a token"),
    }
}

#[tokio::test]
async fn a_missing_directory_is_said_at_start() {
    let (pods, _p) = mpsc::channel(1);
    let (services, _s) = mpsc::unbounded_channel();
    let (changed, _c) = mpsc::unbounded_channel();
    let outputs =
        Outputs { pods, objects: Arc::new(AloneObjects::new(changed)), services, recorder: Recorder::new().0 };
    let missing = temp().path().join("missing");
    let settings = Settings { dir: missing.clone(), last_good: missing.clone(), node_name: NodeName::new("n") };
    match ManifestDir::open(settings, outputs) {
        Err(error) => assert!(error.to_string().contains("No such file or directory"), "{error}"),
        Ok(_) => panic!("{} does not exist", missing.display()),
    }
}

#[tokio::test]
async fn a_directory_that_vanishes_stops_no_pod() {
    let dir = temp();
    fs::write(dir.path().join("a.yaml"), pod("a", "i:1", "x")).unwrap();
    let mut live = Live::start(dir, temp());
    live.synced().await;
    let away = live.dir.path().with_extension("away");
    fs::rename(live.dir.path(), &away).unwrap();
    // Nothing may come while it is away; the watch looks for it again after REOPEN.
    assert!(tokio::time::timeout(Duration::from_millis(500), live.pods.recv()).await.is_err());
    fs::write(away.join("b.yaml"), pod("b", "i:1", "x")).unwrap();
    fs::rename(&away, live.dir.path()).unwrap();
    assert_eq!(live.upserted().await.metadata.name.as_deref(), Some("b"));
}
