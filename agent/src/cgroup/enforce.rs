//! Node allocatable as limits of the kernel: of all pods together, and of daemons that have something reserved.
//!
//! The cgroup of all pods is ours and gets its limits whatever `enforceNodeAllocatable` says; only how large they are depends
//! on it. Cgroups of daemons are somebody else's: they must exist, and only the values that are reserved are written.

use super::name::{CgroupName, Driver};
use super::plan;
use super::resources::ResourceList;
use super::{Backend, CgroupError, Cgroups, Inner};

/// Whose daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemons {
    /// The system's (`systemReserved`).
    System,
    /// Kubernetes' own (`kubeReserved`).
    Kube,
}

/// A cgroup of daemons that is held to what is reserved for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Whose.
    pub daemons: Daemons,
    /// The cgroup, as configured: a path, or with systemd the name of a slice.
    pub cgroup: String,
    /// What is reserved.
    pub amounts: ResourceList,
    /// `*-compressible`: CPU alone.
    pub is_cpu_only: bool,
}

impl Cgroups {
    /// Holds all pods together to what the node has for them. Fails on v1 while they use more memory than that.
    pub async fn enforce_pods(&self) -> Result<(), CgroupError> {
        self.blocking(|inner| match inner.settings.qos_cgroups {
            true => inner.apply(inner.tree.kubepods(), &plan::kubepods_values(&inner.settings.allocatable)),
            false => Ok(()),
        })
        .await
    }

    /// Holds daemons to what is reserved for them.
    pub async fn enforce_reserved(&self, reserved: &Reserved) -> Result<(), CgroupError> {
        let reserved = reserved.clone();
        self.blocking(move |inner| inner.enforce_reserved(&reserved)).await
    }

    /// The name of the cgroup of all pods, as kubelet's events write it.
    pub fn pods_name(&self) -> String {
        format!("{:?}", self.inner.tree.kubepods().components()).replace(", ", " ")
    }
}

impl Inner {
    fn enforce_reserved(&self, reserved: &Reserved) -> Result<(), CgroupError> {
        if reserved.amounts.is_empty() {
            return Err(CgroupError::NothingReserved(reserved.cgroup.clone()));
        }
        let name = CgroupName::of_existing(&reserved.cgroup, self.settings.driver)?;
        let path = name.path(self.settings.driver);
        let missing = match &self.hierarchies {
            Backend::V1(v1) => v1.missing(&path),
            Backend::V2(v2) => v2.missing(&path),
        };
        if !missing.is_empty() {
            return Err(CgroupError::Missing { name: reserved.cgroup.clone(), missing: missing.join(", ") });
        }
        let values = plan::reserved_values(&reserved.amounts, reserved.is_cpu_only, self.settings.memory_qos);
        self.apply(&name, &values)
    }
}

impl CgroupName {
    /// Reads the name of a cgroup that somebody else made: below cgroupfs a path, with systemd a slice.
    fn of_existing(text: &str, driver: Driver) -> Result<Self, CgroupError> {
        let name = match driver {
            Driver::Cgroupfs => Self::of_path(text),
            Driver::Systemd => Self::of_slice(text),
        };
        Ok(name?)
    }
}
