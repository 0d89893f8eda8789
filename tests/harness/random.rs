//! Moments that look random and can be had again.

use std::hash::{BuildHasher, Hasher};

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `NODELET_TEST_SEED`, or a new one each time; a test prints [`Random::seed`] before it begins.
    pub fn from_env() -> Self {
        let given = std::env::var("NODELET_TEST_SEED").ok().and_then(|text| text.parse().ok());
        Self(given.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish()))
    }

    /// From a number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// What begins the same row of numbers again.
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
