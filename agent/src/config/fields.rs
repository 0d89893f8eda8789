//! Reading a configuration object field by field, so that every problem is found in one pass and named with its file,
//! line, field, value and what is allowed. Pure.
//!
//! An empty string, 0 and `0s` stand for the default wherever the API says so, because kubeadm writes them for every
//! field that it has no opinion on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use super::duration;
use super::tree::{Kind, Node, Origin};
use crate::quantity::Quantity;

/// A value that is wrong, or a field that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File, flag, or `flags`.
    pub file: String,
    /// Line, where there is one.
    pub line: Option<usize>,
    /// Path of the field, such as `authentication.webhook.cacheTTL`.
    pub field: String,
    /// What is the matter.
    pub text: String,
}

impl Problem {
    /// A problem of a value that was written at `origin`.
    pub fn at(origin: &Origin, field: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: origin.source.to_string(), line: origin.line, field: field.into(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}: {}", self.field, self.text)
    }
}

/// What was found while reading: errors end the agent with code 64, warnings are logged once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Wrong values.
    pub errors: Vec<Problem>,
    /// Fields that have no effect.
    pub warnings: Vec<Problem>,
}

/// A field that exists upstream and is not read, with the value that asks for nothing.
pub type Unread = (&'static str, &'static str);

/// One object of a configuration file.
#[derive(Debug)]
pub struct Fields {
    path: String,
    origin: Origin,
    map: BTreeMap<String, Node>,
    /// Fields that were read, and where they were written.
    seen: BTreeMap<String, Option<Origin>>,
}

impl Fields {
    /// The top object of a file.
    pub fn new(node: Node, findings: &mut Findings) -> Self {
        Self::at_path(String::new(), node, findings)
    }

    fn at_path(path: String, node: Node, findings: &mut Findings) -> Self {
        let map = match node.kind {
            Kind::Map(map) => map,
            Kind::Scalar(Value::Null) => BTreeMap::new(),
            Kind::Scalar(_) | Kind::List(_) => {
                let text = format!("{} is not allowed; expected a mapping of fields", node.value());
                findings.errors.push(Problem::at(&node.origin, path.clone(), text));
                BTreeMap::new()
            }
        };
        Self { path, origin: node.origin, map, seen: BTreeMap::new() }
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A problem at a field of this object.
    pub fn problem(&self, name: &str, text: impl Into<String>) -> Problem {
        let written = self.map.get(name).map(|node| &node.origin);
        let read = || self.seen.get(name).and_then(Option::as_ref);
        Problem::at(written.or_else(read).unwrap_or(&self.origin), self.field(name), text)
    }

    /// Whether the field is written and not null.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|node| node.kind != Kind::Scalar(Value::Null))
    }

    /// Whether a field that was read was written.
    pub fn was_written(&self, name: &str) -> bool {
        self.seen.get(name).is_some_and(Option::is_some)
    }

    /// Whether the field is written with a value that is not empty or zero.
    pub fn asks_for_something(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|node| !node.is_zero())
    }

    /// Whether the field is a duration below zero, such as `-1m`.
    pub fn is_negative(&self, name: &str) -> bool {
        let text = self.map.get(name).and_then(|node| text(&node.value()));
        text.and_then(|text| duration::parse(text.strip_prefix('-')?)).is_some_and(|duration| !duration.is_zero())
    }

    fn take(&mut self, name: &str) -> Option<Node> {
        let node = self.map.remove(name);
        self.seen.insert(name.to_owned(), node.as_ref().map(|n| n.origin.clone()));
        node.filter(|node| node.kind != Kind::Scalar(Value::Null))
    }

    fn convert<T>(
        &mut self,
        findings: &mut Findings,
        name: &str,
        allowed: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let node = self.take(name)?;
        let value = node.value();
        let converted = convert(&value);
        if converted.is_none() {
            let text = format!("{value} is not allowed; expected {allowed}");
            findings.errors.push(Problem::at(&node.origin, self.field(name), text));
        }
        converted
    }

    /// Each item of a list by `convert`; the first wrong one is reported at its own line.
    fn convert_list<T>(
        &mut self,
        findings: &mut Findings,
        name: &str,
        allowed: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        let node = self.take(name)?;
        let Kind::List(items) = &node.kind else {
            let text = format!("{} is not allowed; expected a list of {allowed}", node.value());
            findings.errors.push(Problem::at(&node.origin, self.field(name), text));
            return None;
        };
        let mut all = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match convert(&item.value()) {
                Some(converted) => all.push(converted),
                None => {
                    let text = format!("{} is not allowed; expected a list of {allowed}", item.value());
                    findings.errors.push(Problem::at(&item.origin, format!("{}[{index}]", self.field(name)), text));
                }
            }
        }
        Some(all)
    }

    /// A string. A number is taken as its text.
    pub fn string(&mut self, findings: &mut Findings, name: &str) -> Option<String> {
        self.convert(findings, name, "a string", text)
    }

    /// A string that is not empty; an empty one stands for the default.
    pub fn filled(&mut self, findings: &mut Findings, name: &str) -> Option<String> {
        self.string(findings, name).filter(|text| !text.is_empty())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, findings: &mut Findings, name: &str) -> Option<bool> {
        self.convert(findings, name, "true or false", Value::as_bool)
    }

    /// An integer within a range.
    pub fn integer(&mut self, findings: &mut Findings, name: &str, min: i64, max: i64) -> Option<i64> {
        let allowed = if max == i64::MAX || max == i64::from(i32::MAX) {
            format!("an integer from {min}")
        } else {
            format!("an integer from {min} to {max}")
        };
        self.convert(findings, name, &allowed, |v| v.as_i64().filter(|n| (min..=max).contains(n)))
    }

    /// A number that may have a fraction.
    pub fn number(&mut self, findings: &mut Findings, name: &str) -> Option<f64> {
        self.convert(findings, name, "a number", Value::as_f64)
    }

    /// A number from 0 that counts something; 0 stands for the default.
    pub fn count(&mut self, findings: &mut Findings, name: &str) -> Option<i64> {
        self.integer(findings, name, 0, i64::from(i32::MAX)).filter(|n| *n != 0)
    }

    /// A port number; 0 where the field means "off" by it.
    pub fn port(&mut self, findings: &mut Findings, name: &str) -> Option<u16> {
        self.integer(findings, name, 0, 65535).and_then(|n| u16::try_from(n).ok())
    }

    /// A duration such as `10s` or `1m30s`; `0s` stands for the default.
    pub fn duration(&mut self, findings: &mut Findings, name: &str) -> Option<Duration> {
        self.any_duration(findings, name).filter(|duration| !duration.is_zero())
    }

    /// A duration where `0s` has a meaning of its own.
    pub fn any_duration(&mut self, findings: &mut Findings, name: &str) -> Option<Duration> {
        self.convert(findings, name, "a duration such as 10s, 1m30s or 1h", |v| match v {
            Value::String(text) => duration::parse(text),
            Value::Number(number) if number.as_i64() == Some(0) => Some(Duration::ZERO),
            _ => None,
        })
    }

    /// A duration within a range.
    pub fn duration_in(
        &mut self,
        findings: &mut Findings,
        name: &str,
        min: Duration,
        max: Duration,
    ) -> Option<Duration> {
        let found = self.any_duration(findings, name)?;
        if found < min || found > max {
            let (found, min, max) = (duration::format(found), duration::format(min), duration::format(max));
            let text = format!("\"{found}\" is not allowed; expected a duration from {min} to {max}");
            findings.errors.push(self.problem(name, text));
            return None;
        }
        Some(found)
    }

    /// One of a set of words. The empty word stands for the default.
    pub fn one_of(&mut self, findings: &mut Findings, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let allowed = format!("one of {}", words.join(", "));
        let find = |v: &Value| match v.as_str() {
            Some("") => Some(None),
            Some(text) => words.iter().find(|word| **word == text).map(|word| Some(*word)),
            None => None,
        };
        self.convert(findings, name, &allowed, find).flatten()
    }

    /// A list of strings.
    pub fn strings(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<String>> {
        self.convert_list(findings, name, "strings", text)
    }

    /// A list of integers from 1 to 65535.
    pub fn short_numbers(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<u16>> {
        let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        self.convert_list(findings, name, "integers from 1 to 65535", number)
    }

    /// A list of words out of a set.
    pub fn words(&mut self, findings: &mut Findings, name: &str, words: &[&'static str]) -> Option<Vec<&'static str>> {
        let allowed = words.join(", ");
        self.convert_list(findings, name, &allowed, |v| {
            v.as_str().and_then(|text| words.iter().find(|word| **word == text).copied())
        })
    }

    /// An IP address; an empty string stands for the default.
    pub fn address(&mut self, findings: &mut Findings, name: &str) -> Option<IpAddr> {
        let parse = |v: &Value| match v.as_str()? {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        };
        self.convert(findings, name, "an IP address", parse).flatten()
    }

    /// A list of IP addresses.
    pub fn addresses(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<IpAddr>> {
        self.convert_list(findings, name, "IP addresses", |v| v.as_str()?.parse().ok())
    }

    /// A map from names to strings.
    pub fn string_map(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<(String, String)>> {
        self.convert(findings, name, "a map of strings", |v| {
            v.as_object()?.iter().map(|(k, v)| Some((k.clone(), text(v)?))).collect()
        })
    }

    /// A map from names to switches.
    pub fn switches(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<(String, bool)>> {
        self.convert(findings, name, "a map of names to true or false", |v| {
            v.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_bool()?))).collect()
        })
    }

    /// A map from resource names to quantities.
    pub fn quantities(&mut self, findings: &mut Findings, name: &str) -> Option<Vec<(String, Quantity)>> {
        let map = self.string_map(findings, name)?;
        let mut parsed = Vec::new();
        for (key, text) in map {
            match Quantity::parse(&text) {
                Ok(quantity) if quantity < Quantity::from_millis(0) => {
                    findings
                        .errors
                        .push(self.problem(name, format!("{key}: {text} is not allowed; expected 0 or more")));
                }
                Ok(quantity) => parsed.push((key, quantity)),
                Err(error) => findings.errors.push(self.problem(name, format!("{key}: {error}"))),
            }
        }
        Some(parsed)
    }

    /// A quantity of bytes such as `10Mi`, which may be negative; an empty string stands for the default.
    pub fn signed_bytes(&mut self, findings: &mut Findings, name: &str) -> Option<i64> {
        self.convert(findings, name, "a quantity such as 10Mi", |v| match text(v)?.as_str() {
            "" => Some(None),
            text => Quantity::parse(text).ok().map(|quantity| Some(quantity.value())),
        })
        .flatten()
    }

    /// Any value as it is.
    pub fn raw(&mut self, name: &str) -> Option<Value> {
        self.take(name).map(|node| node.value())
    }

    /// A nested object; empty when absent.
    pub fn object(&mut self, findings: &mut Findings, name: &str) -> Fields {
        let path = self.field(name);
        let node = self.take(name).unwrap_or_else(|| {
            let kind = Kind::Map(BTreeMap::new());
            Node { origin: self.origin.clone(), kind }
        });
        Fields::at_path(path, node, findings)
    }

    /// Warns of everything that was not read: by name where `unread` knows it and its value asks for something, as unknown
    /// otherwise.
    pub fn finish(self, findings: &mut Findings, unread: &[Unread]) {
        for (name, node) in &self.map {
            let known = unread.iter().find(|(known, _)| known == name);
            let text = match known {
                Some((_, default)) if node.is_zero() || text(&node.value()).as_deref() == Some(default) => continue,
                Some(_) => "is not implemented by nodelet yet and has no effect".to_owned(),
                None => {
                    let candidates = unread.iter().map(|(name, _)| *name).chain(self.seen.keys().map(String::as_str));
                    let nearest = candidates.filter(|c| distance(c, name) <= 2).min_by_key(|c| distance(c, name));
                    let hint = nearest.map(|n| format!("; did you mean {n}?")).unwrap_or_default();
                    format!("unknown field, it has no effect{hint}")
                }
            };
            findings.warnings.push(self.problem(name, text));
        }
    }
}

/// A scalar as text.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(switch) => Some(switch.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
