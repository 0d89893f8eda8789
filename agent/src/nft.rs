//! nf_tables over nfnetlink: our own encoder and the one socket that talks to the kernel.
//!
//! A [`batch::Batch`] is a value: messages written straight into one reused buffer, committed as one transaction by
//! [`socket::Kernel`], so that the kernel applies all of it or nothing. [`expr`] knows tables, chains and sets, [`rule`] the
//! expressions that our rules are made of, [`decode`] reads elements back, [`listener`] hears when somebody else changes the ruleset.
//!
//! What it does not do: it knows nothing of Services, never touches a table that it was not told to, never executes `nft`,
//! and uses nothing newer than Linux 5.15. Wire facts: `linux/netfilter/nf_tables.h` and libnftnl's behaviour as printed
//! by `nft --debug=netlink`.

pub mod batch;
pub mod decode;
pub mod expr;
pub mod listener;
pub mod rule;
pub mod socket;

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ip`.
    V4,
    /// `ip6`.
    V6,
}

impl Family {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Why the kernel did not take a batch or answer a dump.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refused one message; nothing of the batch was applied.
    #[error("nf_tables refused message {sequence} of the batch: {source}")]
    Refused {
        /// Sequence number of the message in its batch.
        sequence: u32,
        /// The errno.
        source: std::io::Error,
    },
    /// The socket failed.
    #[error("nfnetlink socket: {0}")]
    Socket(#[from] std::io::Error),
}
