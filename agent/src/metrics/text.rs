//! Prometheus' text format, written into a buffer that is used again.
//!
//! Source: "Exposition formats" of the Prometheus documentation, version 0.0.4. A family without samples leaves no trace.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};

use super::cells::{Counter, Histogram};

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations by size.
    Histogram,
}

/// Labels of a sample, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text so far.
#[derive(Debug, Default)]
pub struct Text {
    out: BytesMut,
}

impl Text {
    /// Text that is appended to `buffer`.
    pub fn new(buffer: BytesMut) -> Self {
        Self { out: buffer }
    }

    /// The text, and what is left of the buffer: when the text has been sent, its memory is used again.
    pub fn finish(mut self) -> (Bytes, BytesMut) {
        (self.out.split().freeze(), self.out)
    }

    /// Begins a family; `help` without a line break.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &'a str) -> Family<'a> {
        Family { text: self, name, kind, help, begun: false }
    }

    /// A family of one gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// A family of one counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: &Counter) {
        self.family(name, Kind::Counter, help).sample(&[], value.get() as f64);
    }

    /// A family of one histogram without labels.
    pub fn histogram<const N: usize>(&mut self, name: &str, help: &str, value: &Histogram<N>) {
        self.family(name, Kind::Histogram, help).histogram(&[], value);
    }

    /// Text in the same format that somebody else wrote.
    pub fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn labels(&mut self, labels: Labels<'_>, last: Option<(&str, f64)>) {
        let mut open = '{';
        for (name, value) in labels {
            self.put(format_args!("{open}{name}=\""));
            self.escaped(value);
            self.put(format_args!("\""));
            open = ',';
        }
        if let Some((name, value)) = last {
            self.put(format_args!("{open}{name}=\"{}\"", Number(value)));
            open = ',';
        }
        if open == ',' {
            self.put(format_args!("}}"));
        }
    }

    fn escaped(&mut self, value: &str) {
        // One memcpy for what almost always needs no escape.
        for piece in value.split_inclusive(['\\', '"', '\n']) {
            let end = piece.len() - usize::from(piece.ends_with(['\\', '"', '\n']));
            self.out.extend_from_slice(&piece.as_bytes()[..end]);
            match piece.as_bytes().get(end) {
                Some(b'\\') => self.out.extend_from_slice(b"\\\\"),
                Some(b'"') => self.out.extend_from_slice(b"\\\""),
                Some(_) => self.out.extend_from_slice(b"\\n"),
                None => {}
            }
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.out.write_fmt(text);
    }
}

/// A number as the format writes it.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            value if value == f64::INFINITY => f.write_str("+Inf"),
            value if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            value => write!(f, "{value}"),
        }
    }
}

/// A family that is being written.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut Text,
    name: &'a str,
    kind: Kind,
    help: &'a str,
    begun: bool,
}

impl Family<'_> {
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            let kind = match self.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let (name, help) = (self.name, self.help);
            self.text.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
    }

    /// One sample.
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) {
        self.stamped(labels, value, None);
    }

    /// One sample that was measured at a time of its own, in milliseconds since the epoch.
    pub fn stamped(&mut self, labels: Labels<'_>, value: f64, millis: Option<i64>) {
        self.begin();
        self.line("", labels, None, value, millis);
    }

    /// One histogram.
    pub fn histogram<const N: usize>(&mut self, labels: Labels<'_>, histogram: &Histogram<N>) {
        self.begin();
        let (buckets, count, sum) = histogram.read();
        for (bound, upto) in buckets {
            self.line("_bucket", labels, Some(("le", bound)), upto as f64, None);
        }
        self.line("_bucket", labels, Some(("le", f64::INFINITY)), count as f64, None);
        self.line("_sum", labels, None, sum, None);
        self.line("_count", labels, None, count as f64, None);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, last: Option<(&str, f64)>, value: f64, millis: Option<i64>) {
        let name = self.name;
        self.text.put(format_args!("{name}{suffix}"));
        self.text.labels(labels, last);
        self.text.put(format_args!(" {}", Number(value)));
        if let Some(millis) = millis {
            self.text.put(format_args!(" {millis}"));
        }
        self.text.put(format_args!("\n"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(write: impl FnOnce(&mut Text)) -> String {
        let mut text = Text::default();
        write(&mut text);
        String::from_utf8(text.finish().0.to_vec()).unwrap()
    }

    #[test]
    fn families_have_their_head_once_and_only_with_samples() {
        let text = written(|text| {
            text.family("none", Kind::Gauge, "nothing");
            let mut family = text.family("n_total", Kind::Counter, "things");
            family.sample(&[("a", "x\"\\\ny")], 1.0);
            family.stamped(&[("a", ""), ("b", "z")], f64::INFINITY, Some(7));
        });
        let wanted = "# HELP n_total things\n# TYPE n_total counter\nn_total{a=\"x\\\"\\\\\\ny\"} 1\n\
                      n_total{a=\"\",b=\"z\"} +Inf 7\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        static BOUNDS: [f64; 2] = [0.5, 1.0];
        let histogram = Histogram::new(&BOUNDS);
        histogram.observe(Duration::from_millis(700));
        histogram.observe(Duration::from_secs(2));
        let text = written(|text| text.histogram("h", "times", &histogram));
        let wanted = "# HELP h times\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 0\nh_bucket{le=\"1\"} 1\n\
                      h_bucket{le=\"+Inf\"} 2\nh_sum 2.7\nh_count 2\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn the_memory_of_a_text_that_was_sent_is_used_again() {
        let mut buffer = BytesMut::with_capacity(4096);
        let place = buffer.as_ptr();
        for _ in 0..100 {
            let mut text = Text::new(buffer);
            (0..20).for_each(|n| text.gauge("some_name_that_is_long_enough", "help", f64::from(n)));
            let (sent, rest) = text.finish();
            drop(sent);
            buffer = rest;
            // What the next text asks for first.
            buffer.reserve(4096);
        }
        assert_eq!(buffer.as_ptr(), place);
    }
}
