use std::fmt;

use serde_json::{Value, json};

/// The specification's error codes (section 5, "Error"), and nodelet's own from 100 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the configuration asks for a version that the plugin does not speak.
    IncompatibleVersion,
    /// 2: a field that the plugin does not support.
    UnsupportedField,
    /// 3: the container does not exist.
    UnknownContainer,
    /// 4: an environment variable is missing or malformed.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: the configuration is not JSON of the expected form.
    Decode,
    /// 7: the configuration is well-formed and wrong.
    InvalidConfig,
    /// 11: a transient condition; try again.
    TryAgainLater,
    /// 50: no ADD can succeed now.
    NotAvailable,
    /// 51: no ADD can succeed now, and containers that run may have lost their connectivity.
    LimitedConnectivity,
    /// 100: the kernel refused a step.
    Kernel,
    /// 101: every address of a range is taken.
    Exhausted,
    /// 102: the interface exists already in the container.
    Exists,
    /// 103: CHECK found a difference.
    CheckFailed,
    /// A code of another plugin.
    Other(u32),
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Kernel => 100,
            Self::Exhausted => 101,
            Self::Exists => 102,
            Self::CheckFailed => 103,
            Self::Other(number) => number,
        }
    }

    /// The meaning of a number from any plugin; 100 and above belong to the plugin and stay `Other`.
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            other => Self::Other(other),
        }
    }
}

/// An error as it goes to the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// What kind of failure; also decides the exit code.
    pub code: Code,
    /// One line: what was expected, what was found.
    pub msg: String,
    /// More of it, may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The error JSON of the specification in the version of the request.
    pub fn to_json(&self, version: &str) -> Value {
        let mut json = json!({ "cniVersion": version, "code": self.code.number(), "msg": self.msg });
        if !self.details.is_empty() {
            json["details"] = self.details.clone().into();
        }
        json
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        write!(f, " (CNI code {})", self.code.number())
    }
}

impl std::error::Error for CniError {}
