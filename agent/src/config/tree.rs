//! A configuration file as a tree whose every node remembers where it was written. Pure.
//!
//! Drop-ins and flags are merged into the tree, so a problem that is found later names the drop-in or flag that caused
//! it, not the main file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// File, or a flag such as `--max-pods`.
    pub source: Arc<str>,
    /// Line, counted from 1; flags have none.
    pub line: Option<usize>,
}

/// A value with its origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it was written.
    pub origin: Origin,
    /// The value.
    pub kind: Kind,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// A mapping.
    Map(BTreeMap<String, Node>),
}

impl Node {
    /// An empty mapping.
    pub fn empty(source: &str) -> Self {
        Self { origin: Origin { source: source.into(), line: None }, kind: Kind::Map(BTreeMap::new()) }
    }

    /// Reads a YAML or JSON document. The error text names the line.
    pub fn parse(source: &str, text: &str) -> Result<Self, String> {
        let located: Located = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Ok(located.into_node(&Arc::from(source)))
    }

    /// A value that a flag gave.
    pub fn of_flag(flag: &str, value: Value) -> Self {
        let origin = Origin { source: format!("--{flag}").into(), line: None };
        Self::from_value(&origin, value)
    }

    fn from_value(origin: &Origin, value: Value) -> Self {
        let kind = match value {
            Value::Array(items) => Kind::List(items.into_iter().map(|v| Self::from_value(origin, v)).collect()),
            Value::Object(map) => Kind::Map(map.into_iter().map(|(k, v)| (k, Self::from_value(origin, v))).collect()),
            scalar => Kind::Scalar(scalar),
        };
        Self { origin: origin.clone(), kind }
    }

    /// The same without origins.
    pub fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Kind::Map(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), v.value())).collect()),
        }
    }

    /// Whether it says nothing: null, `""`, 0, `0s`, or a mapping of only such things and `false`. kubeadm writes many of
    /// them. A `false` that stands alone may well say something.
    pub fn is_zero(&self) -> bool {
        match &self.kind {
            Kind::Scalar(Value::Null) => true,
            Kind::Scalar(Value::String(text)) => text.is_empty() || text == "0s" || text == "0",
            Kind::Scalar(Value::Number(number)) => number.as_f64() == Some(0.0),
            Kind::Scalar(_) => false,
            Kind::List(items) => items.is_empty(),
            Kind::Map(map) => map.values().all(|node| node.is_zero() || node.kind == Kind::Scalar(Value::Bool(false))),
        }
    }

    /// Puts `over` over this node: maps are merged, everything else is replaced, null removes.
    /// Source: KEP-3983 (drop-in directory), which uses JSON merge patch (RFC 7396).
    pub fn merge(&mut self, over: Node) {
        match (&mut self.kind, over.kind) {
            (Kind::Map(base), Kind::Map(over)) => {
                for (key, node) in over {
                    match base.get_mut(&key) {
                        _ if node.kind == Kind::Scalar(Value::Null) => drop(base.remove(&key)),
                        Some(old) => old.merge(node),
                        None => drop(base.insert(key, node)),
                    }
                }
            }
            (kind, over_kind) => (*kind, self.origin) = (over_kind, over.origin),
        }
    }

    /// Puts `node` at a dotted path, making mappings on the way.
    pub fn set(&mut self, path: &str, node: Node) {
        let wrapped = path.rsplit('.').fold(node, |inner, key| {
            let origin = inner.origin.clone();
            Node { origin, kind: Kind::Map(BTreeMap::from([(key.to_owned(), inner)])) }
        });
        self.merge(wrapped);
    }
}

/// A node as the parser delivers it.
struct Located(Spanned<Raw>);

enum Raw {
    Scalar(Value),
    List(Vec<Located>),
    Map(Vec<(String, Located)>),
}

impl Located {
    fn into_node(self, source: &Arc<str>) -> Node {
        let line = usize::try_from(self.0.referenced.line()).ok().filter(|line| *line > 0);
        let kind = match self.0.value {
            Raw::Scalar(value) => Kind::Scalar(value),
            Raw::List(items) => Kind::List(items.into_iter().map(|item| item.into_node(source)).collect()),
            Raw::Map(map) => Kind::Map(map.into_iter().map(|(key, value)| (key, value.into_node(source))).collect()),
        };
        Node { origin: Origin { source: source.clone(), line }, kind }
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child<'a>(node: &'a Node, key: &str) -> &'a Node {
        match &node.kind {
            Kind::Map(map) => &map[key],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_value_knows_its_line_also_below_the_top() {
        let node = Node::parse("f", "a: 1\nb:\n  a: x\n  c: [1,\n    2]\n").unwrap();
        assert_eq!(child(&node, "a").origin.line, Some(1));
        assert_eq!(child(child(&node, "b"), "a").origin.line, Some(3));
        let Kind::List(items) = &child(child(&node, "b"), "c").kind else { panic!("no list") };
        assert_eq!(items[1].origin.line, Some(5));
        assert_eq!(node.value(), serde_json::json!({"a": 1, "b": {"a": "x", "c": [1, 2]}}));
    }

    #[test]
    fn a_merged_value_keeps_the_origin_of_the_file_that_won() {
        let mut base = Node::parse("base", "m: {a: 1, b: 2, d: 4}\nl: [1, 2]\n").unwrap();
        base.merge(Node::parse("over", "m: {b: 3, d: null}\nl: [9]\n").unwrap());
        base.set("m.c", Node::of_flag("c", "x".into()));
        assert_eq!(base.value(), serde_json::json!({"m": {"a": 1, "b": 3, "c": "x"}, "l": [9]}));
        assert_eq!(&*child(child(&base, "m"), "a").origin.source, "base");
        assert_eq!(&*child(child(&base, "m"), "b").origin.source, "over");
        assert_eq!(&*child(child(&base, "m"), "c").origin.source, "--c");
    }
}
