//! The same calls with and without one optimisation at a time, in turn: what each brings, as a factor.
//!
//! The library is built with the feature `ablation` for these rows alone.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use kvkeep::ablation::{Optimization, turn_off};
use kvkeep::key::Key;

use crate::cache::{Cache, Setup, views};
use crate::random::Random;
use crate::report::{Report, Wanted};
use crate::{RUN_TIME, RUNS, daemon, device, l1};

/// Below this factor an optimisation is not worth its code.
const WANTED: f64 = 1.1;
const THREADS: usize = 8;
/// Keys of a prompt in a workload of several threads.
const PROMPT: usize = 64;

/// Measures `run` on what `setup` made with and without an optimisation, and reports the factor and both rates.
pub fn compare<S>(
    report: &mut Report,
    name: &str,
    optimization: Optimization,
    unit: &'static str,
    mut setup: impl FnMut(u32) -> S,
    mut run: impl FnMut(&mut S) -> f64,
) {
    let names = ["x", "with", "without"].map(|what| format!("ablation_{name}_{what}"));
    if !report.wants(&names.each_ref().map(String::as_str)) {
        return;
    }
    let off = [0, 1 << optimization as u32];
    let mut sides = off.map(|off| {
        turn_off(off);
        (off, setup(off), Vec::new())
    });
    for round in 0..=RUNS {
        sides.rotate_left(1);
        for (off, side, rates) in &mut sides {
            turn_off(*off);
            let rate = run(side);
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    turn_off(0);
    sides.sort_by_key(|side| side.0);
    let [with, without] = sides.map(|side| side.2);
    let factors = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let [factor, of_with, of_without] = names;
    report.add(factor, "x", factors, Wanted::AtLeast(WANTED));
    report.add(of_with, unit, with, Wanted::Nothing);
    report.add(of_without, unit, without, Wanted::Nothing);
}

/// The sum of what `each` of so many threads measures at the same time.
fn together(threads: usize, each: impl Fn(usize) -> f64 + Sync) -> f64 {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let (each, start) = (&each, &start);
        let rates: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    start.wait();
                    each(thread)
                })
            })
            .collect();
        rates.into_iter().map(|rate| rate.join().expect("a thread")).sum()
    })
}

/// Keys a second of requests, each a session that reads a prompt that `next` chooses.
fn requests<'a>(cache: &Cache, mut next: impl FnMut() -> &'a [Key]) -> f64 {
    let mut views = views(l1::BATCH);
    let (began, mut keys) = (Instant::now(), 0);
    while began.elapsed() < RUN_TIME {
        let prompt = next();
        let session = cache.begin();
        cache.reserve_read(session, prompt, 0, &mut views);
        black_box(&mut views);
        cache.finish_read(session, prompt, 0);
        cache.end(session);
        keys += prompt.len();
    }
    keys as f64 / began.elapsed().as_secs_f64()
}

/// Keys a second of so many threads, each of which reads prompts of its own, as ranks do.
fn prompts(cache: &Cache, keys: &[Key], threads: usize, batch: usize) -> f64 {
    let part = keys.len() / threads;
    together(threads, |thread| {
        let mut prompts = keys[thread * part..][..part].chunks_exact(batch).cycle();
        requests(cache, || prompts.next().expect("a prompt"))
    })
}

/// So many objects of 256 bytes in memory, and their keys: prompts in no order.
fn resident(random: &mut Random, count: usize) -> (Cache, Vec<Key>) {
    let cache = Cache::open(Setup { l1_bytes: count as u64 * 256 + (16 << 20), ..Default::default() });
    let keys = random.keys(count);
    let session = cache.begin();
    for batch in keys.chunks(1000) {
        cache.stage(session, batch, 256, random);
        cache.finish_write(session, batch);
    }
    cache.end(session);
    let mut prompts: Vec<&[Key]> = keys.chunks(PROMPT).collect();
    random.shuffle(&mut prompts);
    (cache, prompts.concat())
}

/// As [`resident`], with the keys in no order.
fn scattered(random: &mut Random, count: usize) -> (Cache, Vec<Key>) {
    let (cache, mut keys) = resident(random, count);
    random.shuffle(&mut keys);
    (cache, keys)
}

pub fn run(report: &mut Report) {
    use Optimization::*;
    let mut random = Random::new(11);
    // Caches of two sides have different keys: what a thread remembers of one is no help with the other.
    macro_rules! rows {
        ($made:ident $objects:expr; $($name:literal $optimization:ident $unit:literal $run:expr;)*) => {$(
            compare(report, $name, $optimization, $unit, |_| $made(&mut random, $objects), $run);
        )*};
    }
    rows! { scattered l1::RESIDENT;
        "key_fingerprint_b256" KeyFingerprint "keys/s" |(cache, keys)| l1::read(cache, keys, l1::BATCH, 0);
        "last_batch_b256" LastBatch "keys/s" |(cache, keys)| l1::read(cache, keys, l1::BATCH, 0);
        "single_key_b1" SingleKeyRead "calls/s" |(cache, keys)| l1::read(cache, keys, 1, 0);
    }
    rows! { resident l1::RESIDENT;
        "key_fingerprint_prompts" KeyFingerprint "keys/s" |(cache, keys)| prompts(cache, keys, 1, PROMPT);
        "last_batch_prompts" LastBatch "keys/s" |(cache, keys)| prompts(cache, keys, 1, PROMPT);
        "last_batch_8threads" LastBatch "keys/s" |(cache, keys)| prompts(cache, keys, THREADS, PROMPT);
        "single_key_prompts" SingleKeyRead "calls/s" |(cache, keys)| prompts(cache, keys, 1, 1);
    }
    compare(
        report,
        "streaming_copies_64kib",
        StreamingCopies,
        "GB/s",
        |_| device::Setting::new(64 << 10),
        device::Setting::run,
    );
    compare(report, "last_batch_8clients", LastBatch, "keys/s", daemon::Crowd::start, daemon::Crowd::run);
}
