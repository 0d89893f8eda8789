//! Durations as Go writes them: `1m30s`, `1.5h`, `300ms`. Source: `time.ParseDuration` of Go.

use std::time::Duration;

const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads a duration; `None` for what Go would refuse, and for negative ones, which no field here allows.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos = 0.0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..unit_end])?;
        nanos += number * factor;
        rest = &rest[unit_end..];
    }
    // 292 years is where Go's own int64 of nanoseconds ends.
    (nanos <= i64::MAX as f64).then(|| Duration::from_nanos(nanos as u64))
}

/// Prints a duration as Go does.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let fraction = |value: f64, unit: &str| format!("{}{unit}", trim(value));
    match nanos {
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => fraction(n as f64 / 1e3, "µs"),
        n if n < 1_000_000_000 => fraction(n as f64 / 1e6, "ms"),
        _ => {
            let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
            let seconds = (duration - Duration::from_secs(duration.as_secs() / 60 * 60)).as_secs_f64();
            match (hours, minutes) {
                (0, 0) => fraction(seconds, "s"),
                (0, m) => format!("{m}m{}", fraction(seconds, "s")),
                (h, m) => format!("{h}h{m}m{}", fraction(seconds, "s")),
            }
        }
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_like_go_does() {
        for (text, millis, printed) in [
            ("0s", 0, "0s"),
            ("0", 0, "0s"),
            ("300ms", 300, "300ms"),
            ("1m30s", 90_000, "1m30s"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("2h45m", 9_900_000, "2h45m0s"),
            ("10s", 10_000, "10s"),
            ("1.25s", 1_250, "1.25s"),
        ] {
            let duration = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(duration.as_millis(), millis, "{text}");
            assert_eq!(format(duration), printed, "{text}");
        }
        for text in ["", "10", "s", "-5s", "1 s", "5d", "1m 30s", "1..5s"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
