//! The objects of a table as messages: tables, chains, sets and elements. Each function names the line of `nft` that it
//! stands for. Rules are in [`rule`](super::rule).

use super::Family;
use super::batch::{Batch, Message};
pub use super::rule::{Rule, rule};

/// Slots of an address of a family.
pub(super) fn address_slots(family: Family) -> u32 {
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
    /// Drop the packet.
    Drop,
}

/// Writes a verdict as attribute `kind`.
pub fn verdict(batch: &mut Batch, kind: u16, verdict: Verdict<'_>) {
    let (code, chain) = match verdict {
        Verdict::Jump(chain) => (-3i32, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
        Verdict::Drop => (0, None),
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
        match self {
            Self::Address => 4 * address_slots(family),
            Self::Protocol | Self::Port | Self::Slot => 4,
        }
    }

    /// The length within the key, not of the padded slot: a port has 2 bytes, a protocol 1.
    fn unpadded(self, family: Family) -> u32 {
        match self {
            Self::Address | Self::Slot => self.length(family),
            Self::Protocol => 1,
            Self::Port => 2,
        }
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

/// What kind of set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Elements that we write, compared as a whole.
    Plain,
    /// `flags interval`: the fields of an element are ranges.
    Interval,
    /// `flags dynamic,timeout`: rules write elements, so many at most.
    Dynamic {
        /// The most.
        size: u32,
    },
}

/// A set or map.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// Name.
    pub name: &'a str,
    /// Any number that is unique in the batch.
    pub id: u32,
    /// Fields of the key.
    pub key: &'a [Field],
    /// What it maps to.
    pub data: Data<'a>,
    /// Its kind.
    pub kind: Kind,
}

impl Set<'_> {
    fn flags(&self) -> u32 {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        const CONCAT: u32 = 0x80;
        let kind = match self.kind {
            Kind::Plain => 0,
            Kind::Interval => INTERVAL,
            Kind::Dynamic { .. } => TIMEOUT | EVAL,
        };
        let concat = if self.key.len() > 1 { CONCAT } else { 0 };
        let map = if self.data == Data::None { 0 } else { MAP };
        kind | concat | map
    }
}

/// `add set` or `add map`.
pub fn add_set(batch: &mut Batch, family: Family, table: &str, set: Set<'_>) {
    let message = batch.message(Message::NewSet, family, table);
    batch.string(2, set.name);
    batch.number(3, set.flags());
    let (kind, length) = type_and_length(family, set.key);
    batch.number(4, kind);
    batch.number(5, length);
    match set.data {
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
    write_description(batch, family, &set);
    batch.number(10, set.id);
    batch.close_message(message);
}

fn write_description(batch: &mut Batch, family: Family, set: &Set<'_>) {
    let size = match set.kind {
        Kind::Dynamic { size } => Some(size),
        Kind::Plain | Kind::Interval => None,
    };
    if set.key.len() < 2 && size.is_none() {
        return;
    }
    let desc = batch.nest(9);
    if let Some(size) = size {
        batch.number(1, size);
    }
    if set.key.len() > 1 {
        let concat = batch.nest(2);
        for field in set.key {
            let element = batch.nest(1);
            batch.number(1, field.unpadded(family));
            batch.close(element);
        }
        batch.close(concat);
    }
    batch.close(desc);
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
