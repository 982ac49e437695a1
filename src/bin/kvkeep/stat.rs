//! `kvkeep stat`: what is in a directory, without reading payloads, or what a daemon counted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kvkeep::abi::Stats;
use kvkeep::key::{SpaceTag, hex};
use kvkeep::prometheus::{self, COUNTERS, GAUGES, LATENCIES, LatencyMetric, Metric};
use kvkeep::space_names::SpaceNames;
use serde_json::{Value as Json, json};

use crate::directory::{self, Directory};
use crate::{Outcome, daemon, text};

/// Show what is in an fs directory, or what a daemon counted
///
/// In a directory, counts objects and bytes from the names and sizes of files alone; opens no cache and reads no payload. A
/// space is shown by its tag, the fingerprint of model, layout, chunk tokens and tenant, and by these names, where the
/// directory has them.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep stat /var/cache/kvkeep\n  kvkeep stat --json /var/cache/kvkeep | jq .objects\n  kvkeep stat unix:///run/kvkeep.sock"
)]
pub struct StatArgs {
    /// The directory of an fs backend, or a daemon as unix:///PATH
    #[arg(value_name = "DIRECTORY|URL")]
    of: PathBuf,
    /// Print one JSON object, sizes in bytes, times in seconds since 1970
    #[arg(long)]
    json: bool,
}

/// Sums over objects that are counted together.
#[derive(Default)]
struct Sum {
    objects: u64,
    /// Bytes of all payloads.
    bytes: u64,
    /// Bytes of all files.
    file_bytes: u64,
    used: Option<(SystemTime, SystemTime)>,
    /// Objects whose payload is at most 2^i bytes, by i.
    sizes: BTreeMap<u32, u64>,
}

impl Sum {
    fn add(&mut self, payload: u64, file: u64, used: SystemTime) {
        self.objects += 1;
        self.bytes += payload;
        self.file_bytes += file;
        let (oldest, newest) = self.used.unwrap_or((used, used));
        self.used = Some((oldest.min(used), newest.max(used)));
        *self.sizes.entry(payload.max(1).next_power_of_two().ilog2()).or_default() += 1;
    }

    fn json(&self) -> Json {
        let sizes: Vec<Json> =
            self.sizes.iter().map(|(log, objects)| json!({"at_most_bytes": 1u64 << log, "objects": objects})).collect();
        json!({
            "objects": self.objects,
            "bytes": self.bytes,
            "file_bytes": self.file_bytes,
            "oldest_use": self.used.map(|used| text::unix(used.0)),
            "newest_use": self.used.map(|used| text::unix(used.1)),
            "sizes": sizes,
        })
    }
}

/// Prints what is in a directory, or what a daemon counted.
pub fn run(args: &StatArgs) -> Outcome {
    if let Some(url) = args.of.to_str().filter(|of| of.starts_with("unix:")) {
        let (stats, spaces) = daemon::once(url, false, |client| Ok((daemon::stats(client)?, daemon::spaces(client))))?;
        text::print(&if args.json { counted_json(&stats, spaces) } else { counted(&stats, spaces) });
        return Ok(true);
    }
    let directory = directory::read(&args.of)?;
    let mut all = Sum::default();
    let mut spaces: BTreeMap<SpaceTag, Sum> = BTreeMap::new();
    for (key, entry) in &directory.objects {
        for sum in [&mut all, spaces.entry(key.space).or_default()] {
            sum.add(entry.payload_bytes(), entry.bytes, entry.used);
        }
    }
    let report = if args.json { as_json(&directory, &all, &spaces) } else { as_text(&directory, &all, &spaces) };
    text::print(&report);
    Ok(true)
}

fn counted_json(stats: &Stats, spaces: Result<Vec<Json>, String>) -> String {
    let mut value = prometheus::json(stats);
    if let Ok(spaces) = spaces {
        value["spaces"] = Json::Array(spaces);
    }
    format!("{value:#}\n")
}

/// Everything that a daemon counted, by name.
fn counted(stats: &Stats, spaces: Result<Vec<Json>, String>) -> String {
    let mut report = String::new();
    for Metric { name, help, of } in GAUGES.iter().chain(COUNTERS) {
        let value = if name.ends_with("bytes") { text::bytes(of(stats)) } else { text::count(of(stats)) };
        let _ = writeln!(report, "{value:>14}  {name:<24}{help}");
    }
    for LatencyMetric { name, help, of, .. } in LATENCIES {
        let histogram = of(stats);
        let mean = Duration::from_micros(histogram.sum_us.checked_div(histogram.count).unwrap_or(0));
        let _ =
            writeln!(report, "{:>14}  {name:<24}{help} Mean of {}.", format!("{mean:?}"), text::count(histogram.count));
    }
    report += &spaces.map_or_else(|why| format!("\nspaces are not shown: {why}\n"), |spaces| spaces_text(&spaces));
    if let Some(sentence) = prometheus::backlog(stats) {
        let _ = writeln!(report, "\n{sentence}");
    }
    report
}

fn spaces_text(spaces: &[Json]) -> String {
    if spaces.is_empty() {
        return String::new();
    }
    let mut report = format!("\n{:>14}{:>14}  space\n", "objects in L1", "bytes in L1");
    for space in spaces {
        let of = |name: &str| space[name].as_u64().unwrap_or(0);
        let (objects, bytes) = (text::count(of("objects")), text::bytes(of("used_bytes")));
        let names = serde_json::from_value::<SpaceNames>(space.clone())
            .map_or_else(|_| "?".to_owned(), |names| names.to_string());
        let _ = writeln!(report, "{objects:>14}{bytes:>14}  {names} ({})", space["space"].as_str().unwrap_or("?"));
    }
    report
}

fn as_json(directory: &Directory, all: &Sum, spaces: &BTreeMap<SpaceTag, Sum>) -> String {
    let mut value = all.json();
    let of_spaces = spaces.iter().map(|(tag, sum)| {
        let mut value = sum.json();
        if let Some(Json::Object(names)) = directory.names.get(tag).map(|names| json!(names)) {
            names.into_iter().for_each(|(name, of)| value[name.as_str()] = of);
        }
        value["space"] = json!(hex(&tag.0));
        value
    });
    value["spaces"] = Json::Array(of_spaces.collect());
    for (name, count) in [
        ("being_written", directory.writing.len()),
        ("stale_temporaries", directory.stale.len()),
        ("quarantined", directory.quarantined.len()),
        ("foreign", directory.foreign.len()),
    ] {
        value[name] = json!(count);
    }
    format!("{value:#}\n")
}

fn as_text(directory: &Directory, all: &Sum, spaces: &BTreeMap<SpaceTag, Sum>) -> String {
    let mut report = String::new();
    let _ = writeln!(
        report,
        "{:>12}  objects, {} of payload in {} of files",
        text::count(all.objects),
        text::bytes(all.bytes),
        text::bytes(all.file_bytes)
    );
    report += &directory.leftovers();
    if let Some((oldest, newest)) = all.used {
        let _ = writeln!(report, "\noldest use    {}\nnewest use    {}", text::date(oldest), text::date(newest));
        let _ = writeln!(report, "\n{:<34}{:>12}{:>12}  last used", "space", "objects", "payload");
        for (tag, sum) in spaces {
            let (name, objects, bytes) = (hex(&tag.0), text::count(sum.objects), text::bytes(sum.bytes));
            let last = sum.used.map_or_else(String::new, |used| text::date(used.1));
            let names = directory.names.get(tag).map_or_else(String::new, |names| format!("  {names}\n"));
            let _ = write!(report, "{name:<34}{objects:>12}{bytes:>12}  {last}\n{names}");
        }
        let _ = writeln!(report, "\npayload of at most");
        let most = all.sizes.values().copied().max().unwrap_or(1);
        for (log, &objects) in &all.sizes {
            let stroke = "#".repeat((objects * 40).div_ceil(most) as usize);
            let _ = writeln!(report, "{:>12}{:>12}  {stroke}", text::bytes(1 << log), text::count(objects));
        }
    }
    report
}
