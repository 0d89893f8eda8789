//! Resource quantities ("100m", "1.5Gi", "2e3"): parsing, rounding and the canonical form.
//!
//! Values are kept in nano units of an `i128`, which covers the API's whole range exactly.
//! Source: `resource.Quantity` of k8s.io/apimachinery, whose documentation defines the three suffix families.

use std::fmt;

const NANO: i128 = 1_000_000_000;

/// The suffix family that a quantity was written in; it decides the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `m`, none, `k`, `M`, `G`, ...
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, ...
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

/// An exact amount of a resource.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: expected a number with an optional suffix such as m, k, M, G, Ki, Mi, Gi or e3")]
pub struct ParseQuantityError(String);

impl Quantity {
    /// An amount of whole units.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    /// An amount of thousandths, as CPU is counted.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, ParseQuantityError> {
        parse(text).ok_or_else(|| ParseQuantityError(text.to_owned()))
    }

    /// Whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    /// The sum, in the format of `self`.
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), format: self.format }
    }

    /// The difference, in the format of `self`.
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.format }
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    match value % by {
        0 => quotient,
        rest => quotient + rest.signum(),
    }
}

/// Suffixes and their factor in nano units.
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

fn parse(text: &str) -> Option<Quantity> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    if let Some((_, shift)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some(Quantity { nanos: scaled(number, 1i128 << shift)?, format: Format::BinarySi });
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some(Quantity { nanos: decimal(number, *exponent)?, format: Format::DecimalSi });
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    Some(Quantity { nanos: decimal(number, exponent)?, format: Format::DecimalExponent })
}

/// The largest amount that is kept apart from larger ones (more than 10^28 units; the API's whole numbers end at 10^19).
/// What is larger is capped, as the API does, instead of being refused.
const MAX: i128 = i128::MAX / 4;

fn decimal(number: &str, exponent: i32) -> Option<i128> {
    // Beyond 38 digits of either sign the result is capped or a single nano anyway.
    let power = 10i128.pow(exponent.unsigned_abs().min(38));
    if exponent >= 0 { scaled(number, power) } else { Some(div_up(scaled(number, 1)?, power)) }
}

/// `number` times `factor` in nano units, capped; digits below a nano round away from zero.
fn scaled(number: &str, factor: i128) -> Option<i128> {
    let (sign, digits) = match number.as_bytes().first()? {
        b'-' => (-1, &number[1..]),
        b'+' => (1, &number[1..]),
        _ => (1, number),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let (fraction, beyond) = fraction.split_at(fraction.len().min(18));
    let mantissa = match format!("0{whole}{fraction}").parse::<i128>() {
        // What is cut off still rounds away from zero.
        Ok(mantissa) => mantissa + i128::from(beyond.bytes().any(|digit| digit != b'0')),
        Err(_) => return Some(sign * MAX),
    };
    let divisor = 10i128.pow(u32::try_from(fraction.len()).unwrap_or(18));
    Some(sign * product(mantissa, factor, divisor).min(MAX))
}

/// `mantissa * factor * NANO / divisor` rounded up, without overflow on the way; at most a little above [`MAX`].
fn product(mantissa: i128, factor: i128, divisor: i128) -> i128 {
    let (whole, rest) = (mantissa / divisor, mantissa % divisor);
    let whole = whole.checked_mul(factor).and_then(|n| n.checked_mul(NANO)).unwrap_or(MAX);
    // rest < divisor <= 10^18; where this overflows, factor is above 10^11 and dividing first loses less than a nano.
    let rest = match rest.checked_mul(factor).and_then(|n| n.checked_mul(NANO)) {
        Some(exact) => div_up(exact, divisor),
        None => rest.checked_mul(factor).map_or(MAX, |n| div_up(n, divisor).saturating_mul(NANO)),
    };
    whole.saturating_add(rest)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A binary suffix is kept only for whole amounts of at least 1024; the API does the same.
        if self.format == Format::BinarySi && self.nanos % NANO == 0 && (self.nanos / NANO).abs() >= 1024 {
            let mut value = self.nanos / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = name;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nanos;
        let mut exponent = -9;
        while value != 0 && value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if value == 0 {
            return f.write_str("0");
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{value}"),
            Format::DecimalExponent => write!(f, "{value}e{exponent}"),
            Format::DecimalSi | Format::BinarySi => {
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(name, _)| name);
                write!(f, "{value}{suffix}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_printed_in_canonical_form() {
        for (text, milli, canonical) in [
            ("100m", 100, "100m"),
            ("1", 1000, "1"),
            ("1.5", 1500, "1500m"),
            ("0.5Gi", 536_870_912_000, "512Mi"),
            ("1500Mi", 1_572_864_000_000, "1500Mi"),
            ("1024Ki", 1_048_576_000, "1Mi"),
            ("1e3", 1_000_000, "1e3"),
            ("2k", 2_000_000, "2k"),
            ("2000", 2_000_000, "2k"),
            ("1n", 1, "1n"),
            ("0", 0, "0"),
            ("-1.5", -1500, "-1500m"),
            ("12E", i64::MAX, "12E"),
        ] {
            let quantity = Quantity::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(quantity.milli_value(), milli, "{text}");
            assert_eq!(quantity.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn amounts_beyond_the_api_are_capped_and_the_smallest_is_a_nano() {
        for (text, value) in [
            ("100E", i64::MAX),
            ("99999999999999999999999999999999999999999999E", i64::MAX),
            ("-100E", i64::MIN),
            ("1e99", i64::MAX),
            ("8Ei", i64::MAX),
            ("7.5Ei", 15 << 59),
            ("0.000000000000000000000000001", 1),
            ("1e-99", 1),
            ("00000000000000000000000000000000000000000000000001", 1),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().value(), value, "{text}");
        }
        assert_eq!(Quantity::parse("0.0000000001").unwrap().to_string(), "1n");
    }

    proptest::proptest! {
        #[test]
        fn canonical_text_means_the_same_amount(
            whole in 0u64..1_000_000_000,
            fraction in 0u32..1_000_000_000,
            suffix in proptest::sample::select(vec!["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3"]),
        ) {
            let quantity = Quantity::parse(&format!("{whole}.{fraction:09}{suffix}")).unwrap();
            let canonical = quantity.to_string();
            let again = Quantity::parse(&canonical).unwrap();
            proptest::prop_assert_eq!(quantity, again);
            proptest::prop_assert_eq!(again.to_string(), canonical);
        }

        #[test]
        fn order_and_sums_are_those_of_the_numbers(a in -1_000_000_000i64..1_000_000_000, b in -1_000_000_000i64..1_000_000_000) {
            let (x, y) = (Quantity::parse(&format!("{a}m")).unwrap(), Quantity::parse(&format!("{b}m")).unwrap());
            proptest::prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            proptest::prop_assert_eq!(x.plus(y).milli_value(), a + b);
            proptest::prop_assert_eq!(x.minus(y).milli_value(), a - b);
            let up = if a < 0 { -((-a + 999) / 1000) } else { (a + 999) / 1000 };
            proptest::prop_assert_eq!(x.value(), up);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}|[-+0-9.eEKMGTPkmnui]{0,60}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let _ = (quantity.value(), quantity.milli_value(), quantity.to_string());
            }
        }
    }

    #[test]
    fn text_that_is_no_quantity_is_refused() {
        for text in ["", "Gi", "1.2.3", "1 Gi", "0x10", "1e", "--1", ".", "1ki"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }
}
