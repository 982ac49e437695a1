//! Prefetch jobs as a scheduler sees them: how soon the early answer is there, how soon the bytes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvkeep::ffi::options::kvkeep_prefetch_mode::{KVKEEP_PREFETCH_EACH, KVKEEP_PREFETCH_PREFIX};
use kvkeep::key::Key;

use crate::cache::{Cache, Setup};
use crate::fio::{self, Fio, Work};
use crate::random::Random;
use crate::report::{Report, Wanted, median};
use crate::{RUN_TIME, RUNS};

/// Keys of a job.
const JOB: usize = 1024;
const OBJECT_BYTES: u64 = 4096;

/// A directory on the disk that the build is on, removed when dropped.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory for the files")
}

pub fn url(dir: &Path) -> String {
    format!("fs://{}", dir.display())
}

/// Repeats what gives one latency per part until the timed time is over; the median of each part in microseconds.
fn run_of<const N: usize>(mut once: impl FnMut() -> [Duration; N]) -> [f64; N] {
    let mut all: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    let mut spent = Duration::ZERO;
    while spent < RUN_TIME {
        let times = once();
        spent += times[N - 1];
        for (all, time) in all.iter_mut().zip(times) {
            all.push(time.as_secs_f64() * 1e6);
        }
    }
    all.map(|times| median(&times))
}

fn in_l1(report: &mut Report, random: &mut Random) {
    let name = "prefetch_l1_1024_us";
    if !report.wants(&[name]) {
        return;
    }
    let cache = Cache::open(Setup { l1_bytes: 256 << 20, ..Default::default() });
    let mut keys = random.keys(100_000);
    let session = cache.begin();
    for batch in keys.chunks(1000) {
        cache.stage(session, batch, 1024, random);
        cache.finish_write(session, batch);
    }
    cache.end(session);
    let mut runs = Vec::new();
    for _ in 0..=RUNS {
        random.shuffle(&mut keys);
        let mut jobs = keys.chunks_exact(JOB).cycle();
        runs.push(
            run_of(|| {
                let wanted = jobs.next().expect("a job's keys");
                let session = cache.begin();
                let began = Instant::now();
                let job = cache.submit(session, wanted, KVKEEP_PREFETCH_PREFIX);
                let result = loop {
                    if let Some(result) = cache.result(job) {
                        break result;
                    }
                };
                let time = began.elapsed();
                assert_eq!((result.hit_chunks, result.tier_keys[0]), (JOB as u32, JOB as u32));
                cache.finish_read(session, wanted, 0);
                cache.release(job);
                cache.end(session);
                [time]
            })[0],
        );
    }
    report.add(name, "us", runs.split_off(1), Wanted::AtMost(60.0));
}

/// L1 is empty before each job: the keys are in the directory only, and their files are read around the page cache. A job's objects were
/// stored one after another, as a prompt's are, or (`scattered`) are an eighth of all, in no order: then header and payload are read when an
/// object is loaded for the first time after the directory was opened (`first`), the payload alone later. fio reads files of each of
/// these sizes, which it has open, at its best depth and in no order.
fn in_fs(report: &mut Report, random: &mut Random) {
    let names = [
        "lookup_fs_1024_us",
        "prefetch_fs_1024x4k_us",
        "prefetch_fs_1024x4k_scattered_us",
        "prefetch_fs_1024x4k_scattered_first_us",
    ];
    let fio_names = ["fio_read_1024x4k_us", "fio_read_1024x8k_us"];
    if !report.wants(&names) && !report.wants(&fio_names) {
        return;
    }
    let dir = directory();
    let url = url(&dir.path().join("objects"));
    let keys = random.keys(8 * JOB);
    let mut scattered = keys.clone();
    store(&url, &keys, OBJECT_BYTES, random);
    let bare = [OBJECT_BYTES, 2 * OBJECT_BYTES].map(|bytes| Bare::prepare(dir.path(), bytes, keys.len(), random));
    let mut ours: [Vec<f64>; 4] = Default::default();
    let mut fios: [Vec<f64>; 2] = Default::default();
    for _ in 0..=RUNS {
        random.shuffle(&mut scattered);
        let cache = Cache::open(Setup { l1_bytes: 64 << 20, url: Some(&url), ..Default::default() });
        let firsts = scattered.chunks_exact(JOB).map(|keys| load(&cache, keys).1.as_secs_f64() * 1e6);
        let first = median(&firsts.collect::<Vec<f64>>());
        let loads = |keys: &[Key]| {
            let mut jobs = keys.chunks_exact(JOB).cycle();
            run_of(|| {
                let (lookup, whole, _) = load(&cache, jobs.next().expect("a job's keys"));
                [lookup, whole]
            })
        };
        let [lookup, whole] = loads(&keys);
        let [_, apart] = loads(&scattered);
        for (all, run) in ours.iter_mut().zip([lookup, whole, apart, first]) {
            all.push(run);
        }
        for (all, bare) in fios.iter_mut().zip(&bare) {
            all.extend(bare.as_ref().and_then(Bare::run));
        }
    }
    let wanted = [Wanted::AtMost(100.0), Wanted::AtMost(12_000.0), Wanted::Nothing, Wanted::Nothing];
    for ((name, mut all), wanted) in names.into_iter().zip(ours).zip(wanted) {
        report.add(name, "us", all.split_off(1), wanted);
    }
    for (name, mut all) in fio_names.into_iter().zip(fios) {
        if all.len() > RUNS {
            report.add(name, "us", all.split_off(1), Wanted::Nothing);
        }
    }
}

/// The submission of a job whose keys the directory, which no other process has open, lacks: it gives the answer at once.
fn missed_in_fs(report: &mut Report, random: &mut Random) {
    let name = "miss_fs_1024_us";
    if !report.wants(&[name]) {
        return;
    }
    let dir = directory();
    let url = url(dir.path());
    store(&url, &random.keys(8 * JOB), OBJECT_BYTES, random);
    let absent = random.keys(8 * JOB);
    let cache = Cache::open(Setup { l1_bytes: 64 << 20, url: Some(&url), ..Default::default() });
    let session = cache.begin();
    let mut jobs = absent.chunks_exact(JOB).cycle();
    let mut runs = Vec::new();
    for _ in 0..=RUNS {
        runs.push(
            run_of(|| {
                let wanted = jobs.next().expect("a job's keys");
                let began = Instant::now();
                let job = cache.submit(session, wanted, KVKEEP_PREFETCH_EACH);
                let hits = cache.lookup_hits(job);
                let time = began.elapsed();
                assert_eq!(hits, Some(0));
                while cache.result(job).is_none() {}
                cache.release(job);
                [time]
            })[0],
        );
    }
    cache.end(session);
    report.add(name, "us", runs.split_off(1), Wanted::AtMost(100.0));
}

/// fio with files of one size.
struct Bare {
    fio: Fio,
    dir: PathBuf,
    bytes: u64,
    count: usize,
    depth: u32,
}

impl Bare {
    fn prepare(scratch: &Path, bytes: u64, count: usize, random: &mut Random) -> Option<Bare> {
        let dir = scratch.join(format!("fio-{bytes}"));
        std::fs::create_dir(&dir).expect("a directory for fio");
        let fio = Fio::find(&dir)?;
        fio::lay(&dir, bytes, count, random);
        let depth = fio.best_depth(Work::Read, &dir, bytes, count);
        Some(Bare { fio, dir, bytes, count, depth })
    }

    /// Microseconds for as many files as a job has keys.
    fn run(&self) -> Option<f64> {
        let rate = self.fio.run(Work::Read, &self.dir, self.bytes, self.count, self.depth)?;
        Some((JOB as u64 * self.bytes) as f64 / rate / 1e3)
    }
}

/// Stores keys through a cache of its own, which is closed then.
pub fn store(url: &str, keys: &[Key], size: u64, random: &mut Random) {
    let per_batch = ((128 << 20) / size as usize).min(keys.len());
    let l1_bytes = per_batch as u64 * size + (1 << 20);
    let cache = Cache::open(Setup { l1_bytes, url: Some(url), ..Default::default() });
    for batch in keys.chunks(per_batch) {
        let session = cache.begin();
        cache.stage(session, batch, size, random);
        cache.finish_write(session, batch);
        cache.end(session);
        cache.drain();
        cache.clear();
    }
}

/// Loads keys that L1 lacks by one job: the times of the early answer and of the result, and the bytes. Leaves L1 empty.
pub fn load(cache: &Cache, keys: &[Key]) -> (Duration, Duration, u64) {
    let session = cache.begin();
    let began = Instant::now();
    let job = cache.submit(session, keys, KVKEEP_PREFETCH_PREFIX);
    let hits = loop {
        if let Some(hits) = cache.lookup_hits(job) {
            break hits;
        }
    };
    let lookup = began.elapsed();
    cache.wait(job);
    let result = cache.result(job).expect("the result of a job that is done");
    let whole = began.elapsed();
    let count = keys.len() as u32;
    assert_eq!((hits, result.hit_chunks, result.tier_keys[1]), (count, count, count), "something was not loaded");
    cache.finish_read(session, keys, 0);
    cache.release(job);
    cache.end(session);
    cache.clear();
    (lookup, whole, result.loaded_bytes)
}

pub fn run(report: &mut Report) {
    let mut random = Random::new(3);
    in_l1(report, &mut random);
    in_fs(report, &mut random);
    missed_in_fs(report, &mut random);
}
