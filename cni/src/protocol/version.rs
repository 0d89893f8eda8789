use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// The first version with `interfaces` in the result.
    pub const V0_3_0: Self = Self::new(0, 3, 0);
    /// 0.3.0 with a corrected example.
    pub const V0_3_1: Self = Self::new(0, 3, 1);
    /// CHECK, and `prevResult` for DEL.
    pub const V0_4_0: Self = Self::new(0, 4, 0);
    /// `ips[].version` is gone.
    pub const V1_0_0: Self = Self::new(1, 0, 0);
    /// GC, STATUS, `cniVersions`, and more fields in the result.
    pub const V1_1_0: Self = Self::new(1, 1, 0);

    const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

/// The versions that nodelet's plugin speaks, oldest first.
pub const SUPPORTED: [Version; 4] = [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.split('.').map(|part| part.parse().ok());
            let version = Self::new(parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?);
            parts.next().is_none().then_some(version)
        };
        parse().ok_or_else(|| format!("{text:?} is not a CNI version such as 1.0.0"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
