//! Numbers and times as people read them, and the progress bar.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use kvkeep::abi::Histogram;

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes in the unit that fits.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let unit = ((number.ilog2() / 10) as usize).min(UNITS.len());
    let scaled = number as f64 / 1024f64.powi(unit as i32);
    if scaled.fract() == 0.0 {
        format!("{scaled} {}", UNITS[unit - 1])
    } else {
        format!("{scaled:.1} {}", UNITS[unit - 1])
    }
}

/// The bound of the bucket that the `percent`th sample is in.
pub fn quantile(histogram: &Histogram, percent: u64) -> String {
    let wanted = (histogram.count * percent).div_ceil(100);
    let mut seen = 0;
    let bucket = histogram.buckets.iter().position(|samples| {
        seen += samples;
        seen >= wanted
    });
    let last = histogram.buckets.len() - 1;
    match bucket.unwrap_or(last) {
        i if i == last => format!("> {}", duration(1 << (last - 1))),
        i => format!("<= {}", duration(1 << i)),
    }
}

fn duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// So many milliseconds in the unit that fits.
pub fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// `part` of `whole` in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// Gigabytes (10^9) a second.
pub fn rate(bytes: u64, time: Duration) -> String {
    if bytes == 0 || time.is_zero() {
        return "-".to_owned();
    }
    format!("{:.2} GB/s", bytes as f64 / 1e9 / time.as_secs_f64())
}

/// Whole seconds since 1970.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A time as date and hour, UTC.
pub fn date(time: SystemTime) -> String {
    let seconds = unix(time);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day last (the civil-from-days method).
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day + 2) / 153;
    let (month, day) = ((march_month + 2) % 12 + 1, day - (153 * march_month + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

/// Prints to the standard output. A failed write means that no reader is left (`| head`), and is ignored.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A bar on the standard error, hidden where that is no terminal.
pub fn bar(length: u64, unit: &str) -> ProgressBar {
    let template = format!("{{elapsed_precise}} [{{bar:40}}] {{human_pos}}/{{human_len}} {unit} {{msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_as_people_write_them() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1023, 4096, 1 << 30, 1_500_000].map(bytes), ["1023 B", "4 KiB", "1 GiB", "1.4 MiB"]);
        assert_eq!([999, 1000, 150_000, 7_300_000].map(time), ["999 ms", "1.0 s", "2 min", "2 h"]);
        let at = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59 UTC");
    }
}
