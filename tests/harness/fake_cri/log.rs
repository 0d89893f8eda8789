//! The CRI log format: one line of output is `TIME STREAM TAG CONTENT`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest content that one entry carries; longer lines come as several entries tagged P (partial), the last one F (full).
/// containerd's `max_container_log_line_size` has this default.
const LONGEST: usize = 16 * 1024;

/// A line that a container writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// To standard output.
    Stdout(String),
    /// To standard error.
    Stderr(String),
}

/// The log of one container. Without a path (no log directory configured) output is thrown away.
#[derive(Debug, Default)]
pub(super) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
}

impl LogFile {
    /// Remembers where to write; the file is made by [`open`](Self::open).
    pub(super) fn at(directory: &str, path: &str) -> Self {
        let joined = (!directory.is_empty() && !path.is_empty()).then(|| Path::new(directory).join(path));
        Self { path: joined, file: None }
    }

    pub(super) fn path(&self) -> String {
        self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// Opens the path (again), as after a rotation. The directory must exist, as with containerd.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(OpenOptions::new().create(true).append(true).open(path)?);
        }
        Ok(())
    }

    /// Writes one line at `now` (nanoseconds since the epoch).
    pub(super) fn write(&mut self, line: &LogLine, now: i64) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(&entries(line, now))
    }
}

fn entries(line: &LogLine, now: i64) -> Vec<u8> {
    let (stream, text) = match line {
        LogLine::Stdout(text) => ("stdout", text.as_bytes()),
        LogLine::Stderr(text) => ("stderr", text.as_bytes()),
    };
    let time = rfc3339(now);
    let mut out = Vec::with_capacity(text.len() + 64);
    let parts: Vec<&[u8]> = if text.is_empty() { vec![text] } else { text.chunks(LONGEST).collect() };
    for (number, part) in parts.iter().enumerate() {
        let tag = if number + 1 == parts.len() { "F" } else { "P" };
        out.extend_from_slice(format!("{time} {stream} {tag} ").as_bytes());
        out.extend_from_slice(part);
        out.push(b'\n');
    }
    out
}

/// UTC with nanoseconds. Days to date after Howard Hinnant's civil_from_days.
fn rfc3339(nanoseconds: i64) -> String {
    let (seconds, fraction) = (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_827_696_000_000_001), "2000-02-29T12:34:56.000000001Z");
    }

    #[test]
    fn a_long_line_comes_in_parts() {
        let text = String::from_utf8(entries(&LogLine::Stderr("x".repeat(LONGEST + 1)), 0)).expect("ASCII");
        let tags: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        assert_eq!(tags, ["P", "F"]);
    }

    #[test]
    fn an_empty_line_is_an_entry() {
        assert_eq!(entries(&LogLine::Stdout(String::new()), 0), b"1970-01-01T00:00:00.000000000Z stdout F \n");
    }
}
