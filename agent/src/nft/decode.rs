//! Reading netlink answers: attributes, and the elements, chains and sets of a dump. Never panics on what it is given.

/// Attributes of a message or nested attribute, as (kind, value).
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    marked(bytes).map(|(kind, _, value)| (kind, value))
}

/// The value of one attribute.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A string attribute without its terminating zero.
pub fn string(bytes: &[u8], kind: u16) -> Option<&str> {
    let value = attribute(bytes, kind)?;
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementData<'a> {
    /// Nothing: an element of a set.
    None,
    /// A value.
    Value(&'a [u8]),
    /// A verdict that goes to a chain.
    Chain(&'a str),
    /// The verdict that drops.
    Drop,
}

/// An element as it stands in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw<'a> {
    /// Key.
    pub key: &'a [u8],
    /// The end of the range that begins with the key, in sets of ranges.
    pub end: Option<&'a [u8]>,
    /// What it maps to.
    pub data: ElementData<'a>,
}

/// Elements of a `NFT_MSG_NEWSETELEM` message body (after `nfgenmsg`).
pub fn elements(body: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    attribute(body, 3).into_iter().flat_map(attributes).filter_map(|(_, element)| {
        let key = attribute(attribute(element, 1)?, 1)?;
        let end = attribute(element, 10).and_then(|end| attribute(end, 1));
        let data = match attribute(element, 2) {
            None => ElementData::None,
            Some(data) => match (attribute(data, 1), attribute(data, 2)) {
                (Some(value), _) => ElementData::Value(value),
                (None, Some(verdict)) => match string(verdict, 2) {
                    Some(chain) => ElementData::Chain(chain),
                    None => ElementData::Drop,
                },
                (None, None) => ElementData::None,
            },
        };
        Some(Raw { key, end, data })
    })
}

/// Whether an attribute list of the kernel says all that `ours` says. The kernel sorts attributes in its own way, adds
/// some, and does not mark which are lists; ours are marked.
pub fn contains(theirs: &[u8], ours: &[u8]) -> bool {
    let mut theirs: Vec<(u16, &[u8])> = attributes(theirs).collect();
    let ours: Vec<(u16, bool, &[u8])> = marked(ours).collect();
    // Lists repeat one kind; there an element more is a difference.
    let count = |kind| ours.iter().filter(|(k, _, _)| *k == kind).count();
    let is_list = ours.first().is_some_and(|(kind, _, _)| count(*kind) > 1 || theirs.iter().all(|(k, _)| k == kind));
    if is_list && theirs.len() != ours.len() {
        return false;
    }
    ours.iter().all(|(kind, is_nested, value)| {
        let Some(at) = theirs.iter().position(|(k, _)| k == kind) else { return false };
        let (_, found) = theirs.remove(at);
        if *is_nested { contains(found, value) } else { found == *value }
    })
}

/// Attributes with whether they are marked as lists.
fn marked(mut bytes: &[u8]) -> impl Iterator<Item = (u16, bool, &[u8])> {
    std::iter::from_fn(move || {
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, kind & 0x8000 != 0, value))
    })
}

/// Messages of a datagram, as (type, sequence, body after the netlink header).
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            for (_, _, body) in messages(&bytes) {
                for (_, value) in attributes(body) {
                    let _ = elements(value).count();
                }
            }
            let _ = elements(&bytes).count();
        }
    }
}
