//! Names of cgroups in the notation of each driver. Pure.
//!
//! One name, such as `kubepods, burstable, podUID`, is written `/kubepods/burstable/podUID` for cgroupfs and
//! `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice` for systemd, where `-` separates
//! levels and is therefore written `_` inside a component (systemd.slice(5)).

use crate::ids::PodUid;

use super::resources::QosClass;

/// Who creates cgroups: the agent by `mkdir`, or systemd as units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `cgroupDriver: cgroupfs`.
    Cgroupfs,
    /// `cgroupDriver: systemd`.
    Systemd,
}

/// A cgroup by its components, independent of the driver. The root is the empty name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupName(Vec<String>);

/// A component or path that cannot be a cgroup name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be a cgroup name: expected components without '_' (systemd could not tell it from '-'), '.' or '..'"
)]
pub struct InvalidCgroupName(String);

impl CgroupName {
    /// Reads `cgroupRoot` of the configuration, such as `/` or `/machine/nodes`.
    pub fn parse(path: &str) -> Result<Self, InvalidCgroupName> {
        let components: Vec<String> = path.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect();
        match components.iter().find(|c| !is_component(c)) {
            Some(_) => Err(InvalidCgroupName(path.to_owned())),
            None => Ok(Self(components)),
        }
    }

    /// Reads the path of a cgroup that was made by hand; any character may be in it.
    pub fn of_path(path: &str) -> Result<Self, InvalidCgroupName> {
        let components: Vec<String> = path.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect();
        match components.iter().any(|c| c == "." || c == "..") {
            true => Err(InvalidCgroupName(path.to_owned())),
            false => Ok(Self(components)),
        }
    }

    /// Reads the name of a slice, such as `system.slice` or `/kube.slice/kube-reserved.slice`; the last part says it all.
    pub fn of_slice(path: &str) -> Result<Self, InvalidCgroupName> {
        let unit = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let levels = unit.strip_suffix(".slice").unwrap_or(unit);
        let components: Vec<String> =
            levels.split('-').filter(|c| !c.is_empty()).map(|component| component.replace('_', "-")).collect();
        match components.iter().all(|component| is_component(component)) {
            true => Ok(Self(components)),
            false => Err(InvalidCgroupName(path.to_owned())),
        }
    }

    /// Its parts, from the top.
    pub fn components(&self) -> &[String] {
        &self.0
    }

    /// The cgroup one level below. The component must have no `/` or `_`.
    pub fn child(&self, component: &str) -> Self {
        let mut components = self.0.clone();
        components.push(component.to_owned());
        Self(components)
    }

    /// Whether this is the root of the hierarchy.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The absolute path below a hierarchy's mount, in the driver's notation.
    pub fn path(&self, driver: Driver) -> String {
        match driver {
            Driver::Cgroupfs => format!("/{}", self.0.join("/")),
            Driver::Systemd => self.slice_path(),
        }
    }

    /// The systemd unit that stands for this cgroup, `-.slice` for the root.
    pub fn unit(&self) -> String {
        if self.0.is_empty() {
            return "-.slice".to_owned();
        }
        let parts: Vec<String> = self.0.iter().map(|c| c.replace('-', "_")).collect();
        format!("{}.slice", parts.join("-"))
    }

    /// The cgroup one level up; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    fn slice_path(&self) -> String {
        let mut path = String::new();
        let mut prefix = String::new();
        for component in &self.0 {
            if !prefix.is_empty() {
                prefix.push('-');
            }
            prefix.push_str(&component.replace('-', "_"));
            path.push('/');
            path.push_str(&prefix);
            path.push_str(".slice");
        }
        if path.is_empty() { "/".to_owned() } else { path }
    }
}

/// The names that pods live below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: CgroupName,
}

impl Tree {
    /// The tree below the configured root: `ROOT/kubepods`.
    pub fn new(root: &CgroupName) -> Self {
        Self { root: root.child("kubepods") }
    }

    /// The cgroup of all pods, whose limits are the node's allocatable.
    pub fn kubepods(&self) -> &CgroupName {
        &self.root
    }

    /// The cgroup of a QoS class; Guaranteed pods are directly below `kubepods`.
    pub fn qos(&self, class: QosClass) -> CgroupName {
        match class {
            QosClass::Guaranteed => self.root.clone(),
            QosClass::Burstable => self.root.child("burstable"),
            QosClass::BestEffort => self.root.child("besteffort"),
        }
    }

    /// The cgroup of a pod.
    pub fn pod(&self, uid: &PodUid, class: QosClass) -> CgroupName {
        self.qos(class).child(&format!("pod{uid}"))
    }
}

/// Whether a UID can be part of a cgroup name in both notations.
pub fn is_valid_uid(uid: &PodUid) -> bool {
    is_component(uid.as_str())
}

fn is_component(component: &str) -> bool {
    !component.is_empty() && component != "." && component != ".." && !component.contains(['/', '_', '\0', '\n'])
}

/// The pod that a directory below a QoS cgroup belongs to; `None` for directories that are no pod's.
pub fn pod_of_directory(directory: &str, driver: Driver) -> Option<PodUid> {
    let component = match driver {
        Driver::Cgroupfs => directory.to_owned(),
        Driver::Systemd => directory.strip_suffix(".slice")?.rsplit('-').next()?.replace('_', "-"),
    };
    let uid = component.strip_prefix("pod")?;
    (!uid.is_empty()).then(|| PodUid::new(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_as_kubelet_names_it() {
        let uid = PodUid::new("1234-abcd-5678-efgh");
        let root = CgroupName::parse("/").unwrap();
        for (class, cgroupfs, systemd) in [
            (
                QosClass::Burstable,
                "/kubepods/burstable/pod1234-abcd-5678-efgh",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1234_abcd_5678_efgh.slice",
            ),
            (
                QosClass::BestEffort,
                "/kubepods/besteffort/pod1234-abcd-5678-efgh",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1234_abcd_5678_efgh.slice",
            ),
            (
                QosClass::Guaranteed,
                "/kubepods/pod1234-abcd-5678-efgh",
                "/kubepods.slice/kubepods-pod1234_abcd_5678_efgh.slice",
            ),
        ] {
            let name = Tree::new(&root).pod(&uid, class);
            assert_eq!(name.path(Driver::Cgroupfs), cgroupfs);
            assert_eq!(name.path(Driver::Systemd), systemd);
            for (path, driver) in [(cgroupfs, Driver::Cgroupfs), (systemd, Driver::Systemd)] {
                let directory = path.rsplit('/').next().unwrap();
                assert_eq!(pod_of_directory(directory, driver), Some(uid.clone()));
            }
        }
    }

    #[test]
    fn the_configured_root_is_a_prefix() {
        let tree = Tree::new(&CgroupName::parse("/machine/node-1/").unwrap());
        assert_eq!(tree.kubepods().path(Driver::Cgroupfs), "/machine/node-1/kubepods");
        assert_eq!(
            tree.kubepods().path(Driver::Systemd),
            "/machine.slice/machine-node_1.slice/machine-node_1-kubepods.slice"
        );
        assert_eq!(CgroupName::parse("/").unwrap().path(Driver::Systemd), "/");
    }

    #[test]
    fn cgroups_that_others_made_are_found_by_their_path_or_slice() {
        let paths = [("/system", "/system"), ("system", "/system"), ("/kube_daemons/x", "/kube_daemons/x")];
        for (text, path) in paths {
            assert_eq!(CgroupName::of_path(text).unwrap().path(Driver::Cgroupfs), path);
        }
        for (text, path) in [
            ("system.slice", "/system.slice"),
            ("/system.slice", "/system.slice"),
            ("kube", "/kube.slice"),
            ("kube-reserved.slice", "/kube.slice/kube-reserved.slice"),
            ("/kube.slice/kube-my_daemons.slice", "/kube.slice/kube-my_daemons.slice"),
        ] {
            assert_eq!(CgroupName::of_slice(text).unwrap().path(Driver::Systemd), path, "{text}");
        }
        assert!(CgroupName::of_path("/a/../..").is_err());
    }

    #[test]
    fn names_that_a_driver_cannot_tell_apart_are_refused() {
        for path in ["/a_b", "/../x", "/a/./b"] {
            assert!(CgroupName::parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn other_directories_are_no_pods() {
        for directory in ["burstable", "pod", "cri-containerd-x"] {
            assert_eq!(pod_of_directory(directory, Driver::Cgroupfs), None, "{directory}");
        }
        assert_eq!(pod_of_directory("kubepods-burstable.slice", Driver::Systemd), None);
    }
}
