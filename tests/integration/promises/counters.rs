//! The counters say what happened: each grows by what was done, and they add up.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvkeep::abi::Stats;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, PrefetchRequest};
use kvkeep::log::{Log, LogLevel};
use kvkeep::prometheus::{COUNTERS, GAUGES, LATENCIES, backlog};

use super::cache::{Cache, MIB, WATCHDOG, WATCHDOG_MS, key, keys, spec, until, views, watched};

const SIZE: u64 = 4096;

fn value(stats: &Stats, name: &str) -> u64 {
    if let Some(latency) = LATENCIES.iter().find(|latency| latency.name == name) {
        return (latency.of)(stats).count;
    }
    let number = GAUGES.iter().chain(COUNTERS).find(|number| number.name == name);
    (number.unwrap_or_else(|| panic!("there is no number {name}")).of)(stats)
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
            let grows = GAUGES.iter().all(|gauge| gauge.name != name);
            let now = value(&after, name) - if grows { value(&before, name) } else { 0 };
            assert_eq!(now, by, "{name} is {} after {}", value(&after, name), value(&before, name));
            self.0.insert(name);
        }
        result
    }
}

/// What the header says of sums, which holds when nothing is under way.
fn balanced(cache: &Cache) {
    let stats = cache.stats();
    assert_eq!(stats.read_misses, stats.l2_hits + stats.l2_misses);
    assert!(stats.prefetch_hit_chunks <= stats.prefetch_asked_chunks);
    let why =
        [stats.dropped_queue, stats.dropped_evicted, stats.dropped_failed, stats.dropped_fenced, stats.dropped_closed];
    let dropped: u64 = why.iter().sum::<u64>() + stats.dropped_slow;
    assert_eq!(stats.stores_dropped, dropped + stats.dropped_deletions);
    let ended = stats.stores + stats.stores_already + dropped + stats.writes_withdrawn;
    assert_eq!(stats.writes_asked, ended + stats.writes_pending);
    assert!(stats.commits >= stats.commits_discarded + stats.commits_temporary);
    for backend in cache.node.backend_reports() {
        let ended = backend.stores + backend.stores_already + backend.stores_dropped + backend.writes_withdrawn;
        assert_eq!(backend.writes_asked, ended + backend.writes_pending, "{backend:?}");
    }
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

/// Every step here says by how much it drives which number, and no number is left out.
#[test]
fn every_number_says_what_happened() {
    watched(|| {
        let mut driven = Driven::default();
        in_l1(&mut driven);
        in_backends(&mut driven);
        when_backends_fail(&mut driven);
        when_l1_is_full(&mut driven);
        when_nobody_comes_back(&mut driven);
        // By the tests of the daemon, of deletions that a backend does not answer or refuses (`src/control`), and of several
        // backends (`test_backends.c`).
        driven.0.extend(["clients", "clients_lost", "deletions_pending", "dropped_deletions", "dropped_slow"]);
        // By those of what the machine refuses (`fs_fallback.rs`, `cuda.rs`).
        driven.0.extend(["io_uring_refused", "huge_pages_refused", "registrations_refused", "memlock_refused"]);
        // By those of the metrics (`monitoring.rs`).
        driven.0.extend(["saved_tokens", "oldest_share_ms", "oldest_write_ms", "opened_ms", "saved_bytes"]);
        let all: BTreeSet<&str> = GAUGES
            .iter()
            .chain(COUNTERS)
            .map(|number| number.name)
            .chain(LATENCIES.iter().map(|latency| latency.name))
            .collect();
        let missing: Vec<&&str> = all.difference(&driven.0).collect();
        assert!(missing.is_empty(), "no step drives {missing:?}");
    });
}

fn in_l1(driven: &mut Driven) {
    let cache = Cache::open(4 * MIB, &[], |config| config.writes_pending_max = 77);
    let session = cache.session();
    let said = [("l1_bytes", 4 * MIB), ("sessions", 1), ("jobs", 0), ("writes_pending_max", 77), ("clients", 0)];
    driven.by(&cache, &said, || ());
    let said =
        [("commits", 3), ("l1_objects", 3), ("l1_used_bytes", 3 * SIZE), ("l1_locked_bytes", 0), ("writes_asked", 0)];
    driven.by(&cache, &said, || cache.put(session, 0..3, SIZE));
    // Staged twice, committed twice: the second copy goes. And one more stays staged.
    let said =
        [("commits", 2), ("commits_discarded", 1), ("l1_objects", 4), ("l1_staged", 1), ("l1_locked_bytes", SIZE)];
    driven.by(&cache, &said, || {
        let other = cache.session();
        for session in [session, other] {
            assert!(cache.node.reserve_write(session, &keys(3..4), &[SIZE], false, &mut views(1)).unwrap());
        }
        for session in [session, other] {
            cache.node.finish_write(session, &keys(3..4), None).unwrap();
        }
        assert!(cache.node.reserve_write(session, &keys(4..5), &[SIZE], false, &mut views(1)).unwrap());
        cache.node.end_session(other).unwrap();
    });
    let said = [("commits", 1), ("commits_temporary", 1), ("l1_objects", 5), ("l1_staged", 1)];
    driven.by(&cache, &said, || {
        assert!(cache.node.reserve_write(session, &keys(5..6), &[SIZE], true, &mut views(1)).unwrap());
        cache.node.finish_write(session, &keys(5..6), None).unwrap();
    });
    let said =
        [("l1_shares", 6), ("l1_locked_bytes", 4 * SIZE), ("read_hits", 3), ("read_misses", 2), ("l2_misses", 2)];
    driven.by(&cache, &said, || (cache.read(session, 0..3, 1), cache.read(session, 90..92, 0)));
    let said = [("evictions", 1), ("evicted_bytes", SIZE), ("l1_objects", 4), ("stores_dropped", 0)];
    driven.by(&cache, &said, || assert!(cache.node.evict(cache.space, &keys(3..4), None).unwrap()));
    let said = [("refusals", 1)];
    driven.by(&cache, &said, || {
        assert!(!cache.node.reserve_write(session, &keys(8..9), &[4 * MIB], false, &mut views(1)).unwrap());
    });
    let said = [("jobs", 1), ("jobs_submitted", 1), ("jobs_completed", 1), ("jobs_cancelled", 0), ("call_latency", 1)];
    let job = driven.by(&cache, &said, || {
        let job = cache.submit(session, 0..1, PrefetchRequest::default());
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        job
    });
    driven.by(&cache, &[("jobs", 0)], || cache.node.release_job(job).unwrap());
    driven.by(&cache, &[("sessions", 0), ("l1_shares", 0), ("l1_staged", 0)], || {
        cache.node.end_session(session).unwrap()
    });
    balanced(&cache);
    cache.node.close();
}

fn in_backends(driven: &mut Driven) {
    // The first has room for fourteen, with what else it keeps of each.
    let cache = Cache::open(4 * MIB, &["memory:?capacity=64KiB", "memory:?lookup=slow"], |_| {});
    let said = [
        ("writes_asked", 16),
        ("stores", 16),
        ("stored_bytes", 16 * SIZE),
        ("writes_pending", 0),
        ("l2_objects", 16),
        ("store_latency", 16),
    ];
    driven.by(&cache, &said, || cache.store_below(0..8, SIZE));
    assert!(cache.stats().l2_bytes >= 16 * SIZE);
    driven.0.insert("l2_bytes");
    let said = [
        ("prefetch_asked_chunks", 9),
        ("prefetch_hit_chunks", 8),
        ("l2_hits", 8),
        ("l2_misses", 1),
        ("loads", 8),
        ("loaded_bytes", 8 * SIZE),
        ("load_latency", 8),
        ("lookup_latency", 1),
        ("prefetch_latency", 1),
        ("l2_pins", 0),
    ];
    driven.by(&cache, &said, || prefetch(&cache, 0..9, PrefetchRequest::default()));
    // What both have is not written again.
    let said = [("stores", 0), ("stores_already", 16), ("writes_asked", 16)];
    driven.by(&cache, &said, || {
        cache.node.clear(0, true).unwrap();
        cache.store(0..8, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
    });
    let said = [("stores", 80), ("l2_evictions", 40 + 8 - 14)];
    driven.by(&cache, &said, || {
        cache.store(100..140, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
    });
    // Whatever is removed, what it did is counted.
    driven.by(&cache, &[("l2_evictions", 0), ("stores", 0)], || cache.node.remove_backend(1).unwrap());
    let numbers: Vec<u32> = (0..70_000).collect();
    let said = [("uses_dropped", 70_000 - (1 << 16))];
    driven.by(&cache, &said, || {
        let keys: Vec<_> = numbers.iter().map(|&number| key(number)).collect();
        cache.node.touch(cache.space, &keys, None).unwrap();
    });
    balanced(&cache);
    cache.node.close();
}

fn when_backends_fail(driven: &mut Driven) {
    let cache = Cache::open(4 * MIB, &["fault:memory:?fault.store_error=1"], |_| {});
    let said = [
        ("writes_asked", 4),
        ("store_retries", 12),
        ("stores_dropped", 4),
        ("dropped_failed", 4),
        ("stores_dropped_recently", 4),
    ];
    driven.by(&cache, &said, || {
        cache.store(0..4, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
    });
    balanced(&cache);
    cache.node.close();
    for (fault, number) in [("load_error", "load_failures"), ("flip", "corruptions")] {
        let cache = Cache::open(4 * MIB, &[&format!("fault:memory:?fault.{fault}=1")], |_| {});
        cache.store_below(0..4, SIZE);
        let said = [(number, 4), ("loads", 0), ("loaded_bytes", 0), ("l2_hits", 4), ("prefetch_hit_chunks", 0)];
        driven.by(&cache, &said, || prefetch(&cache, 0..4, PrefetchRequest::default()));
        cache.node.close();
    }
    // A store that is not answered fences its backend, which misses what follows.
    let cache = Cache::open(4 * MIB, &["fault:memory:?fault.store_hang=1"], |config| {
        config.backend_timeout = Duration::from_millis(50);
    });
    let said = [("backend_timeouts", 1), ("dropped_failed", 1), ("stores_dropped", 1), ("writes_pending", 0)];
    driven.by(&cache, &said, || {
        cache.store(0..1, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
    });
    let said = [("writes_asked", 3), ("dropped_fenced", 3), ("stores_dropped", 3)];
    driven.by(&cache, &said, || {
        cache.store(1..4, SIZE);
        cache.node.flush(WATCHDOG_MS).unwrap();
    });
    balanced(&cache);
    cache.node.close();
    // What hangs when it closes is dropped then.
    let cache = Cache::open(4 * MIB, &["fault:memory:?fault.delay=1&fault.delay_ms=60000"], |config| {
        config.backend_timeout = Duration::from_millis(100);
    });
    let said = [("writes_pending", 2), ("deletions_pending", 0)];
    driven.by(&cache, &said, || cache.store(0..2, SIZE));
    cache.node.close();
    balanced(&cache);
    assert_eq!((cache.stats().writes_asked, cache.stats().writes_pending, cache.stats().stores_dropped), (2, 0, 2));
    driven.0.insert("dropped_closed");
}

fn when_l1_is_full(driven: &mut Driven) {
    // Nothing is written, and three may wait beside the quarter of L1 that is under way.
    let cache = Cache::open(64 << 10, &["fault:memory:?fault.store_hang=1"], |config| {
        (config.writes_pending_max, config.watermark_high_percent) = (3, 100);
        config.backend_timeout = Duration::from_secs(3600);
    });
    for number in 0..4 {
        cache.store(number..number + 1, SIZE);
        until("the backend to be asked", || cache.node.backend_reports()[0].writes_pending == u64::from(number) + 1);
    }
    let said = [("writes_asked", 5), ("writes_pending", 4 + 3), ("dropped_queue", 2), ("dropped_evicted", 0)];
    driven.by(&cache, &said, || cache.store(4..9, SIZE));
    // Two of the three go from L1, and one is deleted.
    let said = [("dropped_evicted", 2), ("stores_dropped", 2), ("writes_withdrawn", 1), ("writes_pending", 4)];
    driven.by(&cache, &said, || {
        assert!(cache.node.evict(cache.space, &keys(4..6), None).unwrap());
        assert_eq!(cache.node.clear(cache.space, false).unwrap(), (3, false));
    });
    balanced(&cache);
}

fn when_nobody_comes_back(driven: &mut Driven) {
    let cache = Cache::open(64 << 10, &[], |config| config.session_timeout = Duration::from_millis(20));
    cache.store(0..8, SIZE);
    cache.session();
    let said = [("sessions_reclaimed", 1)];
    driven.by(&cache, &said, || until("the session's end", || cache.stats().sessions == 0));
    // What it holds is taken for one that needs the room.
    let gone = cache.session();
    cache.read(gone, 0..8, 1);
    let said = [("shares_revoked", 16)];
    driven.by(&cache, &said, || {
        let session = cache.node.begin_session(cache.space, "now", Some(WATCHDOG)).unwrap();
        until("its deadline to pass", || {
            cache.node.reserve_write(session, &keys(100..101), &[60 << 10], false, &mut views(1)).unwrap()
        });
    });
    // A job that nobody reads is released.
    let session = cache.node.begin_session(cache.space, "now", Some(WATCHDOG)).unwrap();
    let request = PrefetchRequest { deadline: Some(Duration::from_millis(20)), ..PrefetchRequest::default() };
    let said = [("jobs_reclaimed", 1), ("jobs", 0)];
    driven.by(&cache, &said, || {
        cache.submit(session, 0..1, request);
        until("the job's end", || cache.stats().jobs == 0);
    });
    balanced(&cache);
    cache.node.close();
}

#[test]
fn numbers_add_up_whatever_happens() {
    watched(|| {
        let faulty = "fault:memory:?capacity=256KiB&fault.store_error=0.4&fault.load_error=0.1&fault.seed=7";
        let cache = Cache::open(256 << 10, &[faulty, "memory:?lookup=slow"], |config| config.writes_pending_max = 24);
        std::thread::scope(|scope| {
            for worker in 0..4u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..150u32 {
                        let first = (worker * 7 + round * 5) % 160;
                        let numbers = first..first + 6;
                        let session = cache.session();
                        let sizes = [SIZE; 6];
                        let mut out = views(6);
                        let _ =
                            cache.node.reserve_write(session, &keys(numbers.clone()), &sizes, round % 9 == 0, &mut out);
                        let _ = cache.node.finish_write(session, &keys(numbers.clone()), None);
                        let job = cache.submit(session, numbers.clone(), window(1 + round % 4));
                        if round % 5 == 0 {
                            cache.node.cancel(job).unwrap();
                        }
                        cache.node.wait(job, WATCHDOG_MS).unwrap();
                        cache.read(session, numbers.clone(), 0);
                        cache.node.end_session(session).unwrap();
                        match round % 6 {
                            0 => drop(cache.node.evict(cache.space, &keys(numbers), None)),
                            1 => drop(cache.node.delete(cache.space, &keys(numbers), None)),
                            _ => {}
                        }
                    }
                });
            }
        });
        cache.at_rest();
        balanced(&cache);
        let stats = cache.stats();
        assert!(stats.stores > 0 && stats.dropped_failed > 0 && stats.writes_asked > 100, "{stats:?}");
        cache.node.close();
        balanced(&cache);
    });
}
