use super::*;
use k8s_openapi::api::core::v1::PodSpec;

pub(crate) fn requirements(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
    let list = |of: &[(&str, &str)]| {
        (!of.is_empty()).then(|| of.iter().map(|(n, a)| ((*n).to_owned(), ApiQuantity((*a).to_owned()))).collect())
    };
    ResourceRequirements { requests: list(requests), limits: list(limits), claims: None }
}

fn make_pod(containers: &[(&str, ResourceRequirements)]) -> Arc<Pod> {
    let container = |(name, resources): &(&str, ResourceRequirements)| Container {
        name: (*name).to_owned(),
        resources: Some(resources.clone()),
        ..Container::default()
    };
    let spec = PodSpec { containers: containers.iter().map(container).collect(), ..PodSpec::default() };
    Arc::new(Pod { spec: Some(spec), ..Pod::default() })
}

#[test]
fn an_allocation_that_means_the_same_leaves_the_pod_as_it_is() {
    let pod = make_pod(&[("a", requirements(&[("cpu", "1000m"), ("memory", "1Gi")], &[]))]);
    let info = ResourceInfo::of(&make_pod(&[("a", requirements(&[("cpu", "1"), ("memory", "1024Mi")], &[]))]));
    assert!(Arc::ptr_eq(&info.apply(&pod), &pod));
}

#[test]
fn an_allocation_takes_the_place_of_what_is_desired_and_unknown_containers_keep_theirs() {
    let small = requirements(&[("cpu", "100m")], &[("cpu", "200m")]);
    let info = ResourceInfo::of(&make_pod(&[("a", small.clone())]));
    let large = requirements(&[("cpu", "4")], &[("cpu", "4")]);
    let given = info.apply(&make_pod(&[("a", large.clone()), ("b", large.clone())]));
    let containers = &given.spec.as_ref().unwrap().containers;
    assert_eq!(containers[0].resources, Some(small));
    assert_eq!(containers[1].resources, Some(large));
}

#[test]
fn limits_of_the_pod_are_those_of_containers_without_their_own() {
    let pod_level = requirements(&[("cpu", "1")], &[("cpu", "2"), ("memory", "1Gi")]);
    let own = requirements(&[("cpu", "300m")], &[("cpu", "500m")]);
    let amounts = Amounts::new(Some(&pod_level), Some(&own));
    let expected = Amounts { cpu_request: 300, cpu_limit: 500, memory_request: 0, memory_limit: 1 << 30 };
    assert_eq!(amounts, expected);
}

#[test]
fn one_resource_is_taken_over_at_a_time() {
    let mut actuated = ResourceInfo::of(&make_pod(&[("a", requirements(&[("cpu", "1")], &[("memory", "1Gi")]))]));
    let allocated = ResourceInfo::of(&make_pod(&[("a", requirements(&[("cpu", "2")], &[("memory", "2Gi")]))]));
    actuated.take("a", Resource::Memory, &allocated);
    let halfway = actuated.amounts("a");
    assert_eq!((halfway.cpu_request, halfway.memory_limit), (1000, 2 << 30));
    actuated.take("a", Resource::Cpu, &allocated);
    assert!(actuated.means(&allocated));
}

#[test]
fn a_pod_that_has_not_shrunk_yet_still_holds_what_it_had() {
    let allocated = make_pod(&[("a", requirements(&[("cpu", "1"), ("memory", "2Gi")], &[]))]);
    let actuated = ResourceInfo::of(&make_pod(&[("a", requirements(&[("cpu", "3"), ("memory", "1Gi")], &[]))]));
    let held = ResourceInfo::of(&held(&allocated, Some(&actuated)));
    assert_eq!((held.amounts("a").cpu_request, held.amounts("a").memory_request), (3000, 2 << 30));
}
