//! One replay through a real cache, and its report.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use kvkeep::abi::{KVKEEP_TIERS_MAX, Stats};
use kvkeep::config::NodeConfig;

use super::engine::{ReplayCounts, ReplayEngine};
use super::trace::{Trace, TraceRequest};
use super::{FoundMode, ReplayArgs, Speed};
use crate::{Outcome, text};

const L1_BYTES: u64 = 1 << 30;
/// Bytes of a block, if none are given: small ones take little memory and time.
const BLOCK_BYTES: u64 = 4096;

/// Replays the trace once.
pub fn run(args: &ReplayArgs, trace: &Trace) -> Outcome {
    if args.l2.len() >= KVKEEP_TIERS_MAX {
        return Err(format!("{} backends are too many: give at most {}", args.l2.len(), KVKEEP_TIERS_MAX - 1));
    }
    let (l1_bytes, policy) = match (&args.l1[..], &args.policies()[..]) {
        ([], [policy]) => (L1_BYTES, policy.clone()),
        ([l1_bytes], [policy]) => (*l1_bytes, policy.clone()),
        _ => return Err("--real runs once: give one size to --l1 and one policy, or leave out --real".to_owned()),
    };
    if let Some(size) = args.l2.iter().find(|url| !url.contains(':')) {
        return Err(format!("--real takes the URL of a backend, not {size}: give --l2 'fs:///PATH?capacity={size}'"));
    }
    let block_bytes = args.block_bytes.unwrap_or(BLOCK_BYTES);
    if block_bytes > l1_bytes {
        let (block, l1) = (text::bytes(block_bytes), text::bytes(l1_bytes));
        return Err(format!("no block of {block} fits an L1 of {l1}: give a larger --l1 or smaller --block-bytes"));
    }
    let (watermark_high_percent, watermark_low_percent) = args.watermarks()?;
    let config = NodeConfig {
        backend_urls: args.l2.clone(),
        checksum: !args.no_checksum,
        eviction_policy: policy,
        watermark_high_percent,
        watermark_low_percent,
        ..NodeConfig::new(l1_bytes)
    };
    let any = args.mode == FoundMode::Any;
    let mut engine = ReplayEngine::open(config, block_bytes as usize, any, args.speed == Speed::Max)
        .map_err(|error| error.message)?;
    let requests = || trace.requests();
    let bar = text::bar(requests().count() as u64, "requests");
    let began = Instant::now();
    let first = requests().next().map_or(0, |request| request.timestamp);
    for request in requests() {
        if args.speed == Speed::Realtime {
            let due = Duration::from_millis(request.timestamp.saturating_sub(first));
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        engine.serve(&request.hash_ids).map_err(|error| format!("request {}: {error}", engine.counts.requests))?;
        bar.inc(1);
    }
    let stats = engine.finish().map_err(|error| error.message)?;
    bar.finish_and_clear();
    text::print(&report(args, trace, &engine.counts, &stats, began.elapsed()));
    Ok(engine.counts.wrong_bytes == 0)
}

fn report(args: &ReplayArgs, trace: &Trace, counts: &ReplayCounts, stats: &Stats, time: Duration) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<18}{value}");
    };
    let count = text::count;
    let share = |part: u64| format!("{:>12}  {:6.2} %", count(part), text::percent(part, counts.asked));
    let number = |number: u64| format!("{:>12}", count(number));

    let (asked, unique) = trace.blocks();
    let tokens = |of: fn(&TraceRequest) -> u64| count(trace.requests().map(of).sum());
    line("requests", format!("{}  in {:.1} s", number(counts.requests), time.as_secs_f64()));
    line("prompt tokens", format!("{:>12}", tokens(|request| request.input_length)));
    line("answer tokens", format!("{:>12}", tokens(|request| request.output_length)));
    line(
        "blocks asked",
        format!(
            "{}  of {} each, {} different",
            number(asked),
            text::bytes(args.block_bytes.unwrap_or(BLOCK_BYTES)),
            count(unique)
        ),
    );
    line("hits in L1", share(counts.hits[0]));
    for (i, url) in args.l2.iter().enumerate() {
        line(&format!("hits in {}", scheme(url)), share(counts.hits[i + 1]));
    }
    line("hits", share(counts.hits()));
    line("prefix hits", format!("{}  an engine can use", share(counts.prefix_hits)));
    if counts.beyond > 0 {
        line("beyond a gap", format!("{}  were in L1, but behind a missing one", share(counts.beyond)));
    }
    line(
        "wrong bytes",
        match counts.wrong_bytes {
            0 => format!("{}  of {} read", number(0), count(counts.read_bytes)),
            wrong => format!(
                "{}  of {} read, in {} blocks",
                number(wrong),
                count(counts.read_bytes),
                count(counts.wrong_blocks)
            ),
        },
    );
    let moved =
        |bytes: u64, time, what: &str| format!("{:>12}  {:>11}, {what}", text::bytes(bytes), text::rate(bytes, time));
    line("read", moved(counts.read_bytes, counts.read_time, "copied out of L1 and checked"));
    line("written", moved(counts.written_bytes, counts.write_time, "made and copied into L1"));
    if !args.l2.is_empty() {
        line("loaded from L2", moved(stats.loaded_bytes, counts.load_time, "in prefetches that loaded"));
        line("stored to L2", moved(stats.stored_bytes, time, "over the whole replay"));
        line("L2 stores", format!("{}  and {} not needed", number(stats.stores), count(stats.stores_already)));
        line("L2 holds", format!("{}  objects, {}", number(stats.l2_objects), text::bytes(stats.l2_bytes)));
        line("L2 evictions", number(stats.l2_evictions));
    }
    line("L1 commits", number(stats.commits));
    line("L1 evictions", format!("{}  {}", number(stats.evictions), text::bytes(stats.evicted_bytes)));
    let (used, whole) = (text::bytes(stats.l1_used_bytes), text::bytes(stats.l1_bytes));
    line("L1 holds", format!("{}  objects, {used} of {whole}", number(stats.l1_objects)));
    for (name, value) in [
        ("refused, L1 full", counts.refused),
        ("blocks not loaded", counts.failed),
        ("load failures", stats.load_failures),
        ("corrupt objects", stats.corruptions),
        ("late backends", stats.backend_timeouts),
        ("stores retried", stats.store_retries),
        ("stores dropped", stats.stores_dropped),
    ] {
        if value > 0 {
            line(name, number(value));
        }
    }
    for (name, histogram) in [
        ("lookup", &stats.lookup_latency),
        ("prefetch", &stats.prefetch_latency),
        ("load an object", &stats.load_latency),
        ("store an object", &stats.store_latency),
    ] {
        if histogram.count > 0 {
            line(
                name,
                format!("p50 {:>12}   p99 {:>12}", text::quantile(histogram, 50), text::quantile(histogram, 99)),
            );
        }
    }
    text
}

/// What stands before the colon: the rest may hold a password.
fn scheme(url: &str) -> &str {
    url.split_once(':').map_or(url, |(scheme, _)| scheme)
}
