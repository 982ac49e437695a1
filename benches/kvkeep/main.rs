//! What the cache costs and how near it comes to its limits, measured through the C ABI beside its comparators.
//!
//! `cargo bench --bench kvkeep [part of a name]…` prints a table and writes `results.json` to `KVKEEP_BENCH_OUT`, or to
//! `target/bench`; with `--device` it measures transfers to and from pages instead, into `results-device.json`. Every value
//! is the median of several runs. A run of a throughput takes 0.3 s or more (a transfer's is one GiB); a run of a latency is
//! the median of its calls (the 99th percentile where the name says so). L1 is populated before any timing, bytes and keys
//! are random, and what is compared runs alternately.
#![allow(unsafe_code)]
// A benchmark that cannot go on stops.
#![allow(clippy::expect_used, clippy::unwrap_used)]

#[cfg(feature = "ablation")]
mod ablation;
mod bare;
mod cache;
mod daemon;
mod device;
mod fio;
mod fs;
mod half_duplex;
mod heap;
mod l1;
mod prefetch;
mod random;
mod redis;
mod redis_client;
mod report;
#[cfg(feature = "s3")]
mod s3;
mod scheduler;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use report::{Report, Wanted};

/// Runs of each measurement.
pub const RUNS: usize = 7;
/// Shortest timed part of a run.
pub const RUN_TIME: Duration = Duration::from_millis(300);

fn memcpy(report: &mut Report) {
    const BYTES: usize = 256 << 20;
    if !report.wants(&["memcpy_gb_per_s"]) {
        return;
    }
    let mut random = random::Random::new(1);
    let mut from = vec![0; BYTES];
    random.fill(&mut from);
    let mut to = from.clone();
    let runs = (0..RUNS)
        .map(|_| {
            let (began, mut copied) = (Instant::now(), 0);
            while began.elapsed() < RUN_TIME {
                to.copy_from_slice(std::hint::black_box(&from));
                std::hint::black_box(&mut to);
                copied += BYTES;
            }
            copied as f64 / began.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    report.add("memcpy_gb_per_s", "GB/s", runs, Wanted::Nothing);
}

#[cfg(feature = "ablation")]
use ablation::run as run_without;

#[cfg(not(feature = "ablation"))]
fn run_without(_: &mut Report) {
    panic!("nothing can be turned off: add `--features ablation`");
}

fn main() {
    if daemon::plays_a_role() {
        return;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        return println!("nothing is measured: run by `cargo bench --bench kvkeep`");
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let (device, without) = (has("--device"), has("--without"));
    let mut report = Report::new(args.into_iter().filter(|arg| !arg.starts_with("--")).collect());
    report.head();
    let name = if device {
        device::run(&mut report);
        "results-device.json"
    } else if without {
        run_without(&mut report);
        "results-without.json"
    } else {
        memcpy(&mut report);
        l1::run(&mut report);
        prefetch::run(&mut report);
        fs::run(&mut report);
        #[cfg(feature = "s3")]
        s3::run(&mut report);
        redis::run(&mut report);
        scheduler::run(&mut report);
        daemon::run(&mut report);
        "results.json"
    };
    report.summary();
    let out = std::env::var_os("KVKEEP_BENCH_OUT").map_or_else(|| PathBuf::from("target/bench"), PathBuf::from);
    report.write(&out, name).expect("writing the results");
}
