//! Percentiles and the table that a benchmark prints.

use std::fmt::Write as _;
use std::time::Duration;

/// Times of one kind of work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// The sample that `percent` of all do not exceed (nearest rank), in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).map(|sample| sample.as_secs_f64() * 1000.0)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// What one contestant measured: rows by name, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    name: String,
    rows: Vec<(String, f64)>,
}

impl Column {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: &str, value: f64) {
        self.rows.push((row.to_owned(), value));
    }

    /// Adds the given percentiles of `samples` as rows `WORK pNN, ms`.
    pub(crate) fn add_percentiles(&mut self, work: &str, samples: &Samples, percents: &[usize]) {
        for percent in percents {
            if let Some(value) = samples.percentile(*percent) {
                self.add(&format!("{work} p{percent}, ms"), value);
            }
        }
    }

    fn get(&self, row: &str) -> Option<f64> {
        self.rows.iter().find(|(name, _)| name == row).map(|(_, value)| *value)
    }
}

/// One line per row, one column per contestant, and each ratio to the first column where that has the row.
pub(crate) fn table(columns: &[Column]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for (row, _) in columns.iter().flat_map(|column| &column.rows) {
        if !rows.contains(&row.as_str()) {
            rows.push(row);
        }
    }
    let width = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(10);
    let mut out = format!("| {:width$} |", "");
    for (number, column) in columns.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(out, " {:>12} |", column.name);
        if number > 0 {
            let _ = write!(out, " {:>7} |", "ratio");
        }
    }
    let _ = write!(out, "\n|{:-<w$}|", "", w = width + 2);
    for number in 0..columns.len() {
        let _ = write!(out, "{:->14}|", ":");
        if number > 0 {
            let _ = write!(out, "{:->9}|", ":");
        }
    }
    for row in rows {
        let _ = write!(out, "\n| {row:width$} |");
        let base = columns.first().and_then(|column| column.get(row));
        for (number, column) in columns.iter().enumerate() {
            let value = column.get(row);
            let _ = write!(out, " {:>12} |", value.map(|value| format!("{value:.1}")).unwrap_or_default());
            if number > 0 {
                let ratio = base.zip(value).filter(|(base, _)| *base > 0.0).map(|(base, value)| value / base);
                let _ = write!(out, " {:>7} |", ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let samples: Samples = (1..=10).map(Duration::from_millis).collect();
        assert_eq!([50, 90, 99].map(|percent| samples.percentile(percent)), [Some(5.0), Some(9.0), Some(10.0)]);
        assert_eq!(Samples::default().percentile(50), None);
    }

    #[test]
    fn a_table_has_ratios_to_the_first_column() {
        let (mut floor, mut agent) = (Column::new("floor"), Column::new("agent"));
        floor.add("create", 100.0);
        agent.add("create", 115.0);
        agent.add("memory", 7.0);
        let text = table(&[floor, agent]);
        assert!(text.contains("1.15") && text.contains("| memory"), "{text}");
    }
}
