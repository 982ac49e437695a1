//! The `fs` backend through the whole stack, against fio and a bare ring on the same disk in turns, and what verifying costs.

use std::time::{Duration, Instant};

use kvkeep::key::Key;

use crate::bare::Bare;
use crate::cache::{Cache, Setup};
use crate::fio::{self, Fio, Work};
use crate::prefetch::{directory, load, store, url};
use crate::random::Random;
use crate::report::{Report, Wanted};
use crate::{RUN_TIME, RUNS};

/// Objects of a job, and files of fio.
const OBJECTS: usize = 256;
const MIB: u64 = 1 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// Seconds of processor time that this process has used.
pub fn cpu_seconds() -> f64 {
    // SAFETY: plain data for which zero is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a live local.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Loads all keys by one job, again and again: GB/s, and seconds of processor time a GiB (emptying L1 between two jobs counts
/// in the latter).
fn load_run(cache: &Cache, keys: &[Key]) -> (f64, f64) {
    let (mut spent, mut bytes, cpu) = (Duration::ZERO, 0, cpu_seconds());
    while spent < RUN_TIME {
        let (_, time, loaded) = load(cache, keys);
        spent += time;
        bytes += loaded;
    }
    (bytes as f64 / spent.as_secs_f64() / 1e9, (cpu_seconds() - cpu) / (bytes as f64 / GIB))
}

/// L1 is populated and empty, the files are not in the page cache; 256 objects by one job, checksums verified.
fn loads(report: &mut Report, random: &mut Random, mib: u64) {
    let [ratio, to_bare, ours, theirs] = [
        format!("fs_load_{mib}mib_vs_fio"),
        format!("fs_load_{mib}mib_vs_bare"),
        format!("fs_load_{mib}mib_gb_per_s"),
        format!("fio_read_{mib}mib_gb_per_s"),
    ];
    let cpu = if mib == 1 { "fs_load_cpu_s_per_gib".to_owned() } else { format!("fs_load_{mib}mib_cpu_s_per_gib") };
    if !report.wants(&[&ratio, &to_bare, &ours, &theirs, &cpu]) {
        return;
    }
    let (dir, size) = (directory(), mib * MIB);
    let url = url(&dir.path().join("objects"));
    let keys = random.keys(OBJECTS);
    store(&url, &keys, size, random);
    let fio = Fio::find(dir.path());
    fio::lay(dir.path(), size, OBJECTS, random);
    let depth = fio.as_ref().map_or(0, |fio| fio.best_depth(Work::Read, dir.path(), size, OBJECTS));
    let mut bare = Bare::over(dir.path(), size, OBJECTS, random);
    let cache =
        Cache::open(Setup { l1_bytes: OBJECTS as u64 * size + 64 * MIB, url: Some(&url), ..Default::default() });
    load_run(&cache, &keys);
    let (mut ratios, mut ours_runs, mut theirs_runs, mut cpu_runs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut to_bare_runs, mut bare_runs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let bare = bare.as_mut().map(|bare| bare.run(random));
        let (rate, cpu) = load_run(&cache, &keys);
        ours_runs.push(rate);
        cpu_runs.push(cpu);
        to_bare_runs.extend(bare.map(|bare| rate / bare));
        bare_runs.extend(bare);
        let theirs = fio.as_ref().and_then(|fio| fio.run(Work::Read, dir.path(), size, OBJECTS, depth));
        ratios.extend(theirs.map(|theirs| rate / theirs));
        theirs_runs.extend(theirs);
    }
    if !ratios.is_empty() {
        report.add(ratio, "ratio", ratios, Wanted::AtLeast(0.95));
        report.add(theirs, "GB/s", theirs_runs, Wanted::Nothing);
        report.add(format!("fio_read_{mib}mib_depth"), "files", vec![f64::from(depth)], Wanted::Nothing);
    }
    if !to_bare_runs.is_empty() {
        report.add(to_bare, "ratio", to_bare_runs, Wanted::Nothing);
        report.add(format!("bare_read_{mib}mib_gb_per_s"), "GB/s", bare_runs, Wanted::Nothing);
    }
    report.add(ours, "GB/s", ours_runs, Wanted::Nothing);
    report.add(cpu, "s/GiB", cpu_runs, if mib == 1 { Wanted::AtMost(0.5) } else { Wanted::Nothing });
}

/// GB/s from the commit of 256 objects to "stored", repeated; they are deleted between two times.
fn store_run(cache: &Cache, size: u64, random: &mut Random) -> f64 {
    let (mut spent, mut bytes) = (Duration::ZERO, 0);
    while spent < RUN_TIME {
        let keys = random.keys(OBJECTS);
        let session = cache.begin();
        cache.stage(session, &keys, size, random);
        let began = Instant::now();
        cache.finish_write(session, &keys);
        cache.drain();
        spent += began.elapsed();
        bytes += OBJECTS as u64 * size;
        cache.end(session);
        cache.delete(&keys);
    }
    bytes as f64 / spent.as_secs_f64() / 1e9
}

/// fio makes and writes as many new files; overwriting files that are there is compared too, since it spares the file system
/// the making.
fn stores(report: &mut Report, random: &mut Random, mib: u64) {
    let [ratio, over, ours] =
        ["vs_fio", "vs_fio_overwrite", "gb_per_s"].map(|what| format!("fs_store_{mib}mib_{what}"));
    if !report.wants(&[&ratio, &over, &ours]) {
        return;
    }
    let (dir, size) = (directory(), mib * MIB);
    let url = url(&dir.path().join("objects"));
    let cache =
        Cache::open(Setup { l1_bytes: OBJECTS as u64 * size + 64 * MIB, url: Some(&url), ..Default::default() });
    let fio = Fio::find(dir.path());
    let depths = fio
        .as_ref()
        .map(|fio| [Work::WriteNew, Work::Overwrite].map(|work| fio.best_depth(work, dir.path(), size, OBJECTS)));
    store_run(&cache, size, random);
    let (mut ours_runs, mut ratios, mut rates) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..RUNS {
        let rate = store_run(&cache, size, random);
        ours_runs.push(rate);
        let (Some(fio), Some(depths)) = (&fio, depths) else { continue };
        fio::clean(dir.path());
        for (i, work) in [Work::WriteNew, Work::Overwrite].into_iter().enumerate() {
            let theirs = fio.run(work, dir.path(), size, OBJECTS, depths[i]);
            ratios[i].extend(theirs.map(|theirs| rate / theirs));
            rates[i].extend(theirs);
        }
    }
    let [made, overwritten] = ratios;
    let [made_rates, overwritten_rates] = rates;
    if let (Some(depths), false) = (depths, made.is_empty()) {
        report.add(ratio, "ratio", made, Wanted::AtLeast(0.9));
        report.add(over, "ratio", overwritten, Wanted::Nothing);
        report.add(format!("fio_write_{mib}mib_gb_per_s"), "GB/s", made_rates, Wanted::Nothing);
        report.add(format!("fio_write_{mib}mib_depth"), "files", vec![f64::from(depths[0])], Wanted::Nothing);
        report.add(format!("fio_overwrite_{mib}mib_gb_per_s"), "GB/s", overwritten_rates, Wanted::Nothing);
    }
    report.add(ours, "GB/s", ours_runs, Wanted::Nothing);
}

/// Two caches on one directory, one of which does not verify; each run is a pair of loads.
fn checksum(report: &mut Report, random: &mut Random) {
    let name = "fs_checksum_cost";
    if !report.wants(&[name]) {
        return;
    }
    let dir = directory();
    let url = url(dir.path());
    let keys = random.keys(OBJECTS);
    store(&url, &keys, MIB, random);
    let open = |no_checksum| {
        Cache::open(Setup {
            l1_bytes: OBJECTS as u64 * MIB + 64 * MIB,
            url: Some(&url),
            no_checksum,
            ..Default::default()
        })
    };
    let (with, without) = (open(false), open(true));
    load_run(&with, &keys);
    let runs = (0..RUNS).map(|_| 1.0 / load_run(&with, &keys).0 * load_run(&without, &keys).0).collect();
    report.add(name, "ratio", runs, Wanted::AtMost(1.1));
}

/// Two caches on two directories, one of which has its objects encrypted; each run is a pair of loads, and a pair of stores.
fn encryption(report: &mut Report, random: &mut Random) {
    let names = ["fs_load_encryption_cost", "fs_store_encryption_cost"];
    if !report.wants(&names) {
        return;
    }
    let dir = directory();
    let key = dir.path().join("key");
    std::fs::write(&key, "5e".repeat(32)).expect("writing a key");
    let urls =
        [url(&dir.path().join("encrypted")) + &format!("?key_file={}", key.display()), url(&dir.path().join("plain"))];
    let keys = random.keys(OBJECTS);
    let [encrypted, plain] = urls.each_ref().map(|url| {
        store(url, &keys, MIB, random);
        let cache =
            Cache::open(Setup { l1_bytes: OBJECTS as u64 * MIB + 64 * MIB, url: Some(url), ..Default::default() });
        load_run(&cache, &keys);
        cache
    });
    let (mut loads, mut stores) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        loads.push(load_run(&plain, &keys).0 / load_run(&encrypted, &keys).0);
        stores.push(store_run(&plain, MIB, random) / store_run(&encrypted, MIB, random));
    }
    for (name, runs) in names.into_iter().zip([loads, stores]) {
        report.add(name, "ratio", runs, Wanted::AtMost(1.3));
    }
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(4);
    for mib in [1, 4] {
        loads(report, &mut random, mib);
    }
    for mib in [1, 4] {
        stores(report, &mut random, mib);
    }
    checksum(report, &mut random);
    encryption(report, &mut random);
}
