//! nf_tables over nfnetlink: our own encoder and the one socket that talks to the kernel.
//!
//! A [`batch::Batch`] is a value: messages written straight into one reused buffer, committed as one transaction by
//! [`socket::Kernel`], so that the kernel applies all of it or nothing. [`expr`] knows tables, chains and sets, [`rule`] the
//! expressions that our rules are made of, [`decode`] reads elements back, [`listener`] hears when somebody else changes the ruleset.
//!
//! What it does not do: it knows nothing of Services, never touches a table that it was not told to, never executes `nft`,
//! and uses nothing newer than Linux 5.15. Wire facts: `linux/netfilter/nf_tables.h` and libnftnl's behaviour as printed
//! by `nft --debug=netlink`.
//!
//! Since which Linux there is what we use (headers and sources of 4.4, 4.14, 4.19, 5.4 and 5.10; git log for the rest):
//!
//! | what | since |
//! |---|---|
//! | tables, chains, sets, maps, verdict maps; `payload`, `meta`, `cmp`, `bitwise`, `lookup`, `immediate`, `ct`, `nat`, `reject` | 3.13 |
//! | `meta l4proto` | 3.14 |
//! | batches as transactions (`NFNL_MSG_BATCH_BEGIN`, `_END`); one without an end is validated and taken back | 3.16 |
//! | `masq` with flags | 3.18 |
//! | 32-bit registers, which concatenations need; elements with timeouts; `dynset` with data | 4.1 |
//! | acknowledgements without the message (`NETLINK_CAP_ACK`) | 4.3 |
//! | `numgen random` | 4.9 |
//! | `ct original ip daddr` and `ip6 daddr` by family (`NFT_CT_DST_IP`, `NFT_CT_DST_IP6`) | 4.17 |
//! | `NFT_SET_CONCAT` with the lengths of fields, `NFTA_SET_ELEM_KEY_END`: ranges within concatenations (`allowed`) | 5.6 |
//!
//! `make test-old-kernels` runs the suite `services` on 5.10 and 6.1, `make test-nft-versions` lists the tables with old and new `nft`.

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
