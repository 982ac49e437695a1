//! `kvkeep top`: what a daemon does now, in a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvkeep::abi::{Histogram, Stats};
use kvkeep::cache::Cache as _;
use kvkeep::prometheus;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::refusals::Refusals;
use crate::{Outcome, daemon, text, why};

/// Between two looks at whether to end.
const LOOK: Duration = Duration::from_millis(50);
/// Places of a bar.
const BAR: u64 = 40;
/// A screen of its own without a cursor, and back; to its beginning; the rest of a line, and of the screen.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

/// Show what a daemon does now, each second anew
///
/// Ends with Ctrl-C. Where the output is no terminal, one report follows the other.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep top unix:///run/kvkeep.sock\n  kvkeep top --count 1 unix:///run/kvkeep.sock | head"
)]
pub struct TopArgs {
    /// The daemon, as unix:///PATH
    url: String,
    /// End after so many reports
    #[arg(long, value_name = "REPORTS")]
    count: Option<u64>,
    /// Between two reports
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    interval_ms: u64,
}

/// Prints reports until a signal comes or as many as asked for are printed.
pub fn run(args: &TopArgs) -> Outcome {
    let client = daemon::connect(&args.url, false)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, ended.clone())
            .map_err(|error| format!("taking signals failed: {error}"))?;
    }
    let screen = std::io::stdout().is_terminal();
    if screen {
        text::print(ENTER);
    }
    let (mut before, mut shown, mut refusals) = (None, 0, Refusals::default());
    while !ended.load(Ordering::Relaxed) && args.count.is_none_or(|count| shown < count) {
        let now = Instant::now();
        let report = match daemon::stats(&client) {
            Ok(stats) => {
                let since = before.as_ref().map(|(stats, at)| (stats, now - *at));
                let refused = refusals.report(&client, &stats, now);
                let misses = why::ask(&client).map_or_else(|sentence| sentence, |answer| why::misses(&answer["all"]));
                let report = report(&args.url, &stats, since, refused.as_deref(), &misses);
                before = Some((stats, now));
                report
            }
            // It may come back, and the client with it.
            Err(sentence) => {
                before = None;
                format!("kvkeep  {}\n\n{sentence}\n", args.url)
            }
        };
        show(&report, screen);
        shown += 1;
        let next = now + Duration::from_millis(args.interval_ms.max(1));
        while !ended.load(Ordering::Relaxed) && args.count != Some(shown) && Instant::now() < next {
            sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        }
    }
    if screen {
        text::print(LEAVE);
    }
    client.close();
    Ok(true)
}

fn show(report: &str, screen: bool) {
    if screen {
        let lines = report.replace('\n', &format!("{REST_OF_LINE}\n"));
        text::print(&format!("{HOME}{lines}{REST_OF_SCREEN}"));
    } else {
        text::print(&format!("{report}\n"));
    }
}

/// A bar of which `locked` is a part of `used`.
fn bar(used: u64, locked: u64, whole: u64) -> String {
    let places = |part: u64| {
        (u128::from(part) * u128::from(BAR)).div_ceil(u128::from(whole.max(1))).min(u128::from(BAR)) as usize
    };
    let (used, locked) = (places(used), places(locked.min(used)));
    format!("[{}{}{}]", "=".repeat(locked), "-".repeat(used - locked), " ".repeat(BAR as usize - used))
}

/// The time that so many percent of the samples since `before` took at most, as exactly as the buckets allow.
fn within(percent: u64, now: &Histogram, before: Option<&Histogram>) -> String {
    let mut since = *now;
    for (count, before) in since.buckets.iter_mut().zip(before.unwrap_or(&Histogram::default()).buckets) {
        *count = count.saturating_sub(before);
    }
    since.count = since.buckets.iter().sum();
    if since.count == 0 { "-".to_owned() } else { text::quantile(&since, percent) }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.0} %", text::percent(part, whole)) }
}

// Writing to a string cannot fail.
fn report(url: &str, stats: &Stats, before: Option<(&Stats, Duration)>, refused: Option<&str>, misses: &str) -> String {
    let since = |of: fn(&Stats) -> u64| before.map_or(0, |(before, _)| of(stats).saturating_sub(of(before)));
    let rate = |of: fn(&Stats) -> u64| match before {
        Some((_, time)) if !time.is_zero() => {
            format!("{}/s", text::bytes((since(of) as f64 / time.as_secs_f64()) as u64))
        }
        _ => "-".to_owned(),
    };
    let mut report = format!("kvkeep  {url}\n\n");
    let _ = writeln!(
        report,
        "L1      {} {} of {}, {} in use (=), {} objects",
        bar(stats.l1_used_bytes, stats.l1_locked_bytes, stats.l1_bytes),
        text::bytes(stats.l1_used_bytes),
        text::bytes(stats.l1_bytes),
        text::bytes(stats.l1_locked_bytes),
        text::count(stats.l1_objects)
    );
    let _ = writeln!(report, "L2      {} in {} objects", text::bytes(stats.l2_bytes), text::count(stats.l2_objects));
    let _ = writeln!(
        report,
        "live    {} clients, {} sessions, {} jobs, {} shares, {} staged, {} writes waiting",
        stats.clients, stats.sessions, stats.jobs, stats.l1_shares, stats.l1_staged, stats.writes_pending
    );
    let (held, waits) = (text::time(stats.oldest_share_ms), text::time(stats.oldest_write_ms));
    let _ = writeln!(report, "        the oldest share is held for {held}, the oldest write waits for {waits}\n");
    for sentence in prometheus::backlog(stats).as_deref().into_iter().chain(refused) {
        let _ = writeln!(report, "{sentence}\n");
    }
    let _ = writeln!(report, "{:<24}{:>14}{:>14}", "", "now", "in all");
    for (name, part, whole) in [
        (
            "hits, any tier",
            (|s: &Stats| s.prefetch_hit_chunks) as fn(&Stats) -> u64,
            (|s: &Stats| s.prefetch_asked_chunks) as fn(&Stats) -> u64,
        ),
        ("hits in L1", |s: &Stats| s.read_hits, |s: &Stats| s.read_hits + s.read_misses),
        ("hits in L2", |s: &Stats| s.l2_hits, |s: &Stats| s.read_hits + s.read_misses),
    ] {
        let (now, all) = (share(since(part), since(whole)), share(part(stats), whole(stats)));
        let _ = writeln!(report, "{name:<24}{now:>14}{all:>14}");
    }
    report += misses;
    for (name, of) in [
        ("loaded from L2", (|s: &Stats| s.loaded_bytes) as fn(&Stats) -> u64),
        ("stored in L2", |s: &Stats| s.stored_bytes),
        ("evicted from L1", |s: &Stats| s.evicted_bytes),
    ] {
        let _ = writeln!(report, "{name:<24}{:>14}{:>14}", rate(of), text::bytes(of(stats)));
    }
    for (name, of) in [
        ("commits", (|s: &Stats| s.commits) as fn(&Stats) -> u64),
        ("tokens saved", |s: &Stats| s.saved_tokens),
        ("refusals", |s: &Stats| s.refusals),
        ("load failures", |s: &Stats| s.load_failures + s.corruptions),
        ("writes given up", |s: &Stats| s.stores_dropped),
        ("backend timeouts", |s: &Stats| s.backend_timeouts),
    ] {
        let _ = writeln!(report, "{name:<24}{:>14}{:>14}", text::count(since(of)), text::count(of(stats)));
    }
    let _ = writeln!(report, "\n{:<24}{:>14}{:>14}", "takes at most", "half", "99 %");
    for (name, of) in [
        ("lookup", (|s: &Stats| &s.lookup_latency) as fn(&Stats) -> &Histogram),
        ("prefetch", |s: &Stats| &s.prefetch_latency),
        ("load of an object", |s: &Stats| &s.load_latency),
        ("store of an object", |s: &Stats| &s.store_latency),
    ] {
        let before = before.map(|(before, _)| of(before));
        let _ =
            writeln!(report, "{name:<24}{:>14}{:>14}", within(50, of(stats), before), within(99, of(stats), before));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_it_says() {
        assert_eq!(bar(0, 0, 0), format!("[{}]", " ".repeat(40)));
        assert_eq!(bar(50, 25, 100), format!("[{}{}{}]", "=".repeat(10), "-".repeat(10), " ".repeat(20)));
        assert_eq!(bar(200, 200, 100), format!("[{}]", "=".repeat(40)));
    }

    #[test]
    fn a_share_of_the_samples_took_no_longer() {
        let mut now = Histogram::default();
        assert_eq!(within(50, &now, None), "-");
        (now.buckets[3], now.buckets[10]) = (98, 2);
        assert_eq!([within(50, &now, None), within(99, &now, None)], ["<= 8 us", "<= 1024 us"]);
        assert_eq!(within(99, &now, Some(&now)), "-");
        // The last bucket has no end.
        now.buckets[25] = 100;
        assert_eq!(within(99, &now, None), "> 16 s");
    }

    #[test]
    fn what_happened_since_is_told_apart_from_all() {
        let before = Stats { prefetch_hit_chunks: 10, prefetch_asked_chunks: 10, ..Stats::default() };
        let now = Stats { prefetch_hit_chunks: 10, prefetch_asked_chunks: 20, loaded_bytes: 4096, ..before };
        let report =
            report("unix:///x", &now, Some((&before, Duration::from_secs(2))), Some("L1 refuses"), "missed: evicted\n");
        assert!(report.contains("\nL1 refuses\n\n"), "{report}");
        let line = |name: &str| report.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(line("hits, any tier").split_whitespace().skip(3).collect::<Vec<_>>(), ["0", "%", "50", "%"]);
        assert!(line("loaded from L2").contains("2 KiB/s"));
    }
}
