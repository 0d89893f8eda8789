//! Expressions of rules, and the objects of a table, as messages. Each function names the line of `nft` that it stands for.

use super::Family;
use super::batch::{Batch, Message};

/// A 32-bit register slot as nft numbers them: the first four are one 128-bit register called 1, later ones count on.
fn register(slot: u32) -> u32 {
    // NFT_REG_1 to NFT_REG_4 are 1 to 4, each of four slots; NFT_REG32_00 is 8.
    if slot.is_multiple_of(4) { 1 + slot / 4 } else { 8 + slot }
}

/// Slots of an address of a family.
fn address_slots(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// The verdicts that we use, with the numbers of `linux/netfilter/nf_tables.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Go to a chain and come back.
    Jump(&'a str),
    /// Go to a chain.
    Goto(&'a str),
    /// Come back.
    Return,
}

/// Writes a verdict as attribute `kind`.
pub fn verdict(batch: &mut Batch, kind: u16, verdict: Verdict<'_>) {
    let (code, chain) = match verdict {
        Verdict::Jump(chain) => (-3i32, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    let data = batch.nest(kind);
    let nest = batch.nest(2);
    batch.number(1, code.cast_unsigned());
    if let Some(chain) = chain {
        batch.string(2, chain);
    }
    batch.close(nest);
    batch.close(data);
}

/// Writes a value as attribute `kind`.
pub fn value(batch: &mut Batch, kind: u16, value: &[u8]) {
    let data = batch.nest(kind);
    batch.bytes(1, value);
    batch.close(data);
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
        self.expression("meta", |b| {
            b.number(1, register(slot));
            b.number(2, 16);
        });
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

    /// `masquerade fully-random`.
    pub fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |b| b.number(1, 0x10))
    }

    /// `reject`: port unreachable, which a TCP client sees as a refused connection.
    pub fn reject(&mut self) -> &mut Self {
        let code = if self.family == Family::V4 { 3 } else { 4 };
        self.expression("reject", |b| {
            b.number(1, 0);
            b.bytes(2, &[code]);
        })
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

    /// `ct original ip daddr` into slot 0.
    pub fn original_daddr(&mut self) -> &mut Self {
        let key = if self.family == Family::V4 { 20 } else { 22 };
        self.expression("ct", |b| {
            b.number(1, register(0));
            b.number(2, key);
            b.bytes(3, &[0]);
        })
    }

    /// `ip saddr != NETWORK/PREFIX`.
    pub fn saddr_outside(&mut self, network: &[u8], prefix: u8) -> &mut Self {
        self.saddr(0);
        let mask: Vec<u8> = (0..network.len()).map(|byte| prefix_byte(prefix, byte)).collect();
        self.mask(&mask);
        self.compare(true, network)
    }
}

/// One byte of a netmask.
fn prefix_byte(prefix: u8, index: usize) -> u8 {
    let bits = usize::from(prefix).saturating_sub(index * 8).min(8);
    (0xff00u16 >> bits) as u8
}

/// `add table`.
pub fn add_table(batch: &mut Batch, family: Family, table: &str) {
    let message = batch.message(Message::NewTable, family, table);
    batch.number(2, 0);
    batch.close_message(message);
}

/// `delete table`.
pub fn delete_table(batch: &mut Batch, family: Family, table: &str) {
    let message = batch.message(Message::DelTable, family, table);
    batch.close_message(message);
}

/// A hook that a base chain hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// `NF_INET_PRE_ROUTING` 0, `LOCAL_IN` 1, `FORWARD` 2, `LOCAL_OUT` 3, `POST_ROUTING` 4.
    pub number: u32,
    /// Priority.
    pub priority: i32,
}

/// `add chain`, a base chain where there is a hook.
pub fn add_chain(batch: &mut Batch, family: Family, table: &str, name: &str, hook: Option<Hook>) {
    let message = batch.message(Message::NewChain, family, table);
    batch.string(3, name);
    if let Some(hook) = hook {
        let nest = batch.nest(4);
        batch.number(1, hook.number);
        batch.number(2, hook.priority.cast_unsigned());
        batch.close(nest);
        batch.number(5, 1);
        batch.string(7, hook.kind);
    }
    batch.close_message(message);
}

/// `delete chain`.
pub fn delete_chain(batch: &mut Batch, family: Family, table: &str, name: &str) {
    let message = batch.message(Message::DelChain, family, table);
    batch.string(3, name);
    batch.close_message(message);
}

/// `flush chain`.
pub fn flush_chain(batch: &mut Batch, family: Family, table: &str, name: &str) {
    let message = batch.message(Message::DelRule, family, table);
    batch.string(2, name);
    batch.close_message(message);
}

/// Fields of keys and data, with nft's type numbers (`src/datatype.c` of nftables).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address of the table's family.
    Address,
    /// `inet_proto`.
    Protocol,
    /// `inet_service`.
    Port,
    /// A number in host byte order, declared as `mark`.
    Slot,
}

impl Field {
    fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::V4) => 7,
            (Self::Address, Family::V6) => 8,
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Slot, _) => 19,
        }
    }

    fn length(self, family: Family) -> u32 {
        if self == Self::Address { 4 * address_slots(family) } else { 4 }
    }
}

fn type_and_length(family: Family, fields: &[Field]) -> (u32, u32) {
    let number = fields.iter().fold(0, |all, field| (all << 6) | field.number(family));
    (number, fields.iter().map(|field| field.length(family)).sum())
}

/// What a map maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// Nothing: a set.
    None,
    /// A verdict.
    Verdict,
    /// A value.
    Fields(&'a [Field]),
}

/// `add set` or `add map`. `id` is any number that is unique in the batch.
pub fn add_set(batch: &mut Batch, family: Family, table: &str, name: &str, id: u32, key: &[Field], data: Data<'_>) {
    const MAP: u32 = 8;
    const CONCAT: u32 = 0x80;
    let message = batch.message(Message::NewSet, family, table);
    batch.string(2, name);
    let concat = if key.len() > 1 { CONCAT } else { 0 };
    let map = if data == Data::None { 0 } else { MAP };
    batch.number(3, concat | map);
    let (kind, length) = type_and_length(family, key);
    batch.number(4, kind);
    batch.number(5, length);
    match data {
        Data::None => {}
        Data::Verdict => {
            batch.number(6, 0xffff_ff00);
            batch.number(7, 0);
        }
        Data::Fields(fields) => {
            let (kind, length) = type_and_length(family, fields);
            batch.number(6, kind);
            batch.number(7, length);
        }
    }
    if key.len() > 1 {
        let desc = batch.nest(9);
        let concat = batch.nest(2);
        for field in key {
            let element = batch.nest(1);
            // The length within the key, not of the padded slot: a port has 2 bytes, a protocol 1.
            let length = match field {
                Field::Address => field.length(family),
                Field::Protocol => 1,
                Field::Port => 2,
                Field::Slot => 4,
            };
            batch.number(1, length);
            batch.close(element);
        }
        batch.close(concat);
        batch.close(desc);
    }
    batch.number(10, id);
    batch.close_message(message);
}

/// Elements of one set, cut into as many messages as the 16-bit length of a list asks for.
pub fn elements<'a, T>(
    batch: &mut Batch,
    message: Message,
    (family, table, set): (Family, &str, &str),
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Batch, &T) + 'a,
) {
    const CUT: usize = 32 * 1024;
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let open = batch.message(message, family, table);
        batch.string(2, set);
        let list = batch.nest(3);
        while let Some(item) = items.next_if(|_| batch.since(list) < CUT) {
            let element = batch.nest(1);
            write(batch, &item);
            batch.close(element);
        }
        batch.close(list);
        batch.close_message(open);
    }
}
