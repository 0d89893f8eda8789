//! The puller of images against the fake CRI and a registry that asks for credentials.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use harness::fake_cri::{FakeCri, Fault, Gate, Options, Rpc};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use nodelet::cri::Runtime;
use nodelet::event::EventType;
use nodelet::pod::action::Failure;
use nodelet::pod::images::records::Policy;
use nodelet::pod::images::{Image, Images, PullSecrets, Request, Settings};
use tonic::Code;

const PRIVATE: &str = "reg.io/team/app:1";

struct Rig {
    dir: tempfile::TempDir,
    cri: FakeCri,
    images: Arc<Images>,
}

type Told = Vec<(&'static str, String)>;

fn settings(root: &Path) -> Settings {
    Settings {
        parallel: 1,
        rate: (0, 1),
        policy: Policy::default(),
        root_dir: root.to_owned(),
        home: root.to_owned(),
        providers: (root.to_owned(), Vec::new()),
    }
}

fn make_images(cri: &FakeCri, settings: Settings) -> Arc<Images> {
    let socket = cri.path().to_path_buf();
    Arc::new(Images::new(Runtime::new(socket.clone(), socket, Duration::from_secs(5)), settings).expect("records"))
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let user = |name: &str| (PRIVATE.to_owned(), name.to_owned(), "good".to_owned());
        let options = Options { private_images: vec![user("ann"), user("bob")], ..Options::default() };
        let cri = FakeCri::start_with(dir.path().join("cri.sock"), options).await.expect("the fake starts");
        let images = make_images(&cri, settings(dir.path()));
        Self { dir, cri, images }
    }

    /// The agent is killed and comes back.
    fn restart(&mut self) {
        self.images = make_images(&self.cri, settings(self.dir.path()));
    }

    async fn ensure(&self, image: &str, policy: &str, secrets: PullSecrets) -> (Result<Image, Failure>, Told) {
        ensure(&self.images, image, policy, secrets).await
    }

    fn pulls(&self) -> Vec<String> {
        let calls = self.cri.calls().into_iter().filter(|call| call.rpc == Rpc::PullImage);
        calls.map(|call| call.about.get(1).cloned().unwrap_or_default()).collect()
    }
}

async fn ensure(images: &Images, image: &str, policy: &str, secrets: PullSecrets) -> (Result<Image, Failure>, Told) {
    let told = Mutex::new(Told::new());
    let tell = |_: EventType, reason, text| told.lock().expect("no test panics in it").push((reason, text));
    let secrets = || {
        let secrets = secrets.clone();
        async move { secrets }.boxed()
    };
    let pod = Pod::default();
    let request = Request { pod: &pod, image, policy, secrets: &secrets, tell: &tell };
    let result = images.ensure(&request).await.map(|(image, _)| image);
    let told = told.lock().expect("no test panics in it").clone();
    (result, told)
}

fn make_secrets(namespace: &str, users: &[(&str, &str)]) -> PullSecrets {
    let found = users.iter().map(|(user, password)| {
        let mut secret = Secret::default();
        secret.metadata.namespace = Some(namespace.into());
        secret.metadata.name = Some(format!("pull-{user}"));
        secret.metadata.uid = Some(format!("{namespace}-{user}"));
        secret.type_ = Some("kubernetes.io/dockerconfigjson".into());
        let auths = serde_json::json!({"auths": {"reg.io": {"username": user, "password": password}}});
        secret.data = Some(BTreeMap::from([(".dockerconfigjson".into(), ByteString(auths.to_string().into_bytes()))]));
        Arc::new(secret)
    });
    PullSecrets { found: found.collect(), missing: Vec::new() }
}

fn reasons(told: &Told) -> Vec<&'static str> {
    told.iter().map(|(reason, _)| *reason).collect()
}

#[tokio::test]
async fn policies_decide_whether_the_registry_is_asked() {
    let rig = Rig::new().await;
    let nothing = PullSecrets::default;
    let (never, told) = rig.ensure("reg.io/free", "Never", nothing()).await;
    assert_eq!(never.unwrap_err().reason, "ErrImageNeverPull");
    let text = "Container image \"reg.io/free\" is not present with pull policy of Never";
    assert_eq!(told, [("ErrImageNeverPull", text.to_owned())]);
    let (pulled, told) = rig.ensure("reg.io/free", "IfNotPresent", nothing()).await;
    assert!(pulled.is_ok());
    assert_eq!(reasons(&told), ["Pulling", "Pulled"]);
    assert_eq!(told[0].1, "Pulling image \"reg.io/free\"");
    let (head, tail) = told[1].1.split_once(" in ").expect("a duration");
    assert_eq!(head, "Successfully pulled image \"reg.io/free\"");
    assert!(tail.ends_with(" including waiting). Image size: 1048576 bytes."), "{tail}");
    for policy in ["IfNotPresent", "Never"] {
        let (found, told) = rig.ensure("reg.io/free", policy, nothing()).await;
        assert_eq!(found, pulled);
        let text = "Container image \"reg.io/free\" already present on machine and can be accessed by the pod";
        assert_eq!(told, [("Pulled", text.to_owned())]);
    }
    assert_eq!(rig.pulls().len(), 1);
    rig.ensure("reg.io/free", "Always", nothing()).await.0.unwrap();
    assert_eq!(rig.pulls().len(), 2);
    assert!(rig.cri.calls().iter().any(|call| call.about.first().is_some_and(|name| name == "reg.io/free:latest")));
}

#[tokio::test]
async fn a_name_that_is_none_does_not_reach_the_runtime() {
    let rig = Rig::new().await;
    let (result, told) = rig.ensure("Not An Image", "Always", PullSecrets::default()).await;
    let text = "Failed to apply default image tag \"Not An Image\": couldn't parse image name \"Not An Image\": invalid \
                reference format: repository name (library/Not An Image) must be lowercase";
    assert_eq!(told, [("InspectFailed", text.to_owned())]);
    assert_eq!(result.unwrap_err().reason, "InvalidImageName");
    assert!(rig.cri.calls().is_empty());
}

#[tokio::test]
async fn a_runtime_that_cannot_say_whether_the_image_is_there_is_not_asked_to_pull_it() {
    let rig = Rig::new().await;
    rig.cri.inject(Rpc::ImageStatus, Fault::fail(Code::Unavailable, "away"));
    let (result, told) = rig.ensure("reg.io/free:1", "IfNotPresent", PullSecrets::default()).await;
    let text = "Failed to inspect image \"reg.io/free:1\": rpc error: code = Unavailable desc = away";
    assert_eq!(told, [("InspectFailed", text.to_owned())]);
    assert_eq!(result.unwrap_err().reason, "ImageInspectError");
    assert_eq!(rig.pulls().len(), 0);
}

#[tokio::test]
async fn credentials_are_tried_in_order_until_one_is_good() {
    let rig = Rig::new().await;
    let node = serde_json::json!({"auths": {"reg.io": {"username": "node", "password": "bad"}}});
    std::fs::write(rig.dir.path().join("config.json"), node.to_string()).unwrap();
    let secrets = make_secrets("a", &[("eve", "bad"), ("ann", "good"), ("bob", "good")]);
    rig.ensure(PRIVATE, "IfNotPresent", secrets).await.0.unwrap();
    assert_eq!(rig.pulls(), ["eve", "ann"]);
    rig.cri.forget_calls();
    let (result, told) = rig.ensure(PRIVATE, "Always", make_secrets("a", &[("eve", "bad")])).await;
    assert_eq!(rig.pulls(), ["eve", "node"], "the pod's own come before the node's");
    let failed = result.unwrap_err();
    assert_eq!(failed.reason, "ErrImagePull");
    assert!(failed.message.starts_with("failed to pull and unpack image"), "one text for two equal errors");
    assert_eq!(told.last().unwrap().1, format!("Failed to pull image \"{PRIVATE}\": {}", failed.message));
}

#[tokio::test]
async fn a_missing_secret_is_told_only_when_the_pull_fails() {
    let rig = Rig::new().await;
    let missing = PullSecrets { found: Vec::new(), missing: vec!["a".into(), "b".into()] };
    let (_, told) = rig.ensure("reg.io/free", "Always", missing.clone()).await;
    assert_eq!(reasons(&told), ["Pulling", "Pulled"]);
    let (_, told) = rig.ensure(PRIVATE, "Always", missing).await;
    assert_eq!(reasons(&told), ["Pulling", "Failed", "FailedToRetrieveImagePullSecret"]);
    let text = "Unable to retrieve some image pull secrets (a, b); attempting to pull the image may not succeed.";
    assert_eq!(told[2].1, text);
}

/// The reproduction of kubernetes#137024, and of what KEP-2535 is for: class O of the known attacks.
#[tokio::test]
async fn a_private_image_of_one_namespace_is_not_the_other_ones() {
    let mut rig = Rig::new().await;
    rig.ensure(PRIVATE, "IfNotPresent", make_secrets("a", &[("ann", "good")])).await.0.unwrap();
    for attempt in ["before", "after"] {
        let nobody = PullSecrets::default();
        let (theft, told) = rig.ensure(PRIVATE, "IfNotPresent", nobody.clone()).await;
        assert_eq!(theft.unwrap_err().reason, "ErrImagePull", "{attempt} a restart");
        assert_eq!(reasons(&told), ["Pulling", "Failed"]);
        let (theft, _) = rig.ensure(PRIVATE, "Never", nobody).await;
        assert_eq!(theft.unwrap_err().reason, "ErrImageNeverPull", "not even that it is there is told");
        let (wrong, _) = rig.ensure(PRIVATE, "IfNotPresent", make_secrets("b", &[("ann", "bad")])).await;
        assert_eq!(wrong.unwrap_err().reason, "ErrImagePull");
        rig.restart();
    }
    rig.cri.forget_calls();
    for (namespace, user) in [("a", "ann"), ("b", "ann")] {
        let (own, told) = rig.ensure(PRIVATE, "IfNotPresent", make_secrets(namespace, &[(user, "good")])).await;
        assert!(own.is_ok() && reasons(&told) == ["Pulled"], "{namespace}: the same password is as good as the Secret");
    }
    assert_eq!(rig.pulls(), [""; 0], "who has the right needs no registry");
    rig.ensure(PRIVATE, "IfNotPresent", make_secrets("c", &[("bob", "good")])).await.0.unwrap();
    assert_eq!(rig.pulls(), ["bob"], "another right is proved once");
    rig.ensure(PRIVATE, "Never", make_secrets("c", &[("bob", "good")])).await.0.unwrap();
}

#[tokio::test]
async fn a_preloaded_image_is_everybodys_until_the_policy_says_otherwise() {
    let mut rig = Rig::new().await;
    rig.cri.add_image(PRIVATE);
    rig.ensure(PRIVATE, "Never", PullSecrets::default()).await.0.unwrap();
    let strict = Settings { policy: Policy::AlwaysVerify, ..settings(rig.dir.path()) };
    rig.images = make_images(&rig.cri, strict);
    let (result, _) = rig.ensure(PRIVATE, "Never", PullSecrets::default()).await;
    assert_eq!(result.unwrap_err().reason, "ErrImageNeverPull");
}

#[tokio::test]
async fn an_image_whose_pull_outlived_a_killed_agent_has_to_be_proved_a_right_to() {
    let mut rig = Rig::new().await;
    let pulling = rig.dir.path().join("image_manager/pulling");
    let gate = Gate::new();
    rig.cri.inject(Rpc::PullImage, Fault::hang(&gate).once());
    let images = rig.images.clone();
    let pull =
        tokio::spawn(async move { ensure(&images, PRIVATE, "Always", make_secrets("a", &[("ann", "good")])).await.0 });
    gate.reached_by(1).await;
    // What the disk holds at the moment of a kill.
    let files: Vec<_> = std::fs::read_dir(&pulling).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let bytes = std::fs::read(&files[0]).unwrap();
    pull.abort();
    let _ = pull.await;
    assert_eq!(std::fs::read_dir(&pulling).unwrap().count(), 0, "a cancelled pull leaves nothing");
    std::fs::write(&files[0], bytes).unwrap();
    rig.cri.add_image(PRIVATE);
    rig.restart();
    rig.images.recover().await;
    assert_eq!(std::fs::read_dir(&pulling).unwrap().count(), 0);
    let (theft, _) = rig.ensure(PRIVATE, "IfNotPresent", PullSecrets::default()).await;
    assert_eq!(theft.unwrap_err().reason, "ErrImagePull");
    rig.ensure(PRIVATE, "IfNotPresent", make_secrets("a", &[("ann", "good")])).await.0.unwrap();
}

#[tokio::test]
async fn pulls_beyond_the_limit_wait_in_order() {
    let rig = Rig::new().await;
    let gate = Gate::new();
    rig.cri.inject(Rpc::PullImage, Fault::hang(&gate).once());
    let pull = |image: &'static str| {
        let images = rig.images.clone();
        tokio::spawn(async move { ensure(&images, image, "Always", PullSecrets::default()).await.0 })
    };
    let first = pull("reg.io/1");
    gate.reached_by(1).await;
    let others = [pull("reg.io/2"), pull("reg.io/3")];
    // The others are in the queue when they have told the disk that they begin.
    let began = || std::fs::read_dir(rig.dir.path().join("image_manager/pulling")).map_or(0, Iterator::count);
    while began() < 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.cri.count(Rpc::PullImage), 1, "one at a time");
    gate.release();
    assert!(first.await.unwrap().is_ok());
    for other in others {
        assert!(other.await.unwrap().is_ok());
    }
    let calls = rig.cri.calls().into_iter().filter(|call| call.rpc == Rpc::PullImage);
    let order: Vec<String> = calls.filter_map(|call| call.about.first().cloned()).collect();
    assert_eq!(order, ["reg.io/1:latest", "reg.io/2:latest", "reg.io/3:latest"]);
}
