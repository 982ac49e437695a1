//! How long a scheduler's own calls take while other threads store, load and evict in a small L1 above a directory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvkeep::error::KVKEEP_OK;
use kvkeep::ffi::options::kvkeep_prefetch_mode::KVKEEP_PREFETCH_EACH;
use kvkeep::key::Key;

use crate::RUNS;
use crate::cache::{Cache, Setup, fill, views};
use crate::prefetch::{directory, url};
use crate::random::Random;
use crate::report::{Report, Wanted};

/// Keys in play: eight times what L1 holds, twice what the directory may.
const KEYS: usize = 16_384;
const OBJECT_BYTES: u64 = 64 << 10;
const L1_BYTES: u64 = 128 << 20;
/// Keys of the scheduler's jobs, and of a writer's batch.
const JOB: usize = 256;
const WRITE: usize = 32;
/// Jobs of the scheduler at once.
const OPEN_MAX: usize = 32;
const RUN: Duration = Duration::from_secs(2);
/// The scheduler's pause between two steps.
const STEP: Duration = Duration::from_micros(500);

/// The writer's pause after a batch: what it offers is then about what a disk takes, 1 GB/s.
const WRITE_PAUSE: Duration = Duration::from_millis(2);
/// Steps of arithmetic that take about as long as a submit.
const SPINS: u32 = 40_000;

/// Stores random runs of keys until told to stop.
fn writer(cache: &Cache, keys: &[Key], stop: &AtomicBool, mut random: Random) {
    let (sizes, mut views) = (vec![OBJECT_BYTES; WRITE], views(WRITE));
    while !stop.load(Ordering::Relaxed) {
        let from = random.below(keys.len() - WRITE);
        let batch = &keys[from..from + WRITE];
        let session = cache.begin();
        cache.reserve_write(session, batch, &sizes, &mut views);
        let mut staged = Vec::new();
        for (view, key) in views.iter().zip(batch) {
            if view.status == KVKEEP_OK as i32 {
                fill(view, &mut random);
                staged.push(*key);
            }
        }
        if !staged.is_empty() {
            cache.finish_write(session, &staged);
        }
        cache.end(session);
        std::thread::sleep(WRITE_PAUSE);
    }
}

/// Loads random runs of keys until told to stop; its session's end returns the shares.
fn loader(cache: &Cache, keys: &[Key], stop: &AtomicBool, mut random: Random) {
    while !stop.load(Ordering::Relaxed) {
        let from = random.below(keys.len() - JOB);
        let session = cache.begin();
        let job = cache.submit(session, &keys[from..from + JOB], KVKEEP_PREFETCH_EACH);
        cache.wait(job);
        cache.end(session);
    }
}

/// Submits and asks as a scheduler does, and times each call: microseconds of the submits, of the queries, and of plain
/// arithmetic on the same thread, which shows what the busy machine itself costs.
fn schedule(cache: &Cache, keys: &[Key], random: &mut Random) -> [Vec<f64>; 3] {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let (began, mut open) = (Instant::now(), Vec::new());
    while began.elapsed() < RUN {
        let mut timed = |kind: usize, call: Instant| times[kind].push(call.elapsed().as_secs_f64() * 1e6);
        if open.len() < OPEN_MAX {
            let from = random.below(keys.len() - JOB);
            let session = cache.begin();
            let call = Instant::now();
            let job = cache.submit(session, &keys[from..from + JOB], KVKEEP_PREFETCH_EACH);
            timed(0, call);
            open.push((session, job));
        }
        open.retain(|&(session, job)| {
            let call = Instant::now();
            cache.lookup_hits(job);
            timed(1, call);
            let call = Instant::now();
            let done = cache.result(job).is_some();
            timed(1, call);
            if done {
                cache.end(session);
            }
            !done
        });
        let call = Instant::now();
        (0..SPINS).fold(0u32, |sum, i| std::hint::black_box(sum ^ i));
        timed(2, call);
        std::thread::sleep(STEP);
    }
    open.into_iter().for_each(|(session, _)| cache.end(session));
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    times
}

pub fn run(report: &mut Report) {
    let names = ["submit_p99_us", "submit_p50_us", "submit_max_us", "arithmetic_p99_us"];
    if !report.wants(&names) {
        return;
    }
    let mut random = Random::new(5);
    let dir = directory();
    let url = format!("{}?capacity={}", url(dir.path()), KEYS as u64 / 2 * OBJECT_BYTES);
    let cache =
        Cache::open(Setup { l1_bytes: L1_BYTES, url: Some(&url), background_eviction: true, ..Default::default() });
    let keys = random.keys(KEYS);
    let stop = AtomicBool::new(false);
    let mut runs: [Vec<f64>; 4] = Default::default();
    std::thread::scope(|scope| {
        let (cache, keys, stop) = (&cache, &keys[..], &stop);
        scope.spawn(move || writer(cache, keys, stop, Random::new(6)));
        scope.spawn(move || loader(cache, keys, stop, Random::new(7)));
        for round in 0..=RUNS {
            let [submits, queries, spins] = schedule(cache, keys, &mut random);
            let at = |times: &[f64], share: f64| times[((times.len() - 1) as f64 * share) as usize];
            // Of submits and queries, whichever are slower.
            let slower = |share| at(&submits, share).max(at(&queries, share));
            // The first round fills the tiers.
            if round > 0 {
                let row = [slower(0.99), slower(0.5), slower(1.0), at(&spins, 0.99)];
                runs.iter_mut().zip(row).for_each(|(runs, value)| runs.push(value));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let [p99, p50, most, spin] = runs;
    report.add(names[0], "us", p99, Wanted::AtMost(500.0));
    report.add(names[1], "us", p50, Wanted::Nothing);
    report.add(names[2], "us", most, Wanted::Nothing);
    report.add(names[3], "us", spin, Wanted::Nothing);
}
