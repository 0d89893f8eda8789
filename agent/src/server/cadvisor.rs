//! `/metrics/cadvisor`: what the kernel counts for cgroups, by cAdvisor's names and with its labels. Pure.
//!
//! Every series has `container`, `id`, `image`, `name`, `namespace` and `pod`, empty where they say nothing: dashboards tell containers from
//! pods and the node by them. `id` is the path of the cgroup, `name` the runtime's id. What a container makes below its own cgroup
//! has no series, and what processes have open is counted for containers only.
//!
//! Names and conditions: `metrics/prometheus.go` of cAdvisor 0.60, with the metric sets that kubelet 1.37 asks for.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;

use super::usage::Usage;
use super::usage::kernel::Kernel;
use crate::cgroup::figures::Figures;
use crate::cgroup::{Place, Surveyed};
use crate::logs::choose::statuses;
use crate::metrics::text::{Family, Kind, Text};
use crate::node::oom::{COUNTS, Counts};
use crate::pod::spec;

mod families;

type Pair<'a> = (&'a str, &'a str);

/// What is shown.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// The kernel's figures.
    pub kernel: &'a Kernel,
    /// The runtime's, for which containers there are, and their layers.
    pub usage: &'a Usage,
    /// Pods, for names and images.
    pub pods: &'a [Pod],
    /// Seconds and milliseconds since the epoch.
    pub now: jiff::Timestamp,
}

/// A cgroup with what it is called.
struct Named<'a> {
    cgroup: &'a Surveyed,
    /// Labels in alphabetical order.
    labels: [Pair<'a>; 6],
    /// When it was started, in seconds since the epoch.
    started: Option<i64>,
    /// Bytes of its writable layer, where it has one.
    layer: Option<u64>,
}

impl<'a> Named<'a> {
    fn figures(&self) -> &'a Figures {
        &self.cgroup.figures
    }

    fn is_root(&self) -> bool {
        self.cgroup.place == Place::Root
    }

    /// All labels in alphabetical order, with more of them.
    fn with<'b>(&'b self, more: &[Pair<'b>]) -> Vec<Pair<'b>> {
        let mut all: Vec<Pair<'b>> = self.labels.iter().chain(more).copied().collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
    }

    /// A sample with the time of its measurement.
    fn sample(&self, family: &mut Family<'_>, value: f64) {
        family.stamped(&self.labels, value, Some(self.figures().time.as_millisecond()));
    }

    /// The same with more labels.
    fn sample_with(&self, family: &mut Family<'_>, more: &[Pair<'_>], value: f64) {
        family.stamped(&self.with(more), value, Some(self.figures().time.as_millisecond()));
    }
}

/// Everything.
pub fn write(text: &mut Text, seen: Seen<'_>) {
    let all = named(seen);
    families::start(text, &all, seen);
    families::cpu(text, &all);
    families::memory(text, &all, seen);
    families::disks(text, &all, seen);
    families::network(text, &all, seen);
    families::processes(text, &all, seen);
    families::pressure(text, &all);
    out_of_memory(text, &all, &COUNTS);
    text.gauge("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", 0.0);
    machine(text, seen);
}

/// Cgroups with names. What the runtime does not know as running is left out.
fn named(seen: Seen<'_>) -> Vec<Named<'_>> {
    let containers: HashMap<&str, _> = seen.usage.containers.iter().map(|one| (one.id.as_str(), one)).collect();
    let pods: HashMap<&str, &Pod> =
        seen.pods.iter().filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod))).collect();
    let one = |cgroup| {
        let mut named = Named { cgroup, labels: labels("", &cgroup.path, "", "", "", ""), started: None, layer: None };
        named.started = cgroup.figures.created.map(jiff::Timestamp::as_second);
        match &cgroup.place {
            Place::Root => named.started = Some(seen.usage.node.started.as_second()),
            Place::Pods | Place::Daemon => {}
            Place::Pod(uid) => {
                if let Some(meta) = pods.get(uid.as_str()).map(|pod| &pod.metadata) {
                    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
                    named.labels =
                        labels("", &cgroup.path, "", "", namespace.unwrap_or_default(), name.unwrap_or_default());
                }
            }
            Place::Container(_, id) => match (containers.get(id.as_str()), seen.kernel.sandboxes.get(id)) {
                (Some(found), _) => {
                    let pod = pods.get(found.pod.uid.as_str());
                    let image = pod.map_or("", |pod| spec::image(pod, &found.name));
                    named.labels = labels(&found.name, &cgroup.path, image, id, &found.pod.namespace, &found.pod.name);
                    named.started = pod.and_then(|pod| started(pod, &found.name)).or(named.started);
                    named.layer = found.layer.map(|(bytes, _)| bytes);
                }
                (None, Some(pod)) => {
                    named.labels = labels("", &cgroup.path, &seen.kernel.sandbox_image, id, &pod.namespace, &pod.name);
                }
                (None, None) => return None,
            },
        }
        Some(named)
    };
    seen.kernel.cgroups.iter().filter_map(one).collect()
}

fn labels<'a>(
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
) -> [Pair<'a>; 6] {
    [("container", container), ("id", id), ("image", image), ("name", name), ("namespace", namespace), ("pod", pod)]
}

/// When a running container was started.
fn started(pod: &Pod, name: &str) -> Option<i64> {
    let status = statuses(pod).find(|status| status.name == name)?;
    Some(status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0.as_second())
}

/// Processes that the kernel killed in containers for want of memory.
fn out_of_memory(text: &mut Text, all: &[Named<'_>], counts: &Counts) {
    let help = "Count of out of memory events observed for the container";
    let mut family = text.family("container_oom_events_total", Kind::Counter, help);
    let of = |named: &Named<'_>| match &named.cgroup.place {
        Place::Container(_, id) => counts.of(id),
        Place::Root | Place::Pods | Place::Pod(_) | Place::Daemon => 0,
    };
    all.iter().for_each(|named| named.sample(&mut family, of(named) as f64));
    counts.retain(|id| all.iter().any(|named| matches!(&named.cgroup.place, Place::Container(_, own) if own == id)));
}

fn machine(text: &mut Text, seen: Seen<'_>) {
    let facts = &seen.kernel.machine;
    let labels =
        [("boot_id", facts.boot_id.as_str()), ("machine_id", &facts.machine_id), ("system_uuid", &facts.system_uuid)];
    let (cores, sockets) = seen.kernel.cores;
    for (name, help, value) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", f64::from(facts.cpus)),
        ("machine_cpu_physical_cores", "Number of physical CPU cores.", cores as f64),
        ("machine_cpu_sockets", "Number of CPU sockets.", sockets as f64),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", facts.memory as f64),
        ("machine_swap_bytes", "Amount of swap memory available on the machine.", facts.swap as f64),
    ] {
        text.family(name, Kind::Gauge, help).sample(&labels, value);
    }
    let help = "1 if there was an error while getting machine metrics, 0 otherwise.";
    text.gauge("machine_scrape_error", help, 0.0);
}

#[cfg(test)]
mod tests;
