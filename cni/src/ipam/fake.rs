//! A store in memory that crashes on request. The contract with [`super::disk`]: `save` is all or nothing.

use super::{Leases, Store, StoreError};

/// What the next `save` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// It works.
    #[default]
    None,
    /// The process dies before the new leases are visible.
    CrashBefore,
    /// The process dies after they are visible and before it could say so.
    CrashAfter,
}

/// Leases in memory.
#[derive(Debug, Default)]
pub struct FakeStore {
    /// What is "on disk".
    pub leases: Leases,
    /// Applies to the next `save` only.
    pub fault: Fault,
}

impl Store for FakeStore {
    fn load(&mut self) -> Result<Leases, StoreError> {
        Ok(self.leases.clone())
    }

    fn save(&mut self, leases: &Leases) -> Result<(), StoreError> {
        let fault = std::mem::take(&mut self.fault);
        if fault != Fault::CrashBefore {
            self.leases = leases.clone();
        }
        match fault {
            Fault::None => Ok(()),
            Fault::CrashBefore | Fault::CrashAfter => Err(StoreError::Io {
                action: "write",
                path: "memory".to_owned(),
                source: std::io::Error::other("the process was killed"),
            }),
        }
    }
}
