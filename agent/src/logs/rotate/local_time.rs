//! The node's local time, which is in the names of rotated logs. The C library knows the node's time zone; a time zone
//! database of our own would be 100 KiB for nodes that keep UTC nearly always.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use jiff::civil::DateTime;

/// Now, to the second. UTC when the C library cannot tell.
pub fn now() -> DateTime {
    let seconds = jiff::Timestamp::now().as_second();
    local(seconds).unwrap_or_else(|| jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()))
}

fn local(seconds: i64) -> Option<DateTime> {
    let mut broken = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, and localtime_r writes all of `tm` when it answers its address.
    let tm = unsafe {
        if libc::localtime_r(&seconds, broken.as_mut_ptr()).is_null() {
            return None;
        }
        broken.assume_init()
    };
    let small = |value: libc::c_int| i8::try_from(value).ok();
    let year = i16::try_from(tm.tm_year + 1900).ok()?;
    // A leap second is the second before it.
    let second = small(tm.tm_sec.min(59))?;
    DateTime::new(year, small(tm.tm_mon + 1)?, small(tm.tm_mday)?, small(tm.tm_hour)?, small(tm.tm_min)?, second, 0)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_is_within_a_day_of_utc() {
        let utc = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::from_second(1_750_000_000).unwrap());
        let apart = local(1_750_000_000).unwrap().duration_since(utc).as_hours();
        assert!((-14..=14).contains(&apart), "{apart}");
    }
}
