//! `nodelet gc` for people. Pure.

use crate::garbage::images::size;
use crate::garbage::report::{Outcome, Report};

/// Most characters of an id that are shown: enough to find it with crictl.
const ID: usize = 13;

/// The report as a table with notes below.
pub fn text(report: &Report) -> String {
    let head: &[&str] = match report.dry_run {
        true => &["KIND", "NAME", "POD", "SIZE", "WHY"],
        false => &["KIND", "NAME", "POD", "SIZE", "RESULT", "WHY"],
    };
    let rows: Vec<Vec<String>> = report
        .items
        .iter()
        .map(|item| {
            let mut row = vec![
                item.kind.word().to_owned(),
                name(&item.name),
                item.pod.clone().unwrap_or_else(|| "-".to_owned()),
                item.bytes.map_or_else(|| "-".to_owned(), size),
            ];
            if !report.dry_run {
                row.push(match &item.outcome {
                    Outcome::Planned => "planned".to_owned(),
                    Outcome::Removed => "removed".to_owned(),
                    Outcome::Failed(text) => format!("stays: {text}"),
                });
            }
            row.push(item.why.clone());
            row
        })
        .collect();
    let mut out = match (rows.is_empty(), report.dry_run) {
        (true, _) => "Nothing to remove.\n".to_owned(),
        (false, true) => super::print::layout(head, &rows) + "Nothing was removed (dry run).\n",
        (false, false) => super::print::layout(head, &rows),
    };
    for note in &report.notes {
        out += &format!("note: {note}\n");
    }
    for problem in &report.problems {
        out += &format!("problem: {problem}\n");
    }
    out
}

/// An id in short, anything else as it is.
fn name(name: &str) -> String {
    let id = name.strip_prefix("sha256:").unwrap_or(name);
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { id.chars().take(ID).collect() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::garbage::report::{Item, Kind};

    #[test]
    fn a_dry_run_says_what_would_go_and_why() {
        let item = |kind, name: &str, pod: Option<&str>, bytes, why: &str| Item {
            kind,
            name: name.to_owned(),
            pod: pod.map(str::to_owned),
            bytes,
            why: why.to_owned(),
            outcome: Outcome::Planned,
        };
        let report = Report {
            dry_run: true,
            items: vec![
                item(Kind::Image, "reg.io/a:1", None, Some(3 << 20), "not used for 3h0m0s; room is needed"),
                item(Kind::Container, &"ab".repeat(32), Some("default/web"), None, "its pod is being removed"),
            ],
            notes: vec!["the file system of images is 91 % full".into()],
            ..Report::default()
        };
        let expected = "KIND        NAME            POD           SIZE      WHY\n\
                        image       reg.io/a:1      -             3.0 MiB   not used for 3h0m0s; room is needed\n\
                        container   ababababababa   default/web   -         its pod is being removed\n\
                        Nothing was removed (dry run).\n\
                        note: the file system of images is 91 % full\n";
        assert_eq!(text(&report), expected);
        assert_eq!(text(&Report::default()), "Nothing to remove.\n");
    }
}
