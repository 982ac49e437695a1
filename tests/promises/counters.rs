//! The counters say what happened: each grows by what was done, and they add up.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, PrefetchRequest};
use kvkeep::log::{Log, LogLevel};
use kvkeep::metrics::{COUNTERS, GAUGES, backlog};
use kvkeep::types::Stats;

use crate::cache::{Cache, MIB, WATCHDOG_MS, keys, spec, until, views, watched};

const SIZE: u64 = 4096;

fn value(stats: &Stats, name: &str) -> u64 {
    let number = GAUGES.iter().chain(COUNTERS).find(|number| number.name == name);
    (number.unwrap_or_else(|| panic!("there is no counter {name}")).of)(stats)
}

/// What was driven so far, by name.
#[derive(Default)]
struct Driven(BTreeSet<&'static str>);

impl Driven {
    /// Runs `body`, during which the counters named must grow by what is said, or a gauge have so much at its end.
    fn by<R>(&mut self, cache: &Cache, expected: &[(&'static str, u64)], body: impl FnOnce() -> R) -> R {
        let before = cache.stats();
        let result = body();
        let after = cache.stats();
        for &(name, by) in expected {
            let grows = COUNTERS.iter().any(|counter| counter.name == name);
            let now = value(&after, name) - if grows { value(&before, name) } else { 0 };
            assert_eq!(now, by, "{name} is {} after {}", value(&after, name), value(&before, name));
            self.0.insert(name);
        }
        result
    }
}

fn balanced(cache: &Cache) {
    let stats = cache.stats();
    assert_eq!(stats.read_misses, stats.l2_hits + stats.l2_misses);
    assert!(stats.prefetch_hit_chunks <= stats.prefetch_asked_chunks);
}

/// Prefetches in a session of its own.
fn prefetch(cache: &Cache, numbers: Range<u32>, request: PrefetchRequest) -> u32 {
    let session = cache.session();
    let job = cache.submit(session, numbers, request);
    cache.node.wait(job, WATCHDOG_MS).unwrap();
    let chunks = cache.answer(job).unwrap().hit_chunks;
    cache.node.end_session(session).unwrap();
    chunks
}

fn window(window: u32) -> PrefetchRequest {
    PrefetchRequest { mode: Mode::Window(window), ..PrefetchRequest::default() }
}

#[test]
fn a_hit_rate_counts_what_was_asked_and_not_only_what_was_there() {
    watched(|| {
        let cache = Cache::open(4 * MIB, &["memory:"], |_| {});
        let mut driven = Driven::default();
        cache.store_below(0..100, SIZE);
        cache.store(0..10, SIZE);
        let asked = [("read_hits", 10), ("read_misses", 90), ("l2_hits", 90), ("l2_misses", 0)];
        driven.by(&cache, &asked, || prefetch(&cache, 0..100, PrefetchRequest::default()));
        let asked = [("read_hits", 0), ("read_misses", 50), ("l2_hits", 0), ("l2_misses", 50)];
        driven.by(&cache, &asked, || prefetch(&cache, 1000..1050, PrefetchRequest::default()));
        // By what reads without a prefetch.
        let asked = [("read_hits", 15), ("read_misses", 5), ("l2_misses", 5)];
        let session = cache.session();
        driven.by(&cache, &asked, || cache.read(session, 85..105, 0));
        // One at a time, too.
        let asked = [("read_hits", 1), ("read_misses", 1)];
        driven.by(&cache, &asked, || (cache.read(session, 0..1, 0), cache.read(session, 2000..2001, 0)));
        // What a request holds already is read, and not asked for.
        let asked = [("read_hits", 0), ("read_misses", 0)];
        driven.by(&cache, &asked, || (cache.read(session, 85..100, 0), cache.read(session, 0..1, 0)));
        balanced(&cache);
        cache.node.end_session(session).unwrap();
        cache.node.close();
    });
}

#[test]
fn calls_side_by_side_count_what_they_asked() {
    watched(|| {
        let cache = Cache::open(4 * MIB, &[], |_| {});
        cache.store(0..8, SIZE);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let session = cache.session();
                        // Eight of ten are there; the second time the session holds them.
                        cache.read(session, 0..10, 0);
                        cache.read(session, 0..8, 0);
                        cache.node.end_session(session).unwrap();
                    }
                });
            }
        });
        let stats = cache.stats();
        assert_eq!((stats.read_hits, stats.read_misses), (8 * 500 * 8, 8 * 500 * 2));
        cache.node.close();
    });
}

#[test]
fn a_window_counts_what_it_needed() {
    watched(|| {
        let cache = Cache::open(4 * MIB, &["memory:"], |_| {});
        let mut driven = Driven::default();
        cache.store(2..4, SIZE);
        // Two of six chunks are there, and it may continue after the fourth: two were needed and there, two are missing.
        let asked = [("prefetch_asked_chunks", 4), ("prefetch_hit_chunks", 2), ("read_hits", 2), ("read_misses", 2)];
        let length = driven.by(&cache, &asked, || prefetch(&cache, 0..6, window(2)));
        assert_eq!(length, 4);
        let asked = [("prefetch_asked_chunks", 2), ("prefetch_hit_chunks", 2), ("read_hits", 2), ("read_misses", 0)];
        driven.by(&cache, &asked, || prefetch(&cache, 0..4, window(2)));
        let asked = [("prefetch_asked_chunks", 2), ("prefetch_hit_chunks", 0), ("read_hits", 0), ("read_misses", 2)];
        driven.by(&cache, &asked, || prefetch(&cache, 10..12, window(2)));
        balanced(&cache);
        cache.node.close();
    });
}

#[test]
fn a_job_that_was_cancelled_tells_nothing_of_the_cache() {
    watched(|| {
        let cache = Cache::open(4 * MIB, &["memory:?lookup=slow"], |_| {});
        let mut driven = Driven::default();
        let session = cache.session();
        let request = PrefetchRequest { lookup_timeout: Duration::from_secs(600), ..PrefetchRequest::default() };
        let asked = [("prefetch_asked_chunks", 0), ("read_misses", 0), ("jobs_cancelled", 1)];
        driven.by(&cache, &asked, || {
            let job = cache.submit(session, 0..6, request);
            cache.node.cancel(job).unwrap();
            cache.node.wait(job, WATCHDOG_MS).unwrap();
        });
        balanced(&cache);
        cache.node.end_session(session).unwrap();
        cache.node.close();
    });
}

/// A log that keeps its lines.
fn log() -> (Log, Arc<Mutex<Vec<String>>>) {
    let said = Arc::<Mutex<Vec<String>>>::default();
    let lines = said.clone();
    (Log::new(LogLevel::Warn, move |_, line| lines.lock().unwrap().push(line.to_owned())), said)
}

#[test]
fn what_is_refused_dropped_or_retried_is_said_in_a_few_lines() {
    watched(|| {
        let (log, said) = log();
        let cache = Cache::open(MIB, &["fault:memory:?fault.store_hang=1"], |config| {
            (config.log, config.writes_pending_max, config.jobs_max) = (log, 16, 1);
            config.backend_timeout = Duration::from_secs(2);
        });
        let heard = |words: &str| until(words, || said.lock().unwrap().iter().any(|line| line.contains(words)));
        cache.store(0..200, SIZE);
        heard("writes to L2 were dropped");
        assert!(backlog(&cache.stats()).unwrap().contains("dropped in the last minute"));
        // More than fits beside what is held.
        let mut out = views(1);
        let session = cache.session();
        cache.read(session, 199..200, 0);
        cache.node.reserve_write(cache.session(), &keys(500..501), &[MIB], false, &mut out).unwrap();
        heard("reservations were refused: L1 is full");
        let quota = cache.node.open_space(spec(SIZE)).unwrap();
        let session = cache.node.begin_session(quota, "q", None).unwrap();
        cache.node.reserve_write(session, &keys(600..602), &[SIZE; 2], false, &mut views(2)).unwrap();
        heard("reservations were refused: a space has its quota");
        cache.node.close();
        let lines = said.lock().unwrap();
        assert!(lines.len() < 20, "{lines:#?}");
    });
}

#[test]
fn a_limit_that_calls_meet_is_said_with_its_reason() {
    watched(|| {
        let (log, said) = log();
        let cache = Cache::open(MIB, &[], |config| (config.log, config.jobs_max) = (log, 1));
        let session = cache.session();
        cache.submit(session, 0..1, PrefetchRequest::default());
        for _ in 0..1000 {
            let refused = cache.node.submit_prefetch(session, &keys(0..1), PrefetchRequest::default(), &mut 0);
            // As the C ABI does.
            cache.node.note_refusal(&refused.unwrap_err());
        }
        until("the line", || !said.lock().unwrap().is_empty());
        cache.node.close();
        let lines = said.lock().unwrap();
        assert!(lines[0].contains("calls were refused: 1 jobs are not released yet"), "{lines:#?}");
        assert!(lines.len() <= 2, "{lines:#?}");
    });
}
