//! Hit rates of every policy at every size, each cell a replay of its own through an L1 alone.

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;
use kvkeep::arena::PAGE;
use kvkeep::config::{NodeConfig, StoreMode};
use kvkeep::policy;

use super::engine::{ReplayCounts, ReplayEngine};
use super::trace::{TraceRequest, blocks};
use super::{FoundMode, ReplayArgs, svg};
use crate::{Outcome, text};

const SIZES: [f64; 5] = [1.0, 5.0, 10.0, 20.0, 50.0];
/// Each block takes whole units of this many bytes of L1.
const UNIT: u64 = 64;

struct Cell<'a> {
    policy: &'a str,
    share: f64,
    l1_bytes: u64,
}

/// Makes the table and the plot.
pub fn run(args: &ReplayArgs, requests: &[TraceRequest]) -> Outcome {
    let (asked, unique) = blocks(requests);
    let policies: Vec<&str> = if args.policy == "all" { policy::NAMES.to_vec() } else { vec![&args.policy] };
    let mut sizes = if args.sizes.is_empty() { SIZES.to_vec() } else { args.sizes.clone() };
    sizes.sort_unstable_by(f64::total_cmp);
    sizes.dedup();

    let capacity = |share: f64| (share / 100.0 * unique as f64).round().max(1.0) as u64;
    let l1_bytes = |share| (capacity(share).saturating_mul(args.block_bytes.next_multiple_of(UNIT))).max(PAGE as u64);
    let cells: Vec<Cell> = policies
        .iter()
        .flat_map(|policy| sizes.iter().map(|&share| Cell { policy, share, l1_bytes: l1_bytes(share) }))
        .collect();
    let largest = cells.iter().map(|cell| cell.l1_bytes).max().unwrap_or(1);
    let workers = workers(largest)?.min(cells.len());

    let bar = text::bar(asked * cells.len() as u64, "blocks");
    let began = Instant::now();
    let results = replay_all(args, requests, &cells, workers, &bar);
    bar.finish_and_clear();
    let tallies = results?;

    let prefix_mode = args.mode == Some(FoundMode::Prefix);
    let rates: Vec<svg::PlotLine> = policies
        .iter()
        .zip(tallies.chunks(sizes.len()))
        .map(|(policy, row)| svg::PlotLine {
            name: (*policy).to_owned(),
            values: row.iter().map(|counts| text::percent(counts.hits(), counts.asked)).collect(),
            prefixes: if prefix_mode {
                Vec::new()
            } else {
                row.iter().map(|counts| text::percent(counts.prefix_hits, counts.asked)).collect()
            },
        })
        .collect();
    let sum = |of: fn(&ReplayCounts) -> u64| tallies.iter().map(of).sum::<u64>();
    let limit = text::percent(asked - unique, asked);
    let name = args.trace.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let plot = svg::Plot {
        title: format!("Block hit rate over {name}"),
        subtitle: format!(
            "{} requests, {} blocks asked, {} different, {} a block, L1 alone{}",
            text::count(requests.len() as u64),
            text::count(asked),
            text::count(unique),
            text::bytes(args.block_bytes),
            if prefix_mode { ", only prefixes count" } else { "; dashed: prefixes alone" }
        ),
        x: sizes.clone(),
        lines: rates,
        limit,
    };
    let path = args.svg.as_deref().unwrap_or(Path::new("replay.svg"));
    std::fs::write(path, svg::draw(&plot))
        .map_err(|error| format!("the plot {} cannot be written: {error}; give --svg another file", path.display()))?;

    let mut report = String::new();
    let _ = writeln!(report, "Block hit rate in % by the size of L1 as a share of the different blocks.");
    let _ = writeln!(report, "{}; {limit:.2} % is what an endless cache hits.\n", plot.subtitle);
    report += &rows(&sizes, &plot.lines, |line| &line.values);
    if !prefix_mode {
        let _ = writeln!(
            report,
            "\nPrefix hit rate in %: the blocks found before the first missing one of their request. An engine can use no others.\n"
        );
        report += &rows(&sizes, &plot.lines, |line| &line.prefixes);
    }
    let _ = writeln!(
        report,
        "\n{} replays in {:.1} s: {} read and checked, {} wrong bytes, {} written, {} blocks refused.\nThe plot is in {}.",
        tallies.len(),
        began.elapsed().as_secs_f64(),
        text::bytes(sum(|counts| counts.read_bytes)),
        text::count(sum(|counts| counts.wrong_bytes)),
        text::bytes(sum(|counts| counts.written_bytes)),
        text::count(sum(|counts| counts.refused)),
        path.display()
    );
    text::print(&report);
    Ok(sum(|counts| counts.wrong_bytes) == 0)
}

/// A table of rates, one row for each policy.
fn rows(sizes: &[f64], lines: &[svg::PlotLine], of: impl Fn(&svg::PlotLine) -> &[f64]) -> String {
    let heads: String = sizes.iter().map(|share| format!(" {:>6} |", format!("{share} %"))).collect();
    let mut table = format!("| policy |{heads}\n|--------|{}\n", "-------:|".repeat(sizes.len()));
    for line in lines {
        let values: String = of(line).iter().map(|rate| format!(" {rate:6.2} |")).collect();
        let _ = writeln!(table, "| {:<6} |{values}", line.name);
    }
    table
}

/// How many replays fit the processors and the memory that is free now.
fn workers(largest: u64) -> Result<usize, String> {
    let processors = thread::available_parallelism().map_or(1, |count| count.get());
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let Some(free) = free.map(|kib| kib * 1024) else { return Ok(processors) };
    if largest > free {
        return Err(format!(
            "the largest L1 of the table has {}, but {} of memory are free: give smaller --block-bytes or --sizes",
            text::bytes(largest),
            text::bytes(free)
        ));
    }
    Ok(processors.min((free / largest) as usize))
}

fn replay_all(
    args: &ReplayArgs,
    requests: &[TraceRequest],
    cells: &[Cell],
    workers: usize,
    bar: &ProgressBar,
) -> Result<Vec<ReplayCounts>, String> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; cells.len()]);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let at = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(cell) = cells.get(at)
                {
                    let result = replay(args, requests, cell, bar);
                    if result.is_err() {
                        next.store(cells.len(), Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[at] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.into_iter().flatten().collect()
}

fn replay(
    args: &ReplayArgs,
    requests: &[TraceRequest],
    cell: &Cell,
    bar: &ProgressBar,
) -> Result<ReplayCounts, String> {
    let failed = |error: kvkeep::error::Error| format!("{} at {} %: {error}", cell.policy, cell.share);
    let config = NodeConfig {
        prefault: false,
        eviction_policy: cell.policy.to_owned(),
        watermark_high_percent: 100,
        watermark_low_percent: 100,
        store_mode: StoreMode::Never,
        ..NodeConfig::new(cell.l1_bytes)
    };
    let any = args.mode != Some(FoundMode::Prefix);
    let mut engine = ReplayEngine::open(config, args.block_bytes as usize, any, false).map_err(failed)?;
    for request in requests {
        engine.serve(&request.hash_ids).map_err(failed)?;
        bar.inc(request.hash_ids.len() as u64);
    }
    Ok(engine.counts)
}
