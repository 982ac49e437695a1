//! Hit rates by the size of L1, by policy and by the size of L2: each cell a simulation of its own.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::ProgressBar;

use super::bars::BarStyle;
use super::request_player::RequestPlayer;
use super::simulation::{ENDLESS, SimulatedConfig, SimulatedCounts, Simulation, l1_room};
use super::trace::Trace;
use super::{FoundMode, ReplayArgs, size, svg};
use crate::{Outcome, text};

/// Bytes of a block of a trace that does not say them: 512 tokens of a model of 32 layers with 8 KV heads of 128 two-byte numbers.
const BLOCK_BYTES: u64 = 64 << 20;
/// Sizes that are chosen go down to this part of what the whole trace needs.
const SMALLEST_PART: u64 = 128;
/// A size is enough that has this share of the hits of an endless cache.
const ENOUGH_PERCENT: f64 = 95.0;
/// Characters of a line that bars share.
const BARS_WIDTH: usize = 64;

/// A size of L1.
struct SizeRow {
    name: String,
    bytes: u64,
}

/// A cache whose L1 has every size.
struct CacheColumn {
    name: String,
    policy: String,
    l2_bytes: Option<u64>,
}

/// What a simulation came to.
#[derive(Clone, Default)]
struct Simulated {
    counts: SimulatedCounts,
    evictions: [u64; 2],
    holds: [(u64, u64); 2],
}

struct Table {
    rows: Vec<SizeRow>,
    columns: Vec<CacheColumn>,
    /// Row by row.
    cells: Vec<Simulated>,
    endless: SimulatedCounts,
}

/// A hit rate in percent.
type Rate = fn(&SimulatedCounts) -> f64;

fn prefix_rate(counts: &SimulatedCounts) -> f64 {
    text::percent(counts.prefix_hits, counts.asked)
}

fn block_rate(counts: &SimulatedCounts) -> f64 {
    text::percent(counts.hits(), counts.asked)
}

/// Makes the table, and the plot if one is wanted.
pub fn run(args: &ReplayArgs, trace: &mut Trace) -> Outcome {
    let began = Instant::now();
    let assumed = trace.set_unknown_bytes(args.block_bytes, BLOCK_BYTES);
    let footprint = Footprint::of(trace, assumed);
    let table = simulate(args, trace, &footprint)?;
    let mut report = summary(trace, &footprint);
    report += &table.recorded(trace);
    let any = args.mode == FoundMode::Any;
    if any {
        report += "Hit rate in %, each block for itself, by the size of L1:\n\n";
        report += &table.draw(block_rate);
        report += "\nOf blocks that an engine can use, those before the first missing one of their request:\n\n";
    } else {
        report += "Hit rate in % by the size of L1. Only blocks before the first missing one of their request count:\n";
        report += "an engine can use no others.\n\n";
    }
    report += &table.draw(prefix_rate);
    report += "\n";
    report += &table.advice();
    if let ([_], [.., cell]) = (&table.rows[..], &table.cells[..])
        && table.columns.iter().all(|column| column.policy == table.columns[0].policy)
    {
        report += "\n";
        report += &details(cell, table.columns.iter().any(|column| column.l2_bytes.is_some()));
    }
    let (count, seconds) = (table.cells.len() + 1, began.elapsed().as_secs_f64());
    let _ = writeln!(report, "\n{count} simulations in {seconds:.1} s.");
    if let Some(path) = &args.svg {
        std::fs::write(path, svg::draw(&table.plot(args, trace))).map_err(|error| {
            format!("the plot {} cannot be written: {error}; give --svg another file", path.display())
        })?;
        let _ = writeln!(report, "The plot is in {}.", path.display());
    }
    text::print(&report);
    Ok(true)
}

/// The memory that the whole trace needs.
struct Footprint {
    objects: u64,
    /// Of L1, for all of them.
    bytes: u64,
    /// Of L1, for the largest.
    largest: u64,
    /// The sizes are not the trace's, nor the caller's.
    assumed: bool,
}

impl Footprint {
    fn of(trace: &Trace, assumed: bool) -> Footprint {
        let objects = trace.objects();
        let rooms = || objects.iter().map(|&id| l1_room(trace.bytes_of(id)));
        let bytes = rooms().fold(0, u64::saturating_add);
        Footprint { objects: objects.len() as u64, bytes, largest: rooms().max().unwrap_or(1), assumed }
    }

    /// The size of a block, on average.
    fn block(&self) -> u64 {
        self.bytes / self.objects.max(1)
    }
}

fn summary(trace: &Trace, footprint: &Footprint) -> String {
    let (asked, _) = trace.blocks();
    let tokens = trace.requests().map(|request| request.input_length).sum();
    let times = || trace.requests().map(|request| request.timestamp);
    let seconds = times().max().unwrap_or(0).saturating_sub(times().min().unwrap_or(0)) / 1000;
    let assumed = if footprint.assumed { " (assumed: give --block-bytes)" } else { "" };
    let count = text::count;
    format!(
        "{} requests of {} tokens within {} s ask for {} blocks, {} different.\nThese take {}: {} each{assumed}.\n",
        count(trace.requests().count() as u64),
        count(tokens),
        count(seconds),
        count(asked),
        count(footprint.objects),
        text::bytes(footprint.bytes),
        text::bytes(footprint.block()),
    )
}

/// The sizes of L1, ascending, each once.
fn rows(args: &ReplayArgs, footprint: &Footprint) -> Result<Vec<SizeRow>, String> {
    let &Footprint { bytes: all, largest: block, .. } = footprint;
    if !args.sizes.is_empty() {
        let mut shares = args.sizes.clone();
        shares.sort_unstable_by(f64::total_cmp);
        shares.dedup();
        let blocks = |share: f64| (share / 100.0 * footprint.objects as f64).round().max(1.0) as u64;
        return Ok(shares
            .into_iter()
            .map(|share| {
                let bytes = blocks(share).saturating_mul(footprint.block()).max(block);
                SizeRow { name: format!("{share} % = {}", text::bytes(bytes)), bytes }
            })
            .collect());
    }
    let mut sizes = args.l1.clone();
    if sizes.is_empty() {
        let (high, _) = args.watermarks()?;
        let top = (u128::from(all) * 100).div_ceil(u128::from(high)).min(u128::from(ENDLESS / 2)) as u64;
        let top = top.next_power_of_two();
        let powers = std::iter::successors(Some(top), |size| Some(size / 2));
        sizes = powers.take_while(|&size| size >= top / SMALLEST_PART && size >= block).collect();
    }
    sizes.sort_unstable();
    sizes.dedup();
    if let Some(small) = sizes.iter().find(|&&size| size < block) {
        let (block, small) = (text::bytes(block), text::bytes(*small));
        return Err(format!("no block of {block} fits an L1 of {small}: give a larger --l1 or smaller --block-bytes"));
    }
    Ok(sizes.into_iter().map(|bytes| SizeRow { name: text::bytes(bytes), bytes }).collect())
}

/// The caches: each policy by itself, and over each L2.
fn columns(args: &ReplayArgs) -> Result<Vec<CacheColumn>, String> {
    let mut l2 = Vec::new();
    for text in args.l2.iter().flat_map(|text| text.split(',')) {
        if text.contains(':') {
            return Err(
                "--l2 with the URL of a backend needs --real; a simulation takes its size, such as 2TiB".to_owned()
            );
        }
        l2.push(size(text)?);
    }
    l2.sort_unstable();
    l2.dedup();
    let column = |policy: &String, l2_bytes: Option<u64>| CacheColumn {
        name: l2_bytes.map_or(policy.clone(), |bytes| format!("{policy} + L2 {}", text::bytes(bytes))),
        policy: policy.clone(),
        l2_bytes,
    };
    let of_policy = |policy: &String| -> Vec<CacheColumn> {
        std::iter::once(None).chain(l2.iter().copied().map(Some)).map(|l2| column(policy, l2)).collect()
    };
    Ok(args.policies().iter().flat_map(of_policy).collect())
}

fn simulate(args: &ReplayArgs, trace: &Trace, footprint: &Footprint) -> Result<Table, String> {
    let (rows, columns, watermarks) = (rows(args, footprint)?, columns(args)?, args.watermarks()?);
    let config = |column: &CacheColumn, l1_bytes| SimulatedConfig {
        policy: column.policy.clone(),
        l1_bytes,
        l2_bytes: column.l2_bytes,
        watermarks,
    };
    let mut configs: Vec<SimulatedConfig> = Vec::new();
    for row in &rows {
        configs.extend(columns.iter().map(|column| config(column, row.bytes)));
    }
    let endless = CacheColumn { name: String::new(), policy: "lru".to_owned(), l2_bytes: None };
    configs.push(config(&endless, ENDLESS));
    let bar = text::bar((trace.events.len() * configs.len()) as u64, "events");
    let cells = run_all(trace, args.mode == FoundMode::Any, &configs, &bar);
    bar.finish_and_clear();
    let mut cells = cells?;
    let endless = cells.pop().unwrap_or_default().counts;
    Ok(Table { rows, columns, cells, endless })
}

/// Runs all simulations, as many at once as there are processors.
fn run_all(trace: &Trace, any: bool, configs: &[SimulatedConfig], bar: &ProgressBar) -> Result<Vec<Simulated>, String> {
    let workers = thread::available_parallelism().map_or(1, |count| count.get()).min(configs.len());
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; configs.len()]);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let at = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(config) = configs.get(at)
                {
                    let result = run_one(trace, any, config, bar);
                    results.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[at] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.into_iter().flatten().collect()
}

fn run_one(trace: &Trace, any: bool, config: &SimulatedConfig, bar: &ProgressBar) -> Result<Simulated, String> {
    let simulation = Simulation::new(config).map_err(|error| error.message)?;
    let simulation = RequestPlayer::new(trace, simulation, any).play(|| bar.inc(1));
    let (l1, l2) = simulation.tiers();
    let of_l2 = l2.map_or((0, (0, 0)), |l2| (l2.evictions, l2.holds()));
    Ok(Simulated { counts: simulation.counts, evictions: [l1.evictions, of_l2.0], holds: [l1.holds(), of_l2.1] })
}

impl Table {
    /// The cells of a size.
    fn of_row(&self, row: usize) -> &[Simulated] {
        &self.cells[row * self.columns.len()..][..self.columns.len()]
    }

    /// One line for each size, with a bar in each column, and one for an endless cache.
    fn draw(&self, rate: Rate) -> String {
        let style = BarStyle::of_locale();
        let width = (BARS_WIDTH / self.columns.len().max(1)).clamp(6, 40);
        let most = self.cells.iter().map(|cell| rate(&cell.counts)).fold(rate(&self.endless), f64::max);
        let names = self.rows.iter().map(|row| row.name.as_str()).chain(["endless"]);
        let name_width = names.map(str::len).max().unwrap_or(0);
        let cell_width = self.columns.iter().map(|column| column.name.len()).fold(width + 7, usize::max);
        let line = |name: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!("  {cell:<cell_width$}")).collect();
            format!("{name:>name_width$}{cells}").trim_end().to_owned() + "\n"
        };
        let cell = |counts: &SimulatedCounts| {
            let value = rate(counts);
            format!("{value:6.2} {}", style.bar(value, most, width))
        };
        let mut table = line("L1", self.columns.iter().map(|column| format!("{:>6}", column.name)).collect());
        for (i, row) in self.rows.iter().enumerate() {
            table += &line(&row.name, self.of_row(i).iter().map(|result| cell(&result.counts)).collect());
        }
        table + &line("endless", vec![cell(&self.endless); self.columns.len()])
    }

    /// What the daemon hit that recorded the trace.
    fn recorded(&self, trace: &Trace) -> String {
        if !trace.recorded {
            return "\n".to_owned();
        }
        let SimulatedCounts { recorded_hits, asked, .. } = self.endless;
        let rate = text::percent(recorded_hits, asked);
        format!("The daemon that recorded them hit {rate:.2} % of {} chunks.\n\n", text::count(asked))
    }

    /// The size from which on more memory gives little, of each column.
    fn advice(&self) -> String {
        let endless = prefix_rate(&self.endless);
        if endless == 0.0 {
            return "No request begins like an earlier one: no cache helps this trace.\n".to_owned();
        }
        let mut advice = String::new();
        for (i, column) in self.columns.iter().enumerate() {
            let of_endless = |row: usize| prefix_rate(&self.of_row(row)[i].counts) * 100.0 / endless;
            let enough = (0..self.rows.len()).find(|&row| of_endless(row) >= ENOUGH_PERCENT);
            let row = enough.unwrap_or(self.rows.len() - 1);
            let (name, size, share) = (&column.name, &self.rows[row].name, of_endless(row));
            let _ = match enough {
                Some(_) => {
                    writeln!(advice, "{name}: an L1 of {size} has {share:.0} % of the hits of an endless cache.")
                }
                None => writeln!(
                    advice,
                    "{name}: no L1 here has {ENOUGH_PERCENT:.0} % of the hits of an endless cache; {size} has {share:.0} %."
                ),
            };
        }
        advice
    }

    fn plot(&self, args: &ReplayArgs, trace: &Trace) -> svg::Plot {
        let any = args.mode == FoundMode::Any;
        let rate: Rate = if any { block_rate } else { prefix_rate };
        let rates = |i: usize, rate: Rate| -> Vec<f64> {
            (0..self.rows.len()).map(|row| rate(&self.of_row(row)[i].counts)).collect()
        };
        let lines = self.columns.iter().enumerate().map(|(i, column)| svg::PlotLine {
            name: column.name.clone(),
            values: rates(i, rate),
            prefixes: if any { rates(i, prefix_rate) } else { Vec::new() },
        });
        let name = args.trace.last().and_then(|path| path.file_name()).unwrap_or_default().to_string_lossy();
        let (asked, unique) = trace.blocks();
        svg::Plot {
            title: format!("Hit rate over {name}"),
            subtitle: format!(
                "{} requests, {} blocks asked, {} different{}",
                text::count(trace.requests().count() as u64),
                text::count(asked),
                text::count(unique),
                if any { "; dashed: prefixes alone" } else { "; only prefixes count" }
            ),
            x: self.rows.iter().map(|row| row.bytes as f64).collect(),
            names: self.rows.iter().map(|row| row.name.clone()).collect(),
            x_title: if args.sizes.is_empty() {
                "size of L1 (log scale)".to_owned()
            } else {
                "size of L1, share of the different blocks (log scale)".to_owned()
            },
            lines: lines.collect(),
            limit: rate(&self.endless),
        }
    }
}

/// The numbers of one cell.
fn details(cell: &Simulated, has_l2: bool) -> String {
    let Simulated { counts, evictions, holds } = cell;
    let mut report = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(report, "{name:<18}{value}");
    };
    let number = |number: u64| format!("{:>12}", text::count(number));
    let share = |part: u64| format!("{}  {:6.2} %", number(part), text::percent(part, counts.asked));
    let objects = |(objects, bytes): (u64, u64)| format!("{}  blocks, {}", number(objects), text::bytes(bytes));
    line("blocks asked", number(counts.asked));
    line("hits in L1", share(counts.l1_hits));
    if has_l2 {
        line("hits in L2", share(counts.l2_hits));
    }
    line("hits", share(counts.hits()));
    line("prefix hits", format!("{}  an engine can use", share(counts.prefix_hits)));
    if counts.beyond > 0 {
        line("beyond a gap", format!("{}  were in L1, but behind a missing one", share(counts.beyond)));
    }
    line("L1 commits", number(counts.commits));
    line("L1 evictions", number(evictions[0]));
    line("L1 holds", objects(holds[0]));
    if has_l2 {
        line("loaded from L2", format!("{:>12}", text::bytes(counts.loaded_bytes)));
        line("stored to L2", format!("{:>12}", text::bytes(counts.l2_stored_bytes)));
        line("L2 stores", number(counts.l2_stores));
        line("L2 evictions", number(evictions[1]));
        line("L2 holds", objects(holds[1]));
    }
    if counts.refused > 0 {
        line("refused, L1 full", number(counts.refused));
    }
    report
}
