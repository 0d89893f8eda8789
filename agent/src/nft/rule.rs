//! Rules as messages: one function for each piece of `nft`'s language that our rules are made of.

use super::Family;
use super::batch::{Batch, Message};
use super::expr::{Verdict, address_slots, value, verdict};

/// A 32-bit register slot as nft numbers them: the first four are one 128-bit register called 1, later ones count on.
fn register(slot: u32) -> u32 {
    // NFT_REG_1 to NFT_REG_4 are 1 to 4, each of four slots; NFT_REG32_00 is 8.
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

/// A rule in the making.
pub struct Rule<'a> {
    batch: &'a mut Batch,
    family: Family,
}

/// Appends a rule to a chain.
pub fn rule(batch: &mut Batch, family: Family, table: &str, chain: &str, build: impl FnOnce(&mut Rule<'_>)) {
    let message = batch.message(Message::NewRule, family, table);
    batch.string(2, chain);
    let expressions = batch.nest(4);
    build(&mut Rule { batch, family });
    batch.close(expressions);
    batch.close_message(message);
}

impl Rule<'_> {
    fn expression(&mut self, name: &str, build: impl FnOnce(&mut Batch)) -> &mut Self {
        let element = self.batch.nest(1);
        self.batch.string(1, name);
        let data = self.batch.nest(2);
        build(self.batch);
        self.batch.close(data);
        self.batch.close(element);
        self
    }

    fn payload(&mut self, slot: u32, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |b| {
            b.number(1, register(slot));
            b.number(2, base);
            b.number(3, offset);
            b.number(4, length);
        })
    }

    /// `ip saddr` into a slot; answers the next slot.
    pub fn saddr(&mut self, slot: u32) -> u32 {
        match self.family {
            Family::V4 => self.payload(slot, 1, 12, 4),
            Family::V6 => self.payload(slot, 1, 8, 16),
        };
        slot + address_slots(self.family)
    }

    /// `ip daddr` into a slot; answers the next slot.
    pub fn daddr(&mut self, slot: u32) -> u32 {
        match self.family {
            Family::V4 => self.payload(slot, 1, 16, 4),
            Family::V6 => self.payload(slot, 1, 24, 16),
        };
        slot + address_slots(self.family)
    }

    /// `ip daddr . meta l4proto . th dport` from slot 0 on; answers the next slot.
    pub fn destination(&mut self) -> u32 {
        let slot = self.daddr(0);
        self.protocol(slot);
        self.payload(slot + 1, 2, 2, 2);
        slot + 2
    }

    /// `numgen random mod N` into a slot.
    pub fn random(&mut self, slot: u32, modulus: u32) -> &mut Self {
        self.expression("numgen", |b| {
            b.number(1, register(slot));
            b.number(2, modulus);
            b.number(3, 1);
            b.number(4, 0);
        })
    }

    /// `@set`: the rule goes on when slot 0 and following are in the set.
    pub fn in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |b| {
            b.string(1, set);
            b.number(2, register(0));
        })
    }

    /// `map @map`: what slot 0 and following map to, into slot 0 and following.
    pub fn map(&mut self, map: &str) -> &mut Self {
        self.expression("lookup", |b| {
            b.string(1, map);
            b.number(2, register(0));
            b.number(3, register(0));
        })
    }

    /// `vmap @map`.
    pub fn vmap(&mut self, map: &str) -> &mut Self {
        self.expression("lookup", |b| {
            b.string(1, map);
            b.number(2, register(0));
            b.number(3, 0);
        })
    }

    /// `dnat to ADDRESS:PORT` from slot 0 and the one after the address.
    pub fn dnat(&mut self) -> &mut Self {
        let family = self.family;
        self.expression("nat", |b| {
            b.number(1, 1);
            b.number(2, u32::from(family.number()));
            b.number(3, register(0));
            b.number(5, register(address_slots(family)));
        })
    }

    /// `update @map { ct original ip daddr . meta l4proto . ct original proto-dst . ip saddr timeout SECONDS : ip daddr .
    /// th dport }`
    pub fn remember(&mut self, map: &str, seconds: u32) {
        let client = self.original_destination();
        let backend = self.saddr(client);
        let port = self.daddr(backend);
        self.payload(port, 2, 2, 2);
        self.expression("dynset", |b| {
            b.string(1, map);
            b.number(3, 1);
            b.number(4, register(0));
            b.number(5, register(backend));
            b.bytes(6, &(u64::from(seconds) * 1000).to_be_bytes());
        });
    }

    /// `masquerade fully-random`.
    pub fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |b| b.number(1, 0x10))
    }

    /// `reject`: port unreachable, which a client sees as a refused connection.
    pub fn reject(&mut self) -> &mut Self {
        let code = if self.family == Family::V4 { 3 } else { 4 };
        self.expression("reject", |b| {
            b.number(1, 0);
            b.bytes(2, &[code]);
        })
    }

    /// `reject with tcp reset`.
    pub fn reject_with_reset(&mut self) -> &mut Self {
        self.expression("reject", |b| {
            b.number(1, 1);
        })
    }

    fn protocol(&mut self, slot: u32) -> &mut Self {
        self.expression("meta", |b| {
            b.number(1, register(slot));
            b.number(2, 16);
        })
    }

    /// `meta l4proto tcp`.
    pub fn is_tcp(&mut self) -> &mut Self {
        self.protocol(0).compare(false, &[6])
    }

    /// `iifname NAME`, or `iifname NAME*`, or not.
    pub fn input_interface(&mut self, not: bool, name: &str, is_prefix: bool) {
        self.expression("meta", |b| {
            b.number(1, register(0));
            b.number(2, 6);
        });
        let mut name = name.as_bytes().to_vec();
        if !is_prefix {
            name.resize(16, 0);
        }
        self.compare(not, &name);
    }

    /// `jump CHAIN` and the like.
    pub fn verdict(&mut self, what: Verdict<'_>) -> &mut Self {
        self.expression("immediate", |b| {
            b.number(1, 0);
            verdict(b, 2, what);
        })
    }

    fn compare(&mut self, not: bool, with: &[u8]) -> &mut Self {
        self.expression("cmp", |b| {
            b.number(1, register(0));
            b.number(2, u32::from(not));
            value(b, 3, with);
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |b| {
            b.number(1, register(0));
            b.number(2, register(0));
            b.number(3, u32::try_from(mask.len()).expect("an address at most"));
            value(b, 4, mask);
            value(b, 5, &[0; 16][..mask.len()]);
        })
    }

    /// `ct state new`.
    pub fn is_new(&mut self) -> &mut Self {
        self.expression("ct", |b| {
            b.number(1, register(0));
            b.number(2, 0);
        });
        self.mask(&8u32.to_ne_bytes());
        self.compare(true, &[0; 4])
    }

    /// `ct status & dnat == 0`.
    pub fn is_not_translated(&mut self) -> &mut Self {
        self.expression("ct", |b| {
            b.number(1, register(0));
            b.number(2, 2);
        });
        // IPS_DST_NAT is bit 5.
        self.mask(&0x20u32.to_ne_bytes());
        self.compare(false, &[0; 4])
    }

    fn original(&mut self, key: u32, slot: u32) -> &mut Self {
        self.expression("ct", |b| {
            b.number(1, register(slot));
            b.number(2, key);
            b.bytes(3, &[0]);
        })
    }

    /// `ct original ip daddr` into slot 0.
    pub fn original_daddr(&mut self) -> u32 {
        let key = if self.family == Family::V4 { 20 } else { 22 };
        self.original(key, 0);
        address_slots(self.family)
    }

    /// `ct original ip daddr . meta l4proto . ct original proto-dst` from slot 0 on; answers the next slot.
    pub fn original_destination(&mut self) -> u32 {
        let slot = self.original_daddr();
        self.protocol(slot).original(12, slot + 1);
        slot + 2
    }

    /// `ip saddr NETWORK/PREFIX`, or not.
    pub fn saddr_within(&mut self, not: bool, network: &[u8], prefix: u8) {
        self.within(not, if self.family == Family::V4 { 12 } else { 8 }, network, prefix);
    }

    /// `ip daddr NETWORK/PREFIX`.
    pub fn daddr_within(&mut self, network: &[u8], prefix: u8) -> &mut Self {
        self.within(false, if self.family == Family::V4 { 16 } else { 24 }, network, prefix);
        self
    }

    /// Whether the address at an offset of the network header is in a network.
    fn within(&mut self, not: bool, offset: u32, network: &[u8], prefix: u8) {
        let bytes = usize::from(prefix / 8);
        if prefix.is_multiple_of(8) && prefix > 0 && bytes < network.len() {
            // Whole bytes need no mask.
            self.payload(0, 1, offset, u32::from(prefix / 8)).compare(not, &network[..bytes]);
            return;
        }
        self.payload(0, 1, offset, 4 * address_slots(self.family));
        let mask: Vec<u8> = (0..network.len()).map(|byte| prefix_byte(prefix, byte)).collect();
        self.mask(&mask);
        self.compare(not, network);
    }
}

/// One byte of a netmask.
fn prefix_byte(prefix: u8, index: usize) -> u8 {
    let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
    (0xff00u16 >> bits) as u8
}
