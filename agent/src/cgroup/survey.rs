//! All cgroups that people look at: the machine, the tree of pods down to containers, and daemons.
//!
//! What containers make below their own cgroups is not looked at: a container with a service manager of its own may have
//! thousands.

use std::path::PathBuf;

use super::figures::Figures;
use super::name::{self, Driver};
use super::{Backend, CgroupError, Cgroups, Inner, QosClass};
use crate::ids::PodUid;

/// What a cgroup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The machine.
    Root,
    /// All pods, or a class of them.
    Pods,
    /// A pod.
    Pod(PodUid),
    /// A container or sandbox of a pod, by the runtime's id.
    Container(PodUid, String),
    /// What was asked for beside.
    Daemon,
}

/// A cgroup and what the kernel counts for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Path below the mounts, as runtimes and cAdvisor write it.
    pub path: String,
    /// What it is.
    pub place: Place,
    /// Figures.
    pub figures: Figures,
}

impl Cgroups {
    /// The root, the tree of pods and cgroups of these paths, as they are now.
    pub async fn survey(&self, daemons: Vec<String>) -> Result<Vec<Surveyed>, CgroupError> {
        self.blocking(move |inner| Ok(inner.survey(&daemons))).await
    }

    /// Figures of some cgroups by their paths below the mounts; those that do not exist are left out.
    pub async fn figures(&self, paths: Vec<String>) -> Result<Vec<(String, Figures)>, CgroupError> {
        let read = |inner: &Inner, path: String| inner.figures(&path).map(|figures| (path, figures));
        self.blocking(move |inner| Ok(paths.into_iter().filter_map(|path| read(inner, path)).collect())).await
    }

    /// The driver in use.
    pub fn driver(&self) -> Driver {
        self.inner.settings.driver
    }

    /// Path of the cgroup of all pods: `cgroupRoot` itself where they have no tree.
    pub fn path_of_pods(&self) -> String {
        let inner = &self.inner;
        let name = if inner.settings.qos_cgroups { inner.tree.kubepods() } else { &inner.root };
        name.path(inner.settings.driver)
    }

    /// The cgroup that a process is in, from its `/proc/PID/cgroup`; `None` where it is not the same for processors and memory.
    pub fn path_of_process(&self, text: &str) -> Option<String> {
        let of = |controller: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                controllers.split(',').any(|found| found == controller).then(|| path.to_owned())
            })
        };
        let found = match self.inner.hierarchies {
            Backend::V1(_) => of("cpu").filter(|path| Some(path) == of("memory").as_ref()),
            Backend::V2(_) => of(""),
        };
        // What is outside of our own cgroup namespace is outside of our mounts.
        found.filter(|path| !path.split('/').any(|part| part == ".."))
    }
}

impl Inner {
    fn survey(&self, daemons: &[String]) -> Vec<Surveyed> {
        let mut all = Vec::new();
        let mut add = |path: String, place: Place| {
            let figures = self.figures(&path);
            all.extend(figures.map(|figures| Surveyed { path, place, figures }));
        };
        add("/".to_owned(), Place::Root);
        if self.settings.qos_cgroups {
            for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
                let above = self.tree.qos(class).path(self.settings.driver);
                for (path, uid) in self.below(&above, |name| name::pod_of_directory(name, self.settings.driver)) {
                    for (path, id) in self.below(&path, |name| container(name, self.settings.driver)) {
                        add(path, Place::Container(uid.clone(), id));
                    }
                    add(path, Place::Pod(uid));
                }
                add(above, Place::Pods);
            }
        }
        for path in daemons {
            add(path.clone(), Place::Daemon);
        }
        all
    }

    /// Paths of what is directly below a cgroup and has a meaning.
    fn below<T>(&self, path: &str, meaning: impl Fn(&str) -> Option<T>) -> Vec<(String, T)> {
        let directory: Option<PathBuf> = match &self.hierarchies {
            Backend::V1(v1) => v1.directory("memory", path),
            Backend::V2(v2) => Some(v2.directory(path)),
        };
        let entries = directory.and_then(|directory| std::fs::read_dir(directory).ok()).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let named = directories.filter_map(|entry| entry.file_name().into_string().ok());
        named.filter_map(|name| meaning(&name).map(|meaning| (format!("{path}/{name}"), meaning))).collect()
    }
}

/// The runtime's id of a container by its directory: `ID`, or `cri-containerd-ID.scope` under systemd.
fn container(directory: &str, driver: Driver) -> Option<String> {
    let id = match driver {
        Driver::Cgroupfs => directory,
        // CRI-O has its monitors beside its containers.
        Driver::Systemd if directory.contains("conmon") => return None,
        Driver::Systemd => directory.strip_suffix(".scope")?.rsplit('-').next()?,
    };
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{CfsQuota, CgroupName, MemoryQos, Settings, SwapBehavior, classes, systemd, v1, v2};
    use super::*;
    use crate::cgroup::name::Tree;

    fn cgroups(hierarchies: Backend, driver: Driver) -> Inner {
        let root = CgroupName::parse("/").unwrap();
        let settings = Settings {
            driver,
            cgroup_root: "/".into(),
            qos_cgroups: true,
            cfs_quota: CfsQuota::Off,
            pids_limit: None,
            allocatable: Default::default(),
            memory_capacity: 0,
            swap: SwapBehavior::NoSwap,
            memory_qos: MemoryQos::Off,
            single_process_oom_kill: false,
        };
        let tree = Tree::new(&root);
        let (systemd, classes) = (systemd::Systemd::default(), Mutex::new(classes::Classes::default()));
        Inner { settings, hierarchies, root, tree, huge_page_sizes: Vec::new(), systemd, classes }
    }

    fn id(letter: &str) -> String {
        letter.repeat(64)
    }

    fn found(inner: &Inner) -> Vec<(String, Place)> {
        let mut all: Vec<_> = inner.survey(&["/daemon".to_owned()]).into_iter().map(|s| (s.path, s.place)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    #[test]
    fn directories_become_pods_and_containers_and_what_containers_make_is_left_out() {
        let mount = tempfile::tempdir().unwrap();
        let (a, b) = (id("a"), id("b"));
        for path in [format!("burstable/pod1/{a}/init/deep"), format!("pod2/{b}"), "besteffort/other".to_owned()] {
            std::fs::create_dir_all(mount.path().join("memory/kubepods").join(path)).unwrap();
        }
        std::fs::create_dir_all(mount.path().join("memory/daemon")).unwrap();
        let mounts = [("memory".to_owned(), mount.path().join("memory"))].into();
        let pod = |uid| PodUid::new(uid);
        let expected = [
            ("/".to_owned(), Place::Root),
            ("/daemon".to_owned(), Place::Daemon),
            ("/kubepods".to_owned(), Place::Pods),
            ("/kubepods/besteffort".to_owned(), Place::Pods),
            ("/kubepods/burstable".to_owned(), Place::Pods),
            ("/kubepods/burstable/pod1".to_owned(), Place::Pod(pod("1"))),
            (format!("/kubepods/burstable/pod1/{a}"), Place::Container(pod("1"), a)),
            ("/kubepods/pod2".to_owned(), Place::Pod(pod("2"))),
            (format!("/kubepods/pod2/{b}"), Place::Container(pod("2"), b)),
        ];
        assert_eq!(found(&cgroups(Backend::V1(v1::V1::new(mounts)), Driver::Cgroupfs)), expected);
    }

    #[test]
    fn slices_and_scopes_of_systemd_are_read_too() {
        let mount = tempfile::tempdir().unwrap();
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        let c = id("c");
        for scope in [format!("cri-containerd-{c}.scope"), format!("crio-conmon-{}.scope", id("d"))] {
            std::fs::create_dir_all(mount.path().join(slice).join(scope)).unwrap();
        }
        let inner = cgroups(Backend::V2(v2::V2::new(mount.path().to_owned(), Vec::new())), Driver::Systemd);
        let places: Vec<Place> = found(&inner).into_iter().map(|(_, place)| place).collect();
        let pod = PodUid::new("1-2");
        let expected = [Place::Root, Place::Pods, Place::Pods, Place::Pod(pod.clone()), Place::Container(pod, c)];
        assert_eq!(places, expected);
    }

    #[test]
    fn the_root_of_this_machine_has_figures() {
        let backend = match super::super::Hierarchies::detect().unwrap() {
            super::super::Hierarchies::V1(mounts) => Backend::V1(v1::V1::new(mounts)),
            super::super::Hierarchies::V2 { mount, controllers } => Backend::V2(v2::V2::new(mount, controllers)),
        };
        let root = cgroups(backend, Driver::Cgroupfs).figures("/").unwrap();
        assert!(root.cpu.usage > 0 && root.memory.is_some_and(|memory| memory.usage > 0), "{root:?}");
        assert!(root.created.is_some_and(|at| at <= root.time), "{root:?}");
    }

    #[test]
    fn the_cgroup_of_a_process_is_one_where_processors_and_memory_agree() {
        let of = |hierarchies| Cgroups { inner: std::sync::Arc::new(cgroups(hierarchies, Driver::Cgroupfs)) };
        let v1 = of(Backend::V1(v1::V1::new(Default::default())));
        let text = "9:name=systemd:/x\n4:memory:/a/b\n2:cpu,cpuacct:/a/b\n";
        assert_eq!(v1.path_of_process(text).as_deref(), Some("/a/b"));
        assert_eq!(v1.path_of_process("4:memory:/\n2:cpu,cpuacct:/a\n"), None);
        let v2 = of(Backend::V2(v2::V2::new("/".into(), Vec::new())));
        assert_eq!(v2.path_of_process("0::/../elsewhere\n"), None);
        assert_eq!(
            v2.path_of_process("0::/system.slice/nodelet.service\n").as_deref(),
            Some("/system.slice/nodelet.service")
        );
    }
}
