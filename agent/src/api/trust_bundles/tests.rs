use super::*;
use kube::client::Body;
use serde_json::{Value, json};

/// A server that answers discovery, and counts what it was asked.
fn client(resources: fn(&str) -> Option<Value>) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().path().to_owned();
        let found = resources(&path);
        lock(&log).push(path);
        async move {
            let (code, body) = match found {
                Some(body) => (200, body),
                None => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404}),
                ),
            };
            let body = Body::from(body.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
        }
    });
    (kube::Client::new(service, "default"), asked)
}

fn group(version: &str, plural: &str) -> Value {
    json!({"kind": "APIResourceList", "groupVersion": format!("{GROUP}/{version}"), "resources": [
        {"name": plural, "singularName": "", "namespaced": false, "kind": "K", "verbs": ["list", "watch"]}]})
}

fn named(name: &str) -> TrustBundleRef {
    TrustBundleRef::Name(name.to_owned())
}

fn bundle(name: &str, signer: Option<&str>, pem: &str) -> Bundle {
    serde_json::from_value(json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle",
        "metadata": {"name": name, "labels": {"of": name}, "resourceVersion": "1"},
        "spec": {"signerName": signer, "trustBundle": pem},
    }))
    .unwrap()
}

#[tokio::test]
async fn nothing_is_asked_before_a_pod_uses_one_and_a_server_without_them_is_named() {
    // The group is there, the resource is not: as in releases before 1.37.
    let (client, asked) = client(|path| path.ends_with("/v1").then(|| group("v1", "certificatesigningrequests")));
    let (changed, _wakes) = mpsc::unbounded_channel();
    let bundles = TrustBundles::new(client, changed);
    let pod = PodUid::new("p");
    bundles.set_user(&pod, BTreeSet::new());
    assert!(bundles.read(&named("b")).await.is_err(), "who has not said so uses none");
    assert!(lock(&asked).is_empty());

    bundles.set_user(&pod, BTreeSet::from([named("b")]));
    let error = bundles.read(&named("b")).await.unwrap_err().to_string();
    assert!(error.contains("serves no clustertrustbundles.certificates.k8s.io"), "{error}");
    let paths: Vec<String> = VERSIONS.iter().map(|version| format!("/apis/{GROUP}/{version}")).collect();
    assert_eq!(lock(&asked)[..3], paths);

    bundles.set_user(&pod, BTreeSet::new());
    assert!(lock(&bundles.shared.state).run.is_none(), "with its last user the watch ends");
}

#[tokio::test]
async fn the_newest_version_that_is_served_is_watched() {
    for (version, resources) in [
        ("v1", (|path| path.ends_with("/v1").then(|| group("v1", PLURAL))) as fn(&str) -> Option<Value>),
        ("v1beta1", |path| path.ends_with("/v1beta1").then(|| group("v1beta1", PLURAL))),
    ] {
        let (client, _) = client(resources);
        let resource = served(&client).await.unwrap();
        assert_eq!((resource.api_version.as_str(), resource.plural.as_str()), (&*format!("{GROUP}/{version}"), PLURAL));
    }
}

struct Fixture {
    sink: BundleSink,
    wakes: mpsc::UnboundedReceiver<PodUid>,
}

impl Fixture {
    /// Pods by the reference that each has.
    fn new(users: &[(&str, TrustBundleRef)]) -> Self {
        let (changed, wakes) = mpsc::unbounded_channel();
        let users = users.iter().map(|(pod, wanted)| (PodUid::new(pod), BTreeSet::from([wanted.clone()]))).collect();
        let state = Mutex::new(State { users, run: None });
        let shared = Arc::new(Shared { client: client(|_| None).0, state, changed });
        Self { sink: BundleSink { shared, known: Arc::new(Known::new()), listed: BTreeSet::new() }, wakes }
    }

    fn list(&mut self, bundles: Vec<Bundle>) {
        self.sink.handle(WatchEvent::Restart);
        for bundle in bundles {
            self.sink.handle(WatchEvent::InitApply(bundle));
        }
        self.sink.handle(WatchEvent::InitDone);
    }

    fn wakes(&mut self) -> Vec<String> {
        let mut woken: Vec<String> =
            std::iter::from_fn(|| self.wakes.try_recv().ok()).map(|uid| uid.to_string()).collect();
        woken.sort();
        woken
    }
}

#[tokio::test]
async fn a_change_wakes_exactly_the_pods_that_use_the_bundle() {
    let signer = TrustBundleRef::Signer("s/x".to_owned());
    let mut fixture = Fixture::new(&[("by-name", named("a")), ("by-signer", signer), ("other", named("z"))]);
    fixture.list(vec![bundle("a", None, "1"), bundle("b", Some("s/x"), "1")]);
    assert!(fixture.wakes().is_empty(), "nobody has read before");
    fixture.sink.handle(WatchEvent::Apply(bundle("a", None, "2")));
    assert_eq!(fixture.wakes(), ["by-name"]);
    fixture.sink.handle(WatchEvent::Apply(bundle("c", Some("s/x"), "1")));
    assert_eq!(fixture.wakes(), ["by-signer"]);
    fixture.sink.handle(WatchEvent::Delete(bundle("b", Some("s/x"), "1")));
    assert_eq!(fixture.wakes(), ["by-signer"]);
    fixture.list(vec![bundle("a", None, "2"), bundle("c", Some("s/x"), "1")]);
    assert!(fixture.wakes().is_empty(), "a relist that shows nothing new");
    fixture.list(vec![bundle("c", Some("s/x"), "1")]);
    assert_eq!(fixture.wakes(), ["by-name"], "what a relist does not show is gone");
}

#[tokio::test]
async fn pods_that_gave_up_waiting_hear_of_the_first_list() {
    let mut fixture = Fixture::new(&[("p", named("a"))]);
    fixture.sink.known.missed.store(true, Ordering::SeqCst);
    fixture.list(Vec::new());
    assert_eq!(fixture.wakes(), ["p"]);
}
