use super::*;

fn config_map(version: &str) -> ConfigMap {
    serde_json::from_value(serde_json::json!({
        "metadata": { "namespace": "d", "name": "c", "resourceVersion": version,
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}" } },
        "data": { "k": version },
    }))
    .expect("config map")
}

struct Fixture {
    sink: ObjectSink<ConfigMap>,
    changed: mpsc::UnboundedReceiver<PodUid>,
}

impl Fixture {
    fn new() -> Self {
        let (tx, changed) = mpsc::unbounded_channel();
        let key = ObjectKey::new("d", "c");
        let watched = Watched {
            users: BTreeSet::from([PodUid::new("p")]),
            known: watch::Sender::new(Known::Unanswered),
            missed: false,
            watch: None,
        };
        let table: Table<ConfigMap> = Arc::new(Mutex::new(HashMap::from([(key.clone(), watched)])));
        Self { sink: ObjectSink { key, table, changed: tx, listed: Known::Absent }, changed }
    }

    fn list(&mut self, object: Option<ConfigMap>) {
        self.sink.handle(WatchEvent::Restart);
        if let Some(object) = object {
            self.sink.handle(WatchEvent::InitApply(object));
        }
        self.sink.handle(WatchEvent::InitDone);
    }

    fn wakes(&mut self) -> usize {
        std::iter::from_fn(|| self.changed.try_recv().ok()).count()
    }

    fn value(&self) -> Option<String> {
        let table = lock(&self.sink.table);
        match &*table[&self.sink.key].known.borrow() {
            Known::Present(object) => {
                assert!(object.metadata.annotations.is_none());
                object.data.as_ref().and_then(|data| data.get("k").cloned())
            }
            Known::Absent | Known::Unanswered => None,
        }
    }
}

#[test]
fn a_relist_that_shows_nothing_new_wakes_nobody() {
    let mut fixture = Fixture::new();
    fixture.list(Some(config_map("1")));
    fixture.list(Some(config_map("1")));
    assert_eq!((fixture.wakes(), fixture.value().as_deref()), (0, Some("1")));
    fixture.list(Some(config_map("2")));
    assert_eq!((fixture.wakes(), fixture.value().as_deref()), (1, Some("2")));
    fixture.list(None);
    assert_eq!((fixture.wakes(), fixture.value()), (1, None));
    fixture.sink.handle(WatchEvent::Apply(config_map("3")));
    assert_eq!((fixture.wakes(), fixture.value().as_deref()), (1, Some("3")));
}

#[test]
fn the_last_known_value_is_served_while_a_list_is_under_way() {
    let mut fixture = Fixture::new();
    fixture.list(Some(config_map("1")));
    fixture.sink.handle(WatchEvent::Restart);
    assert_eq!(fixture.value().as_deref(), Some("1"));
}

#[test]
fn pods_that_gave_up_waiting_hear_of_the_first_answer() {
    let mut fixture = Fixture::new();
    if let Some(watched) = lock(&fixture.sink.table).get_mut(&fixture.sink.key) {
        watched.missed = true;
    }
    fixture.list(None);
    assert_eq!(fixture.wakes(), 1);
}
