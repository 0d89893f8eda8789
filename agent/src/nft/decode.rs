//! Reading netlink answers: attributes, and the elements, chains and sets of a dump. Never panics on what it is given.

/// Attributes of a message or nested attribute, as (kind, value).
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
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
}

/// Elements of a `NFT_MSG_NEWSETELEM` message body (after `nfgenmsg`), as (key, data).
pub fn elements(body: &[u8]) -> impl Iterator<Item = (&[u8], ElementData<'_>)> {
    attribute(body, 3).into_iter().flat_map(attributes).filter_map(|(_, element)| {
        let key = attribute(attribute(element, 1)?, 1)?;
        let data = match attribute(element, 2) {
            None => ElementData::None,
            Some(data) => match (attribute(data, 1), attribute(data, 2)) {
                (Some(value), _) => ElementData::Value(value),
                (None, Some(verdict)) => ElementData::Chain(string(verdict, 2)?),
                (None, None) => ElementData::None,
            },
        };
        Some((key, data))
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
