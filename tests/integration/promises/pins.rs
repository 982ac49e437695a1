//! Pins of jobs on objects in backends: none outlives its job, and none keeps a deletion from ending.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, Policy, PrefetchRequest};
use kvkeep::error::{KVKEEP_ERR_LOCKED, KVKEEP_OK};

use super::cache::{Cache, KIB, MIB, WATCHDOG_MS, key, keys, until, views, watched};
use crate::support::random::Random;

const SIZE: u64 = 4096;

fn pins(cache: &Cache) -> u64 {
    cache.stats().l2_pins
}

fn no_pin_is_left(cache: &Cache) {
    assert!(cache.node.backend_reports().iter().all(|backend| backend.pins == 0), "{:?}", cache.node.backend_reports());
    assert_eq!(pins(cache), 0);
}

fn found(cache: &Cache, job: u64, chunks: u32) {
    let mut said = 0;
    until("the early answer", || {
        let status = cache.node.query_lookup_hits(job, &mut said).unwrap();
        status == KVKEEP_OK
    });
    assert_eq!(said, chunks);
}

/// Backends whose loads are slow, in memory and on disk.
fn slow_backends(test: impl Fn(&Cache)) {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory:?".to_owned(), format!("fs://{}?", dir.path().display())] {
        let url = format!("fault:{url}capacity=1MiB&fault.delay=1&fault.delay_ms=100");
        // Room for one load at a time, so that what a job has found waits.
        let cache = Cache::open(MIB, &[&url], |config| config.loading_bytes_max = SIZE);
        test(&cache);
        cache.node.flush(WATCHDOG_MS).unwrap();
        no_pin_is_left(&cache);
        cache.node.close();
    }
}

/// Rewrites the first word of the object, so that it is told from the one before.
fn write(cache: &Cache, session: u64, number: u32, word: u64, size: u64) -> i32 {
    let mut out = views(1);
    cache.node.reserve_write(session, &[key(number)], &[size], false, &mut out).unwrap();
    if out[0].status == KVKEEP_OK as i32 {
        // SAFETY: a view that the reservation gave, of a size that is a multiple of 8.
        let words = unsafe { std::slice::from_raw_parts_mut(out[0].data.cast::<u64>(), size as usize / 8) };
        words.fill(word);
        assert!(cache.node.finish_write(session, &[key(number)], None).unwrap());
    }
    out[0].status
}

/// What is written in an object, the same from its beginning to its end.
fn word(cache: &Cache, session: u64, number: u32) -> Option<u64> {
    let mut out = views(1);
    if !cache.node.reserve_read(session, &[key(number)], 0, &mut out).unwrap() {
        return None;
    }
    // SAFETY: a view that this session holds.
    let words = unsafe { std::slice::from_raw_parts(out[0].data.cast::<u64>(), out[0].size as usize / 8) };
    let word = words[0];
    assert!(words.iter().all(|other| *other == word), "object {number} is of two halves");
    assert!(cache.node.finish_read(session, &[key(number)], 0, None).unwrap());
    Some(word)
}

#[test]
fn an_object_that_is_in_l1_by_the_time_it_is_loaded_keeps_no_pin() {
    watched(|| {
        slow_backends(|cache| {
            cache.store_below(0..2, SIZE);
            let session = cache.session();
            let [first, second] = [0..1, 1..2].map(|one| cache.submit(session, one, PrefetchRequest::default()));
            found(cache, second, 1);
            assert_eq!(pins(cache), 2);
            cache.put(session, 1..2, SIZE);
            [first, second].iter().for_each(|&job| cache.node.wait(job, WATCHDOG_MS).unwrap());
            assert_eq!((cache.answer(second).unwrap().hit_chunks, pins(cache)), (1, 0));
            cache.node.end_session(session).unwrap();
            // So a deletion ends, and what was deleted does not come back.
            cache.node.flush(WATCHDOG_MS).unwrap();
            assert!(cache.node.delete(cache.space, &keys(0..2), None).unwrap());
            cache.node.flush(WATCHDOG_MS).unwrap();
            let session = cache.session();
            assert_eq!(write(cache, session, 1, 9, SIZE), KVKEEP_OK as i32);
            cache.node.flush(WATCHDOG_MS).unwrap();
            assert!(cache.node.evict(cache.space, &keys(1..2), None).unwrap());
            assert_eq!(cache.prefetch(session, 1..2).hit_chunks, 1);
            assert_eq!(word(cache, session, 1), Some(9));
            cache.node.end_session(session).unwrap();
        });
    });
}

#[test]
fn a_job_ends_without_a_pin_however_it_ends() {
    watched(|| {
        for end in 0..6 {
            slow_backends(|cache| {
                cache.store_below(0..8, SIZE);
                let session = cache.session();
                let request = PrefetchRequest {
                    deadline: (end == 3).then_some(Duration::from_millis(20)),
                    policy: if end == 3 { Policy::Deadline } else { Policy::Wait },
                    ..PrefetchRequest::default()
                };
                let job = cache.submit(session, 0..8, request);
                // One of two that want the same waits for the other's loads.
                let same = cache.submit(session, 0..8, PrefetchRequest { mode: Mode::Any, ..Default::default() });
                if end != 3 {
                    found(cache, same, 8);
                    assert!(pins(cache) >= 8);
                }
                match end {
                    0 => cache.node.cancel(job).unwrap(),
                    1 => cache.node.release_job(job).unwrap(),
                    2 => assert_eq!(cache.node.clear(0, true).unwrap().0, 0),
                    3 => cache.node.wait(job, WATCHDOG_MS).unwrap(),
                    4 => cache.node.remove_backend(1).unwrap(),
                    _ => {}
                }
                if end == 5 {
                    cache.node.end_session(session).unwrap();
                } else {
                    cache.node.wait(same, WATCHDOG_MS).unwrap();
                    if end == 4 {
                        cache.node.wait(job, WATCHDOG_MS).unwrap();
                    }
                    cache.node.end_session(session).unwrap();
                }
            });
        }
    });
}

#[test]
fn what_l1_has_no_room_for_keeps_no_pin() {
    watched(|| {
        slow_backends(|cache| {
            cache.store_below(0..2, 512 * KIB);
            let session = cache.session();
            cache.put(session, 10..13, 256 * KIB);
            // Nothing of it may be evicted.
            let held = cache.read(session, 10..13, 0);
            assert!(held.iter().all(|view| view.status == 0));
            let answer = cache.prefetch(session, 0..2);
            assert_eq!((answer.hit_chunks, answer.failed_keys > 0, pins(cache)), (0, answer.lookup_chunks > 0, 0));
            cache.node.end_session(session).unwrap();
        });
    });
}

#[test]
fn what_is_deleted_while_a_cleared_copy_is_being_written_does_not_come_back() {
    watched(|| {
        slow_backends(|cache| {
            cache.store(0..4, SIZE);
            until("the writes", || cache.stats().l1_locked_bytes == 4 * SIZE);
            assert_eq!(cache.node.clear(0, true).unwrap().0, 4);
            let mut statuses = [9; 4];
            cache.node.delete(cache.space, &keys(0..4), Some(&mut statuses)).unwrap();
            assert_eq!(statuses, [KVKEEP_ERR_LOCKED as i32; 4]);
            cache.node.flush(WATCHDOG_MS).unwrap();
            cache.node.delete(cache.space, &keys(0..4), None).unwrap();
            cache.node.flush(WATCHDOG_MS).unwrap();
            let session = cache.session();
            assert_eq!((cache.prefetch(session, 0..4).hit_chunks, cache.stats().l2_objects), (0, 0));
            cache.node.end_session(session).unwrap();
        });
    });
}

/// Each key is written and deleted by one thread, with a higher number each time, and read by all.
#[test]
fn deleted_bytes_never_come_back_and_no_pin_is_left_whatever_happens_at_once() {
    const KEYS: u32 = 24;
    const THREADS: u32 = 4;
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = format!("fs://{}?capacity=160KiB", dir.path().display());
        let slow = "fault:memory:?capacity=128KiB&fault.seed=3&fault.delay=0.3&fault.delay_ms=1";
        let cache = Cache::open(256 * KIB, &[slow, &disk], |config| config.loading_bytes_max = 16 * KIB);
        let least: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (cache, least) = (&cache, &least);
                scope.spawn(move || {
                    let mut random = Random(u64::from(thread) + 1);
                    for round in 1..250 {
                        let session = cache.session();
                        let own = random.below(u64::from(KEYS / THREADS)) as u32 * THREADS + thread;
                        // Another length each time, so that whoever has the old one pinned cannot mistake it.
                        write(cache, session, own, round, SIZE * (1 + round % 2));
                        let first = random.below(u64::from(KEYS - 4)) as u32;
                        let request = PrefetchRequest {
                            mode: if random.one_in(2) { Mode::Any } else { Mode::Prefix },
                            lookup_timeout: Duration::from_millis(random.below(3)),
                            lookup_interval: Duration::from_millis(1),
                            ..PrefetchRequest::default()
                        };
                        let known: Vec<u64> =
                            (first..first + 4).map(|key| least[key as usize].load(Ordering::SeqCst)).collect();
                        let job = cache.submit(session, first..first + 4, request);
                        match random.below(5) {
                            0 => cache.node.cancel(job).unwrap(),
                            1 => cache.node.release_job(job).unwrap(),
                            2 => {}
                            _ => cache.node.wait(job, WATCHDOG_MS).unwrap(),
                        }
                        for (number, known) in (first..first + 4).zip(known) {
                            if let Some(word) = word(cache, session, number) {
                                assert!(word >= known, "object {number}: {word} came back, {known} was written");
                            }
                        }
                        cache.node.end_session(session).unwrap();
                        drop(cache.node.evict(cache.space, &keys(first..first + 4), None));
                        let mut status = [0];
                        cache.node.delete(cache.space, &[key(own)], Some(&mut status)).unwrap();
                        if status[0] != KVKEEP_ERR_LOCKED as i32 {
                            least[own as usize].store(round + 1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        cache.at_rest();
        no_pin_is_left(&cache);
        cache.node.close();
    });
}
