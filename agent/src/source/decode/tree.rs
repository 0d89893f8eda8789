//! YAML text as a tree whose nodes know their line.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A YAML value with the types that YAML itself infers.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Str(String),
    Seq(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Value {
    /// The kind of value for messages, without its content.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) | Self::Float(_) => "a number",
            Self::Str(_) => "text",
            Self::Seq(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// A value and the line of the file where it begins.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

impl Node {
    /// The field `key` of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of the field `key`.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key).map(|n| &n.value) {
            Some(Value::Str(text)) => Some(text),
            _ => None,
        }
    }

    /// The line of `path` (`spec.containers[0].image`), or of the deepest part of it that is written in the file:
    /// a missing field is reported where its parent begins.
    pub(super) fn line_of(&self, path: &str) -> u64 {
        let mut node = self;
        for part in path.split('.') {
            let (name, indexes) = part.split_once('[').unwrap_or((part, ""));
            let Some(next) = node.get(name) else { return node.line };
            node = next;
            for index in indexes.split('[').filter(|i| !i.is_empty()) {
                let Ok(index) = index.trim_end_matches(']').parse::<usize>() else { return node.line };
                match &node.value {
                    Value::Seq(items) if index < items.len() => node = &items[index],
                    _ => return node.line,
                }
            }
        }
        node.line
    }

    fn shift(&mut self, lines: u64) {
        self.line += lines;
        match &mut self.value {
            Value::Seq(items) => items.iter_mut().for_each(|n| n.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, n)| n.shift(lines)),
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::Uint(v), Value::Int))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Str(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::Str(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Node>()? {
            items.push(item);
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            entries.push((key, map.next_value::<Node>()?));
        }
        Ok(Value::Map(entries))
    }
}

/// One document of a file.
pub(super) struct Document<'a> {
    text: &'a str,
    /// Lines of the file before it.
    lines_before: u64,
}

/// Splits a file at its `---` lines. YAML allows no document marker at the start of a line inside a scalar, so this
/// needs no parser, and one broken document cannot shift the numbers of the others. Empty documents are left out.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut line) = (0, 0);
    for row in text.split_inclusive('\n') {
        let marker =
            row.trim_end().strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if marker && offset > start {
            documents.push(Document { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (offset, line);
        }
        offset += row.len();
        line += 1;
    }
    documents.push(Document { text: &text[start..], lines_before: start_line });
    documents.retain(|d| !d.is_blank());
    documents
}

impl Document<'_> {
    fn is_blank(&self) -> bool {
        self.text.lines().all(|l| {
            let l = l.trim();
            l.is_empty() || l.starts_with('#') || l == "---" || l == "..." || l.starts_with("--- #")
        })
    }
}

/// Parses one document; `None` for an explicit null. The error is a line of the file and what is wrong there.
pub(super) fn parse(document: &Document<'_>) -> Result<Option<Node>, (u64, String)> {
    // Kubernetes reads YAML 1.1: `defaultMode: 0644` is octal.
    let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
    // Tabs are no indentation in YAML but common in JSON, where a raw tab can only stand between tokens.
    let json = document.text.trim_start_matches("---").trim_start().starts_with(['{', '[']);
    let untabbed = json.then(|| document.text.replace('\t', " "));
    let text = untabbed.as_deref().unwrap_or(document.text);
    match serde_saphyr::from_str_with_options::<Node>(text, options) {
        Ok(mut node) => {
            node.shift(document.lines_before);
            Ok((node.value != Value::Null).then_some(node))
        }
        Err(error) => {
            let line = error.location().map_or(1, |l| l.line().max(1));
            let tab = text.lines().nth(line as usize - 1).is_some_and(|l| l.trim_start_matches(' ').starts_with('\t'));
            let hint = if tab { " (the line is indented with a tab; YAML needs spaces)" } else { "" };
            let message = error.without_snippet().to_string();
            Err((line + document.lines_before, format!("not valid YAML: {}{hint}", message.trim_end())))
        }
    }
}
