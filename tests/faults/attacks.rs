//! Attacks of which only a runtime is the witness: what a container is told at each of its starts, and what is kept of words
//! that others choose. The classes are those of `tests/ATTACKS.md`.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::fake_cri::{Fault, Rpc};
use harness::random::Random;
use k8s_openapi::api::core::v1::PodStatus;
use nodelet_proto::cri;
use serde_json::{Value, json};
use tonic::Code;

use crate::rig::{LONG, Rig};

/// Pods of one run. Each has an image of its own, whose user is another one.
const PODS: usize = 24;

fn image(number: usize) -> String {
    format!("localhost/image-{number}:1")
}

/// The user that an image names: none, root, a number, a name.
fn user_of_image(number: usize) -> (Option<i64>, &'static str) {
    [(None, ""), (Some(0), ""), (Some(1000), ""), (None, "nobody")][number % 4]
}

fn one_of<T: Clone>(random: &mut Random, values: &[T]) -> T {
    values[random.below(values.len() as u64) as usize].clone()
}

/// A pod whose security contexts are any.
fn make_spec(random: &mut Random, number: usize) -> Value {
    let flag = |random: &mut Random| one_of(random, &[Value::Null, json!(true), json!(false)]);
    // The first eight leave the user to the image; of these, four accept whoever that is and four accept no root.
    let id = |random: &mut Random| match number {
        0..8 => Value::Null,
        _ => one_of(random, &[Value::Null, Value::Null, json!(0), json!(77)]),
    };
    let non_root = |random: &mut Random| match number {
        0..4 => Value::Null,
        4..8 => json!(true),
        _ => flag(random),
    };
    let seccomp = |random: &mut Random| {
        let local = json!({ "type": "Localhost", "localhostProfile": "a.json" });
        one_of(random, &[Value::Null, json!({ "type": "RuntimeDefault" }), json!({ "type": "Unconfined" }), local])
    };
    let of_pod = json!({ "runAsUser": id(random), "runAsGroup": id(random), "runAsNonRoot": non_root(random),
        "fsGroup": id(random), "supplementalGroups": one_of(random, &[Value::Null, json!([5, 6])]),
        "seccompProfile": seccomp(random) });
    let own = json!({ "runAsUser": id(random), "runAsGroup": id(random), "runAsNonRoot": non_root(random),
        "privileged": flag(random), "allowPrivilegeEscalation": flag(random),
        "readOnlyRootFilesystem": flag(random), "seccompProfile": seccomp(random),
        "capabilities": one_of(random, &[Value::Null, json!({ "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] })]),
        "procMount": one_of(random, &[Value::Null, json!("Default")]) });
    let container = json!({ "name": "app", "image": image(number), "securityContext": own,
        "imagePullPolicy": "IfNotPresent", "workingDir": one_of(random, &[Value::Null, json!("/srv")]),
        "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "$(A)2" }], "args": ["$(B)"],
        "tty": flag(random) });
    json!({ "securityContext": of_pod, "containers": [container], "terminationGracePeriodSeconds": 1,
        "hostPID": flag(random), "hostIPC": flag(random), "shareProcessNamespace": false })
}

/// What a start is told, without what is its own: its number, its names, and paths with both in them.
fn told(config: &cri::ContainerConfig) -> cri::ContainerConfig {
    let mounts = config.mounts.iter().map(|mount| cri::Mount { host_path: String::new(), ..mount.clone() });
    cri::ContainerConfig {
        metadata: None,
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        mounts: mounts.collect(),
        ..config.clone()
    }
}

/// Configurations of a pod's starts, by attempt.
fn starts(rig: &Rig, pod: &str) -> BTreeMap<u32, cri::ContainerConfig> {
    let configs = rig.fake.container_configs().into_iter();
    let of_pod = configs.filter(|c| c.labels.get("io.kubernetes.pod.name").is_some_and(|name| name == pod));
    of_pod.map(|config| (config.metadata.as_ref().map_or(0, |meta| meta.attempt), told(&config))).collect()
}

fn is_refused(status: &PodStatus) -> bool {
    let waiting = status.container_statuses.iter().flatten().filter_map(|c| c.state.as_ref()?.waiting.as_ref());
    waiting.into_iter().any(|waiting| waiting.reason.as_deref() == Some("CreateContainerConfigError"))
}

/// Waits until each pod's start of this number is there or refused; answers what each was told.
async fn all_started(
    rig: &Rig,
    names: &[String],
    attempt: u32,
) -> anyhow::Result<BTreeMap<String, Option<cri::ContainerConfig>>> {
    eventually(LONG, &format!("attempt {attempt} of all"), async || {
        let found = names.iter().map(|name| {
            let start = starts(rig, name).remove(&attempt);
            let status = rig.status(name).with_context(|| format!("{name} has no status"))?;
            ensure!(start.is_some() || is_refused(&status), "{name}: {:?}", status.container_statuses);
            Ok((name.clone(), start))
        });
        found.collect()
    })
    .await
}

/// Class J, CVE-2019-11245: what the first start was told (the image was pulled), a restart is told, and a start from an image
/// that was there already, and one by an agent that has just begun.
#[tokio::test(flavor = "multi_thread")]
async fn every_start_of_a_container_is_told_the_same() {
    let mut rig = Rig::start().await.unwrap();
    let mut random = Random::from_env();
    println!("NODELET_TEST_SEED={}", random.seed());
    let mut names = Vec::new();
    for number in 0..PODS {
        let (uid, name) = user_of_image(number);
        rig.fake.set_image_user(&image(number), uid, name);
        names.push(format!("first-{number}"));
    }
    let specs: Vec<Value> = (0..PODS).map(|number| make_spec(&mut random, number)).collect();
    names.iter().zip(&specs).for_each(|(name, spec)| rig.add_pod(name, spec).unwrap());
    let first = all_started(&rig, &names, 0).await.unwrap();
    let run: Vec<String> = first.iter().filter(|(_, told)| told.is_some()).map(|(name, _)| name.clone()).collect();
    let told = |number: usize| first[&names[number]].as_ref()?.linux.as_ref()?.security_context.clone();
    let users = [0, 1, 2, 3].map(|number| told(number).map(|told| (told.run_as_user, told.run_as_username)));
    let id = |value| Some(cri::Int64Value { value });
    let expected = [(None, ""), (id(0), ""), (id(1000), ""), (None, "nobody")];
    assert_eq!(users, expected.map(|(uid, name)| Some((uid, name.to_owned()))), "the image's user");
    let run_of = [4, 5, 6, 7].map(|number| first[&names[number]].is_some());
    assert_eq!(run_of, [false, false, true, false], "no root, and nobody of whom it is not known");
    for name in &run {
        let running = eventually(LONG, "it to run", async || {
            rig.containers(name).first().cloned().with_context(|| format!("{name} does not run"))
        });
        assert!(rig.fake.exit(&running.await.unwrap(), 1));
    }
    let again = all_started(&rig, &run, 1).await.unwrap();
    rig.restart_agent().unwrap();
    let cached: Vec<String> = (0..PODS).map(|number| format!("cached-{number}")).collect();
    cached.iter().zip(&specs).for_each(|(name, spec)| rig.add_pod(name, spec).unwrap());
    let others = all_started(&rig, &cached, 0).await.unwrap();
    for (number, name) in names.iter().enumerate() {
        let context = format!("{name}: {:#}", specs[number]);
        assert_eq!(first[name], others[&cached[number]], "image that was there, {context}");
        if let Some(again) = again.get(name) {
            assert_eq!(first[name], *again, "restart, {context}");
        }
    }
}

/// Class D: an error carries what a registry says, and a registry may be anybody's. Errors beyond 16 KiB do not pass gRPC.
#[tokio::test]
async fn words_of_a_registry_without_end_are_cut_in_status_events_and_journal() {
    let mut rig = Rig::start().await.unwrap();
    rig.fake.inject(Rpc::PullImage, Fault::fail(Code::Unknown, &"denied-".repeat(2000)));
    rig.add("web").unwrap();
    let status = eventually(LONG, "the failure to be told", async || {
        let status = rig.status("web").context("no status")?;
        let waiting = status.container_statuses.iter().flatten().filter_map(|c| c.state.as_ref()?.waiting.clone());
        let message = waiting.filter_map(|waiting| waiting.message).find(|message| message.contains("denied"));
        message.with_context(|| format!("{status:?}"))
    })
    .await
    .unwrap();
    assert!((5000..10_000).contains(&status.len()), "{} bytes in the status", status.len());
    assert!(rig.events_of("web").iter().all(|message| message.len() < 10_000));
    let journal = rig.journal_bytes();
    assert!((1..50_000).contains(&journal), "{journal} bytes in the journal");
}
