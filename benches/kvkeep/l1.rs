//! L1 alone: reads and writes by batch, sharing, memory beside the payload.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kvkeep::key::Key;

use crate::cache::{Cache, Setup, views};
use crate::random::Random;
use crate::report::{Report, Wanted, median};
use crate::{RUN_TIME, RUNS, heap};

const MILLION: usize = 1 << 20;
pub const RESIDENT: usize = 100_000;
/// The payload is not read while timing, so its size does not matter; it is written before.
const OBJECT_BYTES: u64 = 1024;
/// Payload of a written key; its bytes are left as they are, only the store's own work is timed.
const WRITTEN_BYTES: u64 = 256;
pub const BATCH: usize = 256;
const SMALL: usize = 32;

fn resident(random: &mut Random) -> (Cache, Vec<Key>) {
    let cache = Cache::open(Setup { l1_bytes: 256 << 20, ..Default::default() });
    let keys = random.keys(RESIDENT);
    let session = cache.begin();
    for batch in keys.chunks(1000) {
        cache.stage(session, batch, OBJECT_BYTES, random);
        cache.finish_write(session, batch);
    }
    cache.end(session);
    (cache, keys)
}

/// Keys a second of reserve_read + finish_read, all resident keys in the order given, again and again.
pub fn read(cache: &Cache, order: &[Key], batch: usize, extra: i32) -> f64 {
    let session = cache.begin();
    let mut views = views(batch);
    let (began, mut keys) = (Instant::now(), 0);
    'run: loop {
        for (i, batch) in order.chunks_exact(batch).enumerate() {
            cache.reserve_read(session, batch, extra, &mut views);
            black_box(&mut views);
            cache.finish_read(session, batch, extra);
            keys += batch.len();
            // The clock is asked rarely, so that it costs a batch of one nothing.
            if i % 64 == 63 && began.elapsed() >= RUN_TIME {
                break 'run;
            }
        }
    }
    let rate = keys as f64 / began.elapsed().as_secs_f64();
    cache.end(session);
    rate
}

fn reads(report: &mut Report, random: &mut Random) {
    let names = ["l1_read_b256_keys_per_s", "l1_read_b256_extra7_keys_per_s", "l1_read_b1_calls_per_s"];
    if !report.wants(&names) {
        return;
    }
    let (cache, mut order) = resident(random);
    let mut runs = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=RUNS {
        random.shuffle(&mut order);
        for (runs, (batch, extra)) in runs.iter_mut().zip([(BATCH, 0), (BATCH, 7), (1, 0)]) {
            let rate = read(&cache, &order, batch, extra);
            if round > 0 {
                runs.push(rate);
            }
        }
    }
    let [plain, extra, single] = runs;
    let near = median(&plain) * 0.95;
    report.add(names[0], "keys/s", plain, Wanted::AtLeast(15e6));
    report.add(names[1], "keys/s", extra, Wanted::AtLeast(near));
    // A pair of reserve_read and finish_read counts as one call.
    report.add(names[2], "calls/s", single, Wanted::AtLeast(5e6));
}

/// Keys a second of reserve_read of keys that are not there: why each is missing is looked for, and counted.
fn misses(report: &mut Report, random: &mut Random) {
    let name = "l1_read_miss_b256_keys_per_s";
    if !report.wants(&[name]) {
        return;
    }
    let (cache, _) = resident(random);
    let mut views = views(BATCH);
    let runs = (0..=RUNS).map(|_| {
        let (session, keys) = (cache.begin(), random.keys(RESIDENT));
        let (began, mut asked) = (Instant::now(), 0);
        while began.elapsed() < RUN_TIME {
            for batch in keys.chunks_exact(BATCH) {
                cache.reserve_absent(session, batch, &mut views);
                black_box(&mut views);
                asked += batch.len();
            }
        }
        let rate = asked as f64 / began.elapsed().as_secs_f64();
        cache.end(session);
        rate
    });
    let runs = runs.skip(1).collect();
    report.add(name, "keys/s", runs, Wanted::Nothing);
}

fn two_threads(report: &mut Report, random: &mut Random) {
    let names = ["l1_read_2threads_b32_ratio", "l1_read_1thread_b32_keys_per_s", "l1_read_2threads_b32_keys_per_s"];
    if !report.wants(&names) {
        return;
    }
    let (cache, mut order) = resident(random);
    let mut other = order.clone();
    let (mut ratio, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        random.shuffle(&mut order);
        random.shuffle(&mut other);
        let alone = read(&cache, &order, SMALL, 0);
        let start = Barrier::new(2);
        let together = std::thread::scope(|scope| {
            let rates = [&order, &other].map(|order| {
                let (cache, start) = (&cache, &start);
                scope.spawn(move || {
                    start.wait();
                    read(cache, order, SMALL, 0)
                })
            });
            rates.into_iter().map(|rate| rate.join().expect("a reader")).sum::<f64>()
        });
        ratio.push(together / alone);
        one.push(alone);
        two.push(together);
    }
    report.add(names[0], "ratio", ratio, Wanted::Nothing);
    report.add(names[1], "keys/s", one, Wanted::Nothing);
    report.add(names[2], "keys/s", two, Wanted::Nothing);
}

/// Keys a second of reserve_write + finish_write of new keys, `RESIDENT` at a time; `between` runs untimed after each time.
fn write(cache: &Cache, random: &mut Random, between: impl Fn(&Cache)) -> f64 {
    let session = cache.begin();
    let sizes = vec![WRITTEN_BYTES; BATCH];
    let mut views = views(BATCH);
    let (mut seconds, mut written) = (0.0, 0);
    while seconds < RUN_TIME.as_secs_f64() {
        let keys = random.keys(RESIDENT);
        let began = Instant::now();
        for batch in keys.chunks_exact(BATCH) {
            assert!(cache.reserve_write(session, batch, &sizes, &mut views));
            black_box(&mut views);
            cache.finish_write(session, batch);
            written += batch.len();
        }
        seconds += began.elapsed().as_secs_f64();
        between(cache);
    }
    cache.end(session);
    written as f64 / seconds
}

fn writes(report: &mut Report, random: &mut Random) {
    let names = ["l1_write_b256_keys_per_s", "l1_write_evict_b256_keys_per_s"];
    if !report.wants(&names) {
        return;
    }
    // Nothing is evicted: there is room, and L1 is cleared between two fillings.
    let cache = Cache::open(Setup { l1_bytes: 64 << 20, ..Default::default() });
    let runs = (0..=RUNS).map(|_| write(&cache, random, Cache::clear)).skip(1).collect();
    report.add(names[0], "keys/s", runs, Wanted::AtLeast(6e6));
    // Every new key evicts an old one inside the call: L1 is full and has room for as many keys as one filling.
    let cache = Cache::open(Setup { l1_bytes: RESIDENT as u64 * WRITTEN_BYTES, ..Default::default() });
    let runs = (0..=RUNS).map(|_| write(&cache, random, |_| {})).skip(1).collect();
    report.add(names[1], "keys/s", runs, Wanted::Nothing);
}

/// The longest call while L1 grows from nothing to a million objects: its tables are not to grow in one caller's call.
fn growth(report: &mut Report, random: &mut Random) {
    let name = "l1_growing_max_us";
    if !report.wants(&[name]) {
        return;
    }
    let sizes = vec![WRITTEN_BYTES; SMALL];
    let mut views = views(SMALL);
    let runs = (0..3)
        .map(|_| {
            let cache = Cache::open(Setup { l1_bytes: 2 * MILLION as u64 * WRITTEN_BYTES, ..Default::default() });
            let mut most = Duration::ZERO;
            for keys in random.keys(MILLION).chunks(BATCH * SMALL) {
                let session = cache.begin();
                for batch in keys.chunks_exact(SMALL) {
                    let began = Instant::now();
                    assert!(cache.reserve_write(session, batch, &sizes, &mut views));
                    let reserved = began.elapsed();
                    cache.finish_write(session, batch);
                    most = most.max(reserved).max(began.elapsed() - reserved);
                }
                cache.end(session);
            }
            most.as_secs_f64() * 1e6
        })
        .collect();
    report.add(name, "us", runs, Wanted::Nothing);
}

/// Heap that opening a cache and inserting keys takes, a key. The payload lies in the mapping, which is no heap.
fn memory(report: &mut Report, random: &mut Random) {
    let name = "l1_bytes_per_key";
    if !report.wants(&[name]) {
        return;
    }
    let runs = (0..3)
        .map(|_| {
            let keys = random.keys(RESIDENT);
            let (sizes, mut views) = (vec![WRITTEN_BYTES; 1000], views(1000));
            let (cache, grown) = heap::growth(|| {
                let cache = Cache::open(Setup { l1_bytes: 64 << 20, ..Default::default() });
                let session = cache.begin();
                for batch in keys.chunks(1000) {
                    assert!(cache.reserve_write(session, batch, &sizes, &mut views));
                    cache.finish_write(session, batch);
                }
                cache.end(session);
                cache
            });
            drop(cache);
            grown as f64 / RESIDENT as f64
        })
        .collect();
    report.add(name, "bytes", runs, Wanted::AtMost(200.0));
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(2);
    reads(report, &mut random);
    misses(report, &mut random);
    two_threads(report, &mut random);
    writes(report, &mut random);
    growth(report, &mut random);
    memory(report, &mut random);
}
