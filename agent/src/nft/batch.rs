//! A transaction in the making: netlink messages in one buffer.

use super::Family;

const SUBSYS: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
/// How much of the buffer is kept: more than a change takes. The first batches have megabytes, and the like never comes again.
const KEPT: usize = 64 << 10;

/// Message types of nf_tables that we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Add a table.
    NewTable = 0,
    /// Delete a table with all in it.
    DelTable = 2,
    /// Add a chain.
    NewChain = 3,
    /// Delete a chain.
    DelChain = 5,
    /// Append a rule.
    NewRule = 6,
    /// Delete a rule, or all of a chain.
    DelRule = 8,
    /// Add a set or map.
    NewSet = 9,
    /// Delete a set or map.
    DelSet = 11,
    /// Add elements.
    NewElements = 12,
    /// Delete elements.
    DelElements = 14,
}

/// Where an open attribute or message begins; its length is filled in when it is closed.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Mark(usize);

/// Messages of one transaction. A buffer of usual size is kept over [`Batch::clear`].
#[derive(Clone, Debug, Default)]
pub struct Batch {
    buffer: Vec<u8>,
    sequence: u32,
    last: usize,
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        let mut batch = Self::default();
        batch.clear();
        batch
    }

    /// Starts over.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.sequence = 0;
        self.last = 0;
        let mark = self.open(BATCH_BEGIN, REQUEST, 0, 10);
        self.close_message(mark);
    }

    /// Whether no message was added.
    pub fn is_empty(&self) -> bool {
        self.sequence <= 1
    }

    /// How many messages were added.
    pub fn len(&self) -> u32 {
        self.sequence - 1
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.buffer.len()
    }

    /// The transaction without an end: its last message asks for an acknowledgement, and errors come unasked. The kernel
    /// validates it and takes it back, as for `nft --check`.
    pub fn question(&mut self) -> &[u8] {
        let flags = self.last + 6;
        let asked = u16::from_ne_bytes([self.buffer[flags], self.buffer[flags + 1]]) | ACK;
        self.buffer[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        &self.buffer
    }

    /// The finished transaction.
    pub fn finish(&mut self) -> &[u8] {
        self.question();
        let mark = self.open(BATCH_END, REQUEST, 0, 10);
        self.close_message(mark);
        &self.buffer
    }

    /// Sequence number of the last real message, whose acknowledgement ends the transaction.
    pub fn last_sequence(&self) -> u32 {
        let at = self.last + 8;
        u32::from_ne_bytes([self.buffer[at], self.buffer[at + 1], self.buffer[at + 2], self.buffer[at + 3]])
    }

    fn open(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> Mark {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&self.sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        self.sequence += 1;
        Mark(at)
    }

    /// Begins a message about `table`.
    pub fn message(&mut self, message: Message, family: Family, table: &str) -> Mark {
        let flags = match message {
            Message::NewTable | Message::NewChain | Message::NewSet | Message::NewElements => REQUEST | CREATE,
            Message::NewRule => REQUEST | CREATE | APPEND,
            Message::DelTable | Message::DelChain | Message::DelRule | Message::DelSet | Message::DelElements => {
                REQUEST
            }
        };
        let mark = self.open(SUBSYS | message as u16, flags, family.number(), 0);
        self.last = mark.0;
        self.string(1, table);
        mark
    }

    /// Ends a message.
    pub fn close_message(&mut self, mark: Mark) {
        let length = u32::try_from(self.buffer.len() - mark.0).expect("a message is far below 4 GiB");
        self.buffer[mark.0..mark.0 + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Begins a nested attribute.
    pub fn nest(&mut self, kind: u16) -> Mark {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Mark(at)
    }

    /// Ends a nested attribute. Its length has 16 bits; element lists are cut before that.
    pub fn close(&mut self, mark: Mark) {
        let length = u16::try_from(self.buffer.len() - mark.0).expect("element lists are cut at 32 KiB");
        self.buffer[mark.0..mark.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }

    /// A number in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub fn string(&mut self, kind: u16, value: &str) {
        let length = u16::try_from(value.len() + 5).expect("names are short");
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }

    /// Bodies (after `nfgenmsg`) of the messages of one type.
    pub fn messages(&self, message: Message) -> impl Iterator<Item = &[u8]> {
        let all = super::decode::messages(&self.buffer);
        all.filter(move |(kind, _, _)| *kind == SUBSYS | message as u16).filter_map(|(_, _, body)| body.get(4..))
    }

    /// Bytes since a mark; element lists are cut by it.
    pub fn since(&self, mark: Mark) -> usize {
        self.buffer.len() - mark.0
    }
}

/// Size of the netlink header in front of every message.
pub const MESSAGE_HEADER: usize = HEADER;
