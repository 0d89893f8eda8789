//! Resizes in any order, with failures and restarts of the agent in between, over a simulated node.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerResizePolicy, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use proptest::prelude::*;

use super::steps::{Running, Shrinking, Step, refusal, shrinking, steps};
use super::*;
use crate::cgroup::plan::pod_values;
use crate::cgroup::{CfsQuota, PodCgroup, Values};
use crate::ids::ContainerId;
use crate::pod::allocation::{Resource, held};
use crate::quantity::{Format, Quantity};

const MI: i64 = 1 << 20;
const NODE_MILLI: i64 = 4000;
const NODE_MEMORY: i64 = 4096 * MI;

/// CPU in thousandths and memory in MiB; the limit is what `over` adds to the request.
#[derive(Clone, Copy, Debug)]
struct Size {
    milli: i64,
    memory: i64,
    over: i64,
}

fn make_container(name: &str, size: Size) -> Container {
    let amounts = |over: i64| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), ApiQuantity(format!("{}m", size.milli + over))),
            ("memory".to_owned(), ApiQuantity(format!("{}Mi", size.memory + over))),
        ]))
    };
    let resources = ResourceRequirements { requests: amounts(0), limits: amounts(size.over), claims: None };
    Container { name: name.into(), resources: Some(resources), ..Container::default() }
}

fn make_pod(uid: &str, sizes: [Size; 2]) -> Pod {
    let containers = vec![make_container("a", sizes[0]), make_container("b", sizes[1])];
    let mut pod = Pod { spec: Some(PodSpec { containers, ..PodSpec::default() }), ..Pod::default() };
    pod.metadata.uid = Some(uid.into());
    pod.metadata.generation = Some(1);
    pod
}

fn make_node() -> admit::Node {
    let cpu = Quantity::from_millis(NODE_MILLI);
    let memory = Quantity::from_units(NODE_MEMORY, Format::BinarySi);
    admit::Node { allocatable: [("cpu".into(), cpu), ("memory".into(), memory)].into(), ..admit::Node::default() }
}

fn values(pod: &Pod) -> Values {
    pod_values(pod, CfsQuota::Enforced { period: 100_000 }, None)
}

fn running() -> Vec<Running> {
    ["a", "b"].map(|name| Running { name: name.into(), id: ContainerId::new(name) }).into()
}

/// One pod: what is on disk, and what the kernel has.
struct SimPod {
    desired: Arc<Pod>,
    allocated: Arc<Pod>,
    actuated: ResourceInfo,
    cgroup: PodCgroup,
    /// Memory limits and CPU limits of the containers.
    limits: BTreeMap<String, (i64, i64)>,
    pending: Option<Wait>,
}

impl SimPod {
    fn new(uid: &str, over: i64) -> Self {
        let small = Size { milli: 100, memory: 64, over };
        let pod = Arc::new(make_pod(uid, [small, small]));
        let actuated = ResourceInfo::of(&pod);
        let written = values(&pod);
        let limits = ["a", "b"].map(|name| {
            let amounts = actuated.amounts(name);
            (name.to_owned(), (amounts.memory_limit, amounts.cpu_limit))
        });
        Self {
            desired: pod.clone(),
            allocated: pod,
            actuated,
            cgroup: PodCgroup {
                cpu_shares: written.cpu_shares.unwrap(),
                cpu_quota: written.cpu_quota.unwrap(),
                cpu_period: 100_000,
                memory_limit: written.memory.unwrap(),
                memory_usage: 0,
            },
            limits: limits.into(),
            pending: None,
        }
    }

    /// Does the first `count` steps of what is left, as an agent does that ends then.
    fn work(&mut self, count: usize) {
        let desired = values(&self.allocated);
        let allocated = ResourceInfo::of(&self.allocated);
        let all = steps(&self.allocated, &self.actuated, &running(), self.cgroup, &desired);
        for step in all.into_iter().take(count) {
            match step {
                Step::Pod(written) => {
                    self.cgroup.memory_limit = written.memory.unwrap_or(self.cgroup.memory_limit);
                    self.cgroup.cpu_quota = written.cpu_quota.unwrap_or(self.cgroup.cpu_quota);
                    self.cgroup.cpu_shares = written.cpu_shares.unwrap_or(self.cgroup.cpu_shares);
                }
                Step::Container { container, spec, resource } => {
                    let told = ResourceInfo {
                        container_resources: [(container.name.clone(), spec.resources.unwrap())].into(),
                        ..ResourceInfo::default()
                    };
                    let amounts = told.amounts(&container.name);
                    self.limits.insert(container.name.clone(), (amounts.memory_limit, amounts.cpu_limit));
                    self.actuated.take(&container.name, resource, &allocated);
                }
                Step::PodLevel(resource) => self.actuated.take_pod_level(resource, &allocated),
            }
            let within = self
                .limits
                .values()
                .all(|(memory, milli)| *memory <= self.cgroup.memory_limit && milli * 100 <= self.cgroup.cpu_quota);
            assert!(within, "a container has more than its pod: {:?} {:?}", self.limits, self.cgroup);
        }
    }
}

struct Sim {
    pods: Vec<SimPod>,
}

impl Sim {
    fn decide(&mut self) {
        let waiting = self.pods.iter().enumerate().filter(|(_, p)| !Arc::ptr_eq(&p.desired, &p.allocated));
        let waiting = waiting.map(|(index, p)| Waiting {
            uid: PodUid::new(index.to_string()),
            grows: grows(&p.desired, &p.allocated),
            priority: i32::try_from(index).unwrap(),
            is_guaranteed: false,
            since: None,
        });
        for uid in order(waiting.collect()) {
            let index: usize = uid.as_str().parse().unwrap();
            let others = self.pods.iter().enumerate().filter(|(other, _)| *other != index);
            let others: Vec<_> = others.map(|(_, p)| held(&p.allocated, Some(&p.actuated))).collect();
            let others: Vec<&Pod> = others.iter().map(AsRef::as_ref).collect();
            let pod = &self.pods[index];
            let allocated = ResourceInfo::of(&pod.allocated);
            let verdict = decide(&pod.desired, &allocated, false, &make_node(), Rules::default(), &others);
            let pod = &mut self.pods[index];
            match verdict {
                Verdict::Settled => pod.pending = None,
                Verdict::Accept(info) => {
                    assert!(info.means(&ResourceInfo::of(&pod.desired)));
                    (pod.allocated, pod.pending) = (pod.desired.clone(), None);
                }
                Verdict::Wait(wait, message) => {
                    assert!(message.contains("Node didn't have enough resource"), "{message}");
                    pod.pending = Some(wait);
                }
            }
        }
    }

    fn check(&self) {
        for (name, capacity) in [(CPU, NODE_MILLI), (MEMORY, NODE_MEMORY)] {
            let requested = |pod: &Pod| {
                let requested = amount(&pod_requests(pod, Overhead::Included), name);
                if name == CPU { requested.milli_value() } else { requested.value() }
            };
            let has = |p: &SimPod| requested(&p.allocated).max(requested(&p.actuated.apply(&p.allocated)));
            let sum: i64 = self.pods.iter().map(has).sum();
            assert!(sum <= capacity, "{name}: {sum} of {capacity} given away");
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Resize(usize, [Size; 2]),
    Decide,
    /// The pod's agent does this many steps of what is left, then it fails or is killed.
    Work(usize, usize),
}

fn sizes(over: i64) -> impl Strategy<Value = Size> {
    (1..2500i64, 4..2500i64).prop_map(move |(milli, memory)| Size { milli, memory, over })
}

/// What limits exceed requests by, and what happens. It is the same for all, so that both change together: where a limit
/// grows while its request shrinks, the limit decides the order of the steps, as in kubelet, and the pod has for a moment more
/// than it was allocated.
fn events() -> impl Strategy<Value = (i64, Vec<Event>)> {
    (0..300i64).prop_flat_map(|over| {
        let event = prop_oneof![
            (0..3usize, sizes(over), sizes(over)).prop_map(|(pod, a, b)| Event::Resize(pod, [a, b])),
            Just(Event::Decide),
            (0..3usize, 0..7usize).prop_map(|(pod, count)| Event::Work(pod, count)),
        ];
        (Just(over), proptest::collection::vec(event, 1..60))
    })
}

proptest! {
    #[test]
    fn any_order_of_resizes_failures_and_restarts_ends_in_effect_or_deferred_and_never_exceeds_the_node(
        (over, events) in events()
    ) {
        let mut sim = Sim { pods: ["0", "1", "2"].map(|uid| SimPod::new(uid, over)).into() };
        for event in events {
            match event {
                Event::Resize(pod, sizes) => sim.pods[pod].desired = Arc::new(make_pod(&pod.to_string(), sizes)),
                Event::Decide => sim.decide(),
                Event::Work(pod, count) => sim.pods[pod].work(count),
            }
            sim.check();
        }
        // Now that nobody asks for anything else.
        for _ in 0..4 {
            sim.decide();
            sim.pods.iter_mut().for_each(|pod| pod.work(usize::MAX));
            sim.check();
        }
        for pod in &sim.pods {
            prop_assert!(pod.actuated.means(&ResourceInfo::of(&pod.allocated)));
            let written = values(&pod.allocated);
            prop_assert_eq!(Some(pod.cgroup.memory_limit), written.memory);
            prop_assert_eq!(Some(pod.cgroup.cpu_quota), written.cpu_quota);
            prop_assert_eq!(Some(pod.cgroup.cpu_shares), written.cpu_shares);
            prop_assert_eq!(Arc::ptr_eq(&pod.desired, &pod.allocated), pod.pending.is_none());
        }
    }
}

fn size(milli: i64, memory: i64) -> Size {
    Size { milli, memory, over: 0 }
}

fn cgroup_of(pod: &Pod) -> PodCgroup {
    let written = values(pod);
    PodCgroup {
        cpu_shares: written.cpu_shares.unwrap(),
        cpu_quota: written.cpu_quota.unwrap_or(i64::MAX),
        cpu_period: 100_000,
        memory_limit: written.memory.unwrap_or(i64::MAX),
        memory_usage: 0,
    }
}

#[test]
fn the_pods_cgroup_grows_first_and_shrinks_last_and_smaller_containers_come_first() {
    let before = make_pod("u", [size(100, 100), size(400, 400)]);
    let after = make_pod("u", [size(300, 500), size(300, 100)]);
    let all = steps(&after, &ResourceInfo::of(&before), &running(), cgroup_of(&before), &values(&after));
    let told: Vec<String> = all
        .iter()
        .map(|step| match step {
            Step::Pod(v) => format!("pod {:?} {:?} {:?}", v.memory.map(|m| m / MI), v.cpu_quota, v.cpu_shares),
            Step::Container { container, resource, .. } => format!("{} {}", container.name, resource.name()),
            Step::PodLevel(resource) => format!("level {}", resource.name()),
        })
        .collect();
    let expected = [
        "pod Some(600) None None",
        "b memory",
        "a memory",
        "pod None Some(60000) None",
        "pod None None Some(614)",
        "b cpu",
        "a cpu",
    ];
    assert_eq!(told, expected);
}

#[test]
fn the_memory_step_leaves_cpu_as_it_is_at_that_moment() {
    let before = make_pod("u", [size(100, 100), size(100, 100)]);
    let after = make_pod("u", [size(300, 200), size(100, 100)]);
    let all = steps(&after, &ResourceInfo::of(&before), &running(), cgroup_of(&before), &values(&after));
    let told = all.into_iter().find_map(|step| match step {
        Step::Container { spec, resource: Resource::Memory, .. } => spec.resources,
        Step::Container { .. } | Step::Pod(_) | Step::PodLevel(_) => None,
    });
    let requests = told.unwrap().requests.unwrap();
    assert_eq!((requests["cpu"].0.as_str(), requests["memory"].0.as_str()), ("100m", "200Mi"));
}

#[test]
fn a_limit_below_what_is_used_is_refused_in_kubelets_words() {
    let before = make_pod("u", [size(100, 100), size(100, 100)]);
    let after = make_pod("u", [size(100, 1), size(100, 100)]);
    let shrinking = shrinking(&after, &ResourceInfo::of(&before), &running(), cgroup_of(&before), &values(&after));
    assert_eq!(shrinking.pod, Some(101 * MI));
    assert_eq!(refusal(&shrinking, 10, &[Some(10)]), None);
    assert_eq!(
        refusal(&shrinking, 10, &[Some(2_000_000)]).unwrap(),
        "cannot decrease memory limits: attempting to set container \"a\" memory limit (1048576) below current usage \
         (2000000)"
    );
    let all = refusal(&shrinking, u64::MAX, &[None]).unwrap();
    assert!(
        all.starts_with("cannot decrease memory limits: [attempting to set pod memory limit (105906176) below"),
        "{all}"
    );
    assert!(all.ends_with(", missing container \"a\" memory usage]"), "{all}");
    assert_eq!(refusal(&Shrinking::default(), u64::MAX, &[]), None);
}

#[test]
fn who_gives_back_comes_first_then_priority_class_and_time() {
    let waiting = |uid: &str, grows, priority, is_guaranteed, since| Waiting {
        uid: PodUid::new(uid),
        grows,
        priority,
        is_guaranteed,
        since,
    };
    let ordered = order(vec![
        waiting("new", true, 0, false, None),
        waiting("later", true, 0, false, Some(2)),
        waiting("earlier", true, 0, false, Some(1)),
        waiting("guaranteed", true, 0, true, None),
        waiting("important", true, 9, false, None),
        waiting("shrinks", false, 0, false, None),
    ]);
    let names: Vec<&str> = ordered.iter().map(PodUid::as_str).collect();
    assert_eq!(names, ["shrinks", "important", "guaranteed", "earlier", "later", "new"]);
}

#[test]
fn a_resize_that_would_change_swap_is_infeasible_unless_it_restarts_the_container() {
    let over = Size { milli: 100, memory: 64, over: 50 };
    let before = make_pod("u", [over, over]);
    let mut after = make_pod("u", [Size { memory: 65, ..over }, over]);
    let rules = Rules { limited_swap: true };
    let verdict = |pod: &Pod| decide(pod, &ResourceInfo::of(&before), false, &make_node(), rules, &[]);
    let text = "In-place resize of containers with swap is not supported.";
    assert_eq!(verdict(&after), Verdict::Wait(Wait::Infeasible, text.into()));
    after.spec.as_mut().unwrap().containers[0].resize_policy =
        Some(vec![ContainerResizePolicy { resource_name: "memory".into(), restart_policy: "RestartContainer".into() }]);
    assert!(matches!(verdict(&after), Verdict::Accept(_)));
}

#[test]
fn conditions_are_read_back_as_they_were_written() {
    let second = 1_000_000_000;
    let state = State {
        pending: Some(Pending { wait: Wait::Deferred, message: "full".into(), generation: Some(3), since: 5 * second }),
        progress: Some(Progress { error: Some("no".into()), generation: Some(2), since: 4 * second }),
    };
    assert_eq!(State::from_conditions(&state.conditions()), state);
    assert_eq!(State::from_conditions(&[]), State::default());
}

#[test]
fn an_error_is_told_once_and_the_end_with_the_generation_that_was_accepted() {
    let mut state = State::default();
    state.hear(News::Accepted, Some(2), 1);
    assert_eq!(state.fail("no", Some(3), 2), Some(Some(2)));
    assert_eq!(state.fail("no", Some(3), 3), None);
    assert_eq!(state.observe(true, Some(3), 4), None);
    assert_eq!(state.observe(false, Some(3), 5), Some(Some(2)));
    assert_eq!(state.observe(false, Some(3), 6), None);
}

#[test]
fn the_events_message_is_kubelets() {
    let mut pod = make_pod("u", [size(100, 64), size(1000, 64)]);
    pod.spec.as_mut().unwrap().containers.truncate(1);
    assert_eq!(
        message("Deferred", &pod, Some(7), "Node didn't have enough resource: memory"),
        "Pod resize Deferred: {\"containers\":[{\"name\":\"a\",\"resources\":{\"limits\":{\"cpu\":\"100m\",\"memory\":\
         \"64Mi\"},\"requests\":{\"cpu\":\"100m\",\"memory\":\"64Mi\"}}}],\"generation\":7,\"error\":\"Node didn't have \
         enough resource: memory\"}"
    );
}
