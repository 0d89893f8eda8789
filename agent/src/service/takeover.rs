//! What a kube-proxy left on the node. Its rules translate by what it last saw, so once ours stand they must go: a packet
//! would meet whichever hook was registered first.
//!
//! The tables of its nftables mode are its own and are removed. The chains of its iptables mode stand in tables that others
//! share; they are told in the log, with what removes them. Those of `iptables-legacy` cannot be seen from here.
//! Connections that kube-proxy translated go on: conntrack knows them without the rules.

use std::collections::BTreeSet;

use crate::nft::batch::Batch;
use crate::nft::socket::{Dump, Kernel};
use crate::nft::{Family, NftError, decode, expr};

/// Table of kube-proxy's nftables mode, in both families.
const TABLE: &str = "kube-proxy";
/// A chain that kube-proxy's iptables mode always has.
const IPTABLES_CHAIN: &str = "KUBE-SERVICES";

/// What is kube-proxy's of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// The table of its nftables mode.
    table: bool,
    /// Chains of its iptables mode.
    iptables: bool,
}

/// Takes note of a chain. Pure.
fn take_in(found: &mut Found, table: &str, chain: &str) {
    found.table |= table == TABLE;
    found.iptables |= matches!(table, "nat" | "filter") && chain == IPTABLES_CHAIN;
}

/// Removes the tables of kube-proxy's nftables mode, and tells of what is left of its iptables mode.
pub fn take_over(kernel: &mut Kernel, batch: &mut Batch) -> Result<(), NftError> {
    let mut removed = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let found = kernel.dump(family, Dump::Chains, |body, found: &mut Found| {
            if let (Some(table), Some(chain)) = (decode::string(body, 1), decode::string(body, 3)) {
                take_in(found, table, chain);
            }
        })?;
        if found.table {
            expr::delete_table(batch, family, TABLE);
            removed.insert(family);
        }
        if found.iptables {
            tracing::warn!(
                ?family,
                "chains of kube-proxy's iptables mode are on this node and translate by what it last saw; stop it and run `kube-proxy --cleanup`"
            );
        }
    }
    if !removed.is_empty() {
        kernel.commit(batch)?;
        batch.clear();
        tracing::warn!(families = ?removed, "removed the nftables tables of kube-proxy; where it still runs on this node, stop it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kube_proxys_tables_and_chains_are_told_from_others() {
        let mut found = Found::default();
        for (table, chain) in [("nodelet", "services"), ("nat", "CNI-HOSTPORT-DNAT"), ("other", "KUBE-SERVICES")] {
            take_in(&mut found, table, chain);
        }
        assert_eq!(found, Found::default());
        take_in(&mut found, "nat", "KUBE-SERVICES");
        assert_eq!(found, Found { table: false, iptables: true });
        take_in(&mut found, "kube-proxy", "nat-prerouting");
        assert_eq!(found, Found { table: true, iptables: true });
    }
}
