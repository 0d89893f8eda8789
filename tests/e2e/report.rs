//! Reads ginkgo's JUnit report: names, outcomes, and the first line of each failure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;

/// Outcomes by name.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Names with their seconds.
    pub(crate) passed: Vec<(String, f64)>,
    /// Names with what went wrong.
    pub(crate) failed: Vec<(String, String)>,
}

/// Reads the report. It is machine-written XML of one shape, so attributes are looked for as text.
pub(crate) fn read(path: &Path) -> anyhow::Result<Results> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: no test ran", path.display()))?;
    let mut results = Results::default();
    for case in text.split("<testcase ").skip(1) {
        let head = case.split('>').next().unwrap_or_default();
        let (Some(name), Some(status)) = (attribute(head, "name"), attribute(head, "status")) else { continue };
        // Suite-wide nodes have names such as [SynchronizedBeforeSuite].
        match (status.as_str(), name.starts_with("[It]")) {
            ("passed", true) => {
                let time = attribute(head, "time").and_then(|time| time.parse().ok()).unwrap_or(0.0);
                results.passed.push((name.trim_start_matches("[It] ").to_owned(), time));
            }
            ("skipped" | "pending", _) | ("passed", false) => {}
            _ => {
                let message = case.split("<failure ").nth(1).or(case.split("<error ").nth(1));
                let message = message.and_then(|rest| attribute(rest, "message")).unwrap_or(status);
                results.failed.push((name.trim_start_matches("[It] ").to_owned(), message));
            }
        }
    }
    Ok(results)
}

fn attribute(head: &str, name: &str) -> Option<String> {
    let start = head.find(&format!("{name}=\""))? + name.len() + 2;
    let value = &head[start..];
    let value = &value[..value.find('"')?];
    Some(unescaped(value))
}

fn unescaped(text: &str) -> String {
    let pairs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&#xA;", "\n"),
        ("&#x9;", "\t"),
    ];
    let mut text = text.to_owned();
    for (from, to) in pairs {
        text = text.replace(from, to);
    }
    text.replace("&amp;", "&")
}

/// The SIG and the first word of a name: `[sig-network] Services`.
fn area(name: &str) -> String {
    let (sig, rest) = name.split_once("] ").unwrap_or((name, ""));
    format!("{sig}] {}", rest.split_whitespace().next().unwrap_or_default())
}

/// Passed and failed of each area.
fn areas(results: &Results) -> BTreeMap<String, [usize; 2]> {
    let mut areas = BTreeMap::<String, [usize; 2]>::new();
    for (name, _) in &results.passed {
        areas.entry(area(name)).or_default()[0] += 1;
    }
    for (name, _) in &results.failed {
        areas.entry(area(name)).or_default()[1] += 1;
    }
    areas
}

/// Prints passed and failed by area, beside what another agent made of the same tests; and what failed and why.
pub(crate) fn print(results: &Results, beside: Option<(String, &Results)>) {
    for (name, message) in &results.failed {
        let there =
            beside.as_ref().map(|(other, results)| match results.passed.iter().any(|(passed, _)| passed == name) {
                true => format!(" ({other} passes)"),
                false => format!(" ({other} does not pass)"),
            });
        println!("FAILED {name}{}\n       {}", there.unwrap_or_default(), message.lines().next().unwrap_or_default());
    }
    let (ours, theirs) = (areas(results), beside.as_ref().map(|(_, results)| areas(results)).unwrap_or_default());
    let head = beside.as_ref().map(|(other, _)| format!("{other:>14}")).unwrap_or_default();
    println!("{:<34}{:>14}{head}   (passed/failed)", "area", "this run");
    let all: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for name in all {
        let column = |of: &BTreeMap<String, [usize; 2]>| {
            let [passed, failed] = of.get(name).copied().unwrap_or_default();
            format!("{:>14}", format!("{passed}/{failed}"))
        };
        let other = if beside.is_some() { column(&theirs) } else { String::new() };
        println!("{name:<34}{}{other}", column(&ours));
    }
}
