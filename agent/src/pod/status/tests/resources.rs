//! Resources and resizes in a status.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::cri::ContainerLimits;
use crate::pod::allocation::ResourceInfo;
use crate::pod::resize::News;

fn list(milli: &str, memory: &str) -> Option<BTreeMap<String, Quantity>> {
    let entry = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    Some(BTreeMap::from([entry("cpu", milli), entry("memory", memory)]))
}

/// A running container that was allocated 500m and 64Mi, with limits of the double.
fn sized(has: Option<ContainerLimits>) -> Scene {
    let mut scene = Scene::app("Always").running("app", true, true);
    let (requests, limits) = (list("500m", "64Mi"), list("1", "128Mi"));
    let resources = ResourceRequirements { requests, limits, claims: None };
    scene.pod.spec.as_mut().unwrap().containers[0].resources = Some(resources);
    scene.runtime.containers[0].resources = has;
    scene
}

#[test]
fn resources_are_what_the_runtime_says_and_allocated_what_was_promised() {
    let has = ContainerLimits { cpu_shares: 256, cpu_quota: 50_000, cpu_period: 100_000, memory: 32 << 20 };
    let status = sized(Some(has)).status();
    let shown = container(&status, "app");
    assert_eq!(shown.allocated_resources, list("500m", "64Mi"));
    let resources = shown.resources.clone().unwrap();
    assert_eq!((resources.requests, resources.limits), (list("250m", "64Mi"), list("500m", "32Mi")));
    let pod = status.resources.unwrap();
    assert_eq!(status.allocated_resources, list("500m", "64Mi"));
    assert_eq!((pod.requests, pod.limits), (list("500m", "64Mi"), list("1", "128Mi")));
}

#[test]
fn a_runtime_that_does_not_say_is_believed_to_have_done_what_it_was_told() {
    let mut scene = sized(None);
    let mut told = ResourceInfo::of(&scene.pod);
    let requests = told.container_resources.get_mut("app").and_then(|r| r.requests.as_mut()).unwrap();
    requests.insert("cpu".into(), Quantity("100m".into()));
    scene.memory.actuated = Some(told.into());
    let status = scene.status();
    let shown = container(&status, "app").resources.clone().unwrap();
    assert_eq!(shown.requests, list("100m", "64Mi"));
}

#[test]
fn the_kernels_least_amounts_are_shown_as_they_were_asked_for() {
    let has = ContainerLimits { cpu_shares: 2, cpu_quota: 1000, cpu_period: 100_000, memory: 128 << 20 };
    let mut scene = sized(Some(has));
    let resources = scene.pod.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap();
    (resources.requests, resources.limits) = (list("1m", "64Mi"), list("5m", "128Mi"));
    let status = scene.status();
    let shown = container(&status, "app").resources.clone().unwrap();
    assert_eq!((shown.requests, shown.limits), (list("1m", "64Mi"), list("5m", "128Mi")));
}

#[test]
fn a_resize_shows_as_a_condition_while_the_pod_runs_and_those_of_the_api_server_do_not_stay() {
    let mut scene = sized(None);
    let of = |type_: &str| PodCondition { type_: type_.into(), status: "True".into(), ..PodCondition::default() };
    scene.pod.status = Some(PodStatus { conditions: Some(vec![of("PodResizePending")]), ..PodStatus::default() });
    let types = |scene: &Scene| -> Vec<String> {
        let conditions = scene.status().conditions.unwrap_or_default();
        conditions.into_iter().map(|c| c.type_).filter(|t| t.starts_with("PodResize")).collect()
    };
    assert!(types(&scene).is_empty());
    scene.resize.hear(News::Accepted, Some(2), NOW);
    assert_eq!(types(&scene), ["PodResizeInProgress"]);
}
