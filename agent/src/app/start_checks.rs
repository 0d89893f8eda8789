//! Whether the machine is one that the configuration wants: checked before anything is started. Pure but for the look at it.
//!
//! The texts are kubelet's where it has one, because people search for them. A node alone that runs a directory of manifests
//! is somebody's laptop as often as a server: there, swap and cgroup v1 are errors only where the configuration says so.

use crate::cgroup::{CgroupVersion, DetectError, Hierarchies};
use crate::config::kubelet::resources::Swap;
use crate::config::{Config, KUBELET_VERSION, Mode};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::node::facts::MachineFacts;
use crate::node::{NodeSettings, capacity};

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// `failSwapOn`.
    #[error("running with swap on is not supported, please disable swap or set --fail-swap-on flag to false")]
    SwapOn,
    /// `failCgroupV1`.
    #[error(
        "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is unsupported and will be removed in \
         a future release; boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false"
    )]
    CgroupV1,
    /// `memorySwap.swapBehavior: LimitedSwap` on v1.
    #[error("swap feature is enabled and LimitedSwap but it is only supported with cgroupv2; set NoSwap")]
    LimitedSwap,
    /// `singleProcessOOMKill: false` on v1.
    #[error(
        "invalid configuration: singleProcessOOMKill must not be explicitly set to false when using cgroup v1; leave it out"
    )]
    OomGroup,
    /// More is reserved than there is.
    #[error("invalid Node Allocatable configuration. {0}")]
    Reserved(String),
    /// There are no cgroups.
    #[error(transparent)]
    Cgroups(#[from] DetectError),
}

/// Looks at the machine and compares.
pub fn check(config: &Config, machine: &MachineFacts) -> Result<(), Refusal> {
    compare(config, machine, Hierarchies::detect()?.version())
}

fn compare(config: &Config, machine: &MachineFacts, version: CgroupVersion) -> Result<(), Refusal> {
    let kubelet = &config.kubelet;
    let by_default = !matches!(config.mode, Mode::Alone { manifests: Some(_), .. });
    if version == CgroupVersion::V1 {
        if kubelet.fail_cgroup_v1.unwrap_or(by_default) {
            return Err(Refusal::CgroupV1);
        }
        if kubelet.swap == Swap::LimitedSwap {
            return Err(Refusal::LimitedSwap);
        }
        if kubelet.single_process_oom_kill == Some(false) {
            return Err(Refusal::OomGroup);
        }
    }
    if machine.is_swap_on && kubelet.fail_swap_on.unwrap_or(by_default) {
        return Err(Refusal::SwapOn);
    }
    let settings = NodeSettings::new(config, KUBELET_VERSION);
    match capacity::excess(&settings, &capacity::capacity(&settings, machine)) {
        Some(text) => Err(Refusal::Reserved(text)),
        None => Ok(()),
    }
}

/// Whether Secrets in memory may come to lie on a disk: there is swap, and the kernel cannot keep a tmpfs out of it.
pub fn may_swap_secrets(machine: &MachineFacts) -> bool {
    // `noswap` of tmpfs(5) came with Linux 6.4.
    let mut numbers = machine.kernel_version.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    machine.is_swap_on && version < (6, 4)
}

/// Tells people of it, in kubelet's words.
pub fn warn_of_swap(machine: &MachineFacts, recorder: &Recorder) {
    if may_swap_secrets(machine) {
        let message = "The tmpfs noswap option is not supported. Memory-backed volumes (e.g. secrets, emptyDirs, etc.) might be \
                       swapped to disk and should no longer be considered secure.";
        recorder.emit(Event {
            subject: Subject::Node,
            kind: EventType::Warning,
            reason: "PossibleMemoryBackedVolumesOnDisk",
            message: message.to_owned(),
        });
    }
}

/// Makes the kernel spare this process when memory is short. Inside of a container the operator may not allow it.
pub fn set_oom_score(score: i64) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::info!(%error, score, "oom_score_adj of the agent stays as it is: CAP_SYS_RESOURCE is missing");
    }
}

/// No core dumps: Secrets and tokens are in this process's memory, and a dump would leave them on a disk.
pub fn hide_memory() {
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps of the agent stay possible, and would hold Secrets; set LimitCORE=0 for its unit");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn refused(text: &str, is_alone: bool, machine: &MachineFacts, version: CgroupVersion) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        let flags = Flags {
            config: Some(file),
            kubeconfig: (!is_alone).then(|| "/etc/kubernetes/kubelet.conf".into()),
            manifests: is_alone.then(|| "/manifests".into()),
            hostname_override: Some("n".into()),
            ..Flags::default()
        };
        let config = load(&flags).unwrap().0;
        compare(&config, machine, version).err().map(|refusal| refusal.to_string())
    }

    fn machine(is_swap_on: bool) -> MachineFacts {
        MachineFacts { cpus: 2, memory: 4 << 30, is_swap_on, ..MachineFacts::default() }
    }

    #[test]
    fn secrets_may_be_swapped_by_old_kernels_only() {
        for (kernel, is_swap_on, expected) in [
            ("6.4.0-1-amd64", true, false),
            ("6.18.44-x", true, false),
            ("6.3.9", true, true),
            ("5.15.0-100-generic", true, true),
            ("5.15.0-100-generic", false, false),
        ] {
            let machine = MachineFacts { kernel_version: kernel.to_owned(), ..machine(is_swap_on) };
            assert_eq!(may_swap_secrets(&machine), expected, "{kernel}");
            let (recorder, mut events) = Recorder::new();
            warn_of_swap(&machine, &recorder);
            assert_eq!(events.try_recv().is_ok(), expected, "{kernel}");
        }
    }

    #[test]
    fn what_the_machine_has_and_the_configuration_forbids_is_refused_in_kubelets_words() {
        use CgroupVersion::{V1, V2};
        let swap = "running with swap on is not supported, please disable swap or set --fail-swap-on flag to false";
        let v1 = "kubelet is configured to not run on a host using cgroup v1";
        for (text, is_alone, is_swap_on, version, expected) in [
            ("", false, false, V2, None),
            ("", false, true, V2, Some(swap)),
            ("failSwapOn: false", false, true, V2, None),
            ("", true, true, V2, None),
            ("failSwapOn: true", true, true, V2, Some(swap)),
            ("", false, false, V1, Some(v1)),
            ("failCgroupV1: false", false, false, V1, None),
            ("", true, false, V1, None),
            ("memorySwap: {swapBehavior: LimitedSwap}", true, false, V1, Some("only supported with cgroupv2")),
            ("memorySwap: {swapBehavior: LimitedSwap}", true, true, V2, None),
            ("singleProcessOOMKill: false", true, false, V1, Some("must not be explicitly set to false")),
            ("singleProcessOOMKill: false", true, false, V2, None),
            ("systemReserved: {memory: 4Gi}", true, false, V2, Some("invalid Node Allocatable configuration. memory:")),
        ] {
            let found = refused(text, is_alone, &machine(is_swap_on), version);
            match (&found, expected) {
                (None, None) => {}
                (Some(found), Some(part)) => assert!(found.contains(part), "{text}: {found}"),
                _ => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn no_core_is_dumped_with_secrets_in_it() {
        hide_memory();
        let found = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(found, rustix::process::DumpableBehavior::NotDumpable);
    }
}
