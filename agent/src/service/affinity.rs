//! Session affinity whose endpoint is gone.
//!
//! Packets remember for each client of a front which endpoint it had, and the next connection goes there before anything
//! else is looked at. So when an endpoint goes, its clients are to be forgotten: those that are known by then in the
//! transaction that takes the endpoint away, those that connected meanwhile right after it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use super::element::{family, read_affinity};
use super::program::{Program, Way};
use super::structure::{SetName, TABLE};
use super::table::Tables;
use super::{Backend, Front, Local};
use crate::nft::Family;
use crate::nft::batch::{Batch, Message};
use crate::nft::expr::{self, elements};
use crate::nft::socket::{Kernel, again};

/// Whether a client's endpoint no longer serves it.
pub fn is_stale(local: &Local, program: Option<&Program>, client: IpAddr, backend: &Backend) -> bool {
    let Some(program) = program.filter(|program| program.affinity.is_some()) else { return true };
    let has = |way: &Way| way.backends().any(|other| other == *backend);
    let all = has(&program.all);
    let Some(way) = &program.local else { return !all };
    match local {
        Local::Networks(networks) if networks.iter().any(|network| network.contains(client)) => !all,
        Local::Networks(_) => !has(way),
        // Where the client is cannot be told from its address.
        Local::Interface(_) | Local::InterfacePrefix(_) => !all && !has(way),
    }
}

/// Writes deletions of what is remembered in vain for these fronts; answers how many.
pub fn forget(
    kernel: &mut Kernel,
    batch: &mut Batch,
    fronts: &BTreeSet<Front>,
    (local, tables): (&Local, &Tables),
) -> io::Result<usize> {
    let mut count = 0;
    for of in [Family::V4, Family::V6] {
        if !fronts.iter().any(|front| family(front.address) == of) {
            continue;
        }
        let stale = again(|| {
            let mut stale: Vec<Vec<u8>> = Vec::new();
            kernel.elements(of, TABLE, SetName::Affinity.name(), |raw| {
                let Some((front, client, backend)) = read_affinity(of, raw) else { return };
                if fronts.contains(&front) && is_stale(local, tables.program(&front), client, &backend) {
                    stale.push(raw.key.to_vec());
                }
            })?;
            Ok(stale)
        })?;
        count += stale.len();
        elements(batch, Message::DelElements, (of, TABLE, SetName::Affinity.name()), stale, |b, key| {
            expr::value(b, 1, key);
        });
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Cidr;
    use crate::service::program::Way;

    #[test]
    fn a_client_is_forgotten_when_its_endpoint_no_longer_serves_it() {
        let backend = |n: u8| Backend { address: [10, 244, 0, n].into(), port: 80 };
        let to = |numbers: &[u8]| Way::To(numbers.iter().map(|n| backend(*n)).collect());
        let program = |all: &[u8], local: Option<&[u8]>| Program {
            all: to(all),
            local: local.map(to),
            affinity: Some(60),
            ..Program::default()
        };
        let local = Local::Networks(vec![Cidr::parse("10.244.0.0/16").unwrap()]);
        let (pod, outside) = ([10, 244, 9, 9].into(), [192, 0, 2, 1].into());
        for (what, program, client, stale) in [
            ("it serves", Some(program(&[1, 2], None)), pod, false),
            ("it is gone", Some(program(&[2], None)), pod, true),
            ("the Service is gone", None, pod, true),
            ("affinity is off", Some(Program { affinity: None, ..program(&[1], None) }), pod, true),
            ("it is elsewhere, for a pod", Some(program(&[1, 2], Some(&[2]))), pod, false),
            ("it is elsewhere, for somebody outside", Some(program(&[1, 2], Some(&[2]))), outside, true),
            ("it is here, for somebody outside", Some(program(&[1, 2], Some(&[1]))), outside, false),
        ] {
            assert_eq!(is_stale(&local, program.as_ref(), client, &backend(1)), stale, "{what}");
        }
    }
}
