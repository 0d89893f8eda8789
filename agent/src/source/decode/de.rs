//! A serde deserializer over [`Node`] that knows the path and the line of every value, so that a type error names its
//! field, and a field that no type asks for becomes a warning.

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::tree::{Node, Value};

/// A value that does not have the type of its field.
#[derive(Debug)]
pub(super) struct FieldError {
    pub(super) path: String,
    pub(super) line: u64,
    pub(super) message: String,
    /// The value as written; kept apart so that a Secret's can be left out.
    found: Option<String>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FieldError {}

impl serde::de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // A library's message may quote the value (base64, dates); it counts as value.
        Self { path: String::new(), line: 0, message: "not acceptable".to_owned(), found: Some(message.to_string()) }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected_words(expected);
        let (kind, value, hint) = match found {
            Unexpected::Bool(v) => ("a boolean", Some(v.to_string()), quote_hint(&expected)),
            Unexpected::Unsigned(v) => ("a number", Some(v.to_string()), quote_hint(&expected)),
            Unexpected::Signed(v) => ("a number", Some(v.to_string()), quote_hint(&expected)),
            Unexpected::Float(v) => ("a number", Some(v.to_string()), quote_hint(&expected)),
            Unexpected::Str(v) if v.parse::<i64>().is_ok() && expected == "a whole number" => {
                ("text", Some(format!("{v:?}")), "; remove the quotes")
            }
            Unexpected::Str(v) => ("text", Some(format!("{v:?}")), ""),
            Unexpected::Unit | Unexpected::Option => ("nothing", None, ""),
            Unexpected::Seq => ("a list", None, ""),
            Unexpected::Map => ("a mapping", None, ""),
            _ => ("something else", None, ""),
        };
        Self { path: String::new(), line: 0, message: format!("expected {expected}, found {kind}{hint}"), found: value }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let mut error = Self::invalid_type(found, expected);
        error.message = format!("expected {}", expected_words(expected));
        error
    }
}

fn quote_hint(expected: &str) -> &'static str {
    if expected.contains("text") { "; put it in quotes" } else { "" }
}

/// Rust's names of types in the words of people who write YAML.
fn expected_words(expected: &dyn Expected) -> String {
    let raw = expected.to_string();
    match raw.as_str() {
        "a string" => "text".to_owned(),
        "i32" | "i64" | "u32" | "u64" | "u16" => "a whole number".to_owned(),
        "f64" | "f32" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "IntOrString" => "a number or text".to_owned(),
        "Quantity" => "a quantity such as 100m or 64Mi (text)".to_owned(),
        "a base64-encoded string" => "base64 text".to_owned(),
        _ => raw,
    }
}

/// The outcome of [`typed`].
pub(super) struct Typed<T> {
    pub(super) result: Result<T, FieldError>,
    /// Path and line of each field that the type does not know.
    pub(super) unknown: Vec<(String, u64)>,
}

/// Reads `T` from a tree. `hide` keeps values out of messages (Secrets).
pub(super) fn typed<T: for<'de> serde::Deserialize<'de>>(node: &Node, prefix: &str, hide: bool) -> Typed<T> {
    let unknown = RefCell::new(Vec::new());
    let root = if prefix.is_empty() { Path::Root } else { Path::Key(&Path::Root, prefix) };
    let result = T::deserialize(De { node, path: &root, unknown: &unknown }).map_err(|mut error| {
        if error.line == 0 {
            error.line = node.line;
        }
        match error.found.take() {
            Some(found) if !hide => write!(error.message, " ({found})").expect("writing to a String cannot fail"),
            _ => {}
        }
        error
    });
    Typed { result, unknown: unknown.into_inner() }
}

/// A path as a chain on the stack: it costs nothing until somebody wants to read it.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Path::Root, key) => f.write_str(key),
            Self::Key(parent, key) if key.contains('.') => write!(f, "{parent}[{key}]"),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<(String, u64)>>,
}

impl<'a> De<'a> {
    /// Gives an error from inside its place, unless a deeper value already did.
    fn locate<T>(self, result: Result<T, FieldError>) -> Result<T, FieldError> {
        result.map_err(|mut error| {
            if error.line == 0 {
                error.line = self.node.line;
                error.path = self.path.to_string();
            }
            error
        })
    }

    fn wrong<T>(self, expected: &str) -> Result<T, FieldError> {
        self.locate(Err(FieldError {
            path: String::new(),
            line: 0,
            message: format!("expected {expected}, found {}", self.node.value.describe()),
            found: None,
        }))
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(v) => visitor.visit_bool(*v),
            Value::Int(v) => visitor.visit_i64(*v),
            Value::Uint(v) => visitor.visit_u64(*v),
            Value::Float(v) => visitor.visit_f64(*v),
            Value::Str(v) => visitor.visit_str(v),
            Value::Seq(items) => visitor.visit_seq(Items { parent: self, items: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Fields { parent: self, entries: entries.iter(), value: None }),
        };
        self.locate(result)
    }
}

macro_rules! forward {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
            self.any(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = FieldError;

    forward! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        // Kubernetes takes `cpu: 1` and `cpu: 0.5` as well as their text.
        let text = match (&self.node.value, name) {
            (Value::Int(v), "Quantity") => v.to_string(),
            (Value::Uint(v), "Quantity") => v.to_string(),
            (Value::Float(v), "Quantity") => v.to_string(),
            _ => return self.locate(visitor.visit_newtype_struct(self)),
        };
        self.locate(visitor.visit_newtype_struct(text.into_deserializer()))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Seq(_) => self.any(visitor),
            _ => self.wrong("a list (each entry begins with '- ')"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Map(_) => self.any(visitor),
            _ => self.wrong("a mapping (name: value)"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match self.node.value {
            Value::Map(_) => self.any(visitor),
            _ => {
                let more = if fields.len() > 6 { ", ..." } else { "" };
                let some = fields.iter().take(6).copied().collect::<Vec<_>>().join(", ");
                self.wrong(&format!("a mapping with the fields {some}{more}"))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match &self.node.value {
            Value::Str(text) => self.locate(visitor.visit_enum(text.as_str().into_deserializer())),
            _ => self.wrong("one of a set of words"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, FieldError> {
        self.any(visitor)
    }

    /// Generated types skip what they do not know through here; that is the place to notice it.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.unknown.borrow_mut().push((self.path.to_string(), self.node.line));
        visitor.visit_unit()
    }
}

struct Items<'a, I> {
    parent: De<'a>,
    items: I,
}

impl<'a, 'de, I: Iterator<Item = (usize, &'a Node)>> SeqAccess<'de> for Items<'a, I> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, FieldError> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = Path::Index(self.parent.path, index);
        let de = De { node, path: &path, unknown: self.parent.unknown };
        de.locate(seed.deserialize(de)).map(Some)
    }
}

struct Fields<'a, I> {
    parent: De<'a>,
    entries: I,
    value: Option<(&'a str, &'a Node)>,
}

impl<'a, 'de, I: Iterator<Item = &'a (String, Node)>> MapAccess<'de> for Fields<'a, I> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, node));
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        let Some((key, node)) = self.value.take() else { return Err(FieldError::custom("value before its key")) };
        let path = Path::Key(self.parent.path, key);
        let de = De { node, path: &path, unknown: self.parent.unknown };
        de.locate(seed.deserialize(de))
    }
}
