//! P9 and P11: every tier is bounded, and a batch is atomic.

use std::sync::atomic::{AtomicBool, Ordering};

use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::error::{KVKEEP_ERR_LIMIT, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA};

use super::cache::{Cache, KIB, MIB, WATCHDOG_MS, intact, key, keys, said, spec, views, watched};

#[test]
fn p9_sessions_and_jobs() {
    let cache = Cache::open(MIB, &[], |config| (config.sessions_max, config.jobs_max) = (3, 5));
    let sessions = [0; 3].map(|_| cache.session());
    let refused = cache.node.begin_session(cache.space, "one more", None).unwrap_err();
    assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
    cache.node.end_session(sessions[0]).unwrap();
    cache.session();
    let jobs = [0; 5].map(|_| cache.submit(sessions[1], 0..1, PrefetchRequest::default()));
    let refused = cache.node.submit_prefetch(sessions[1], &[key(0)], PrefetchRequest::default(), &mut 0);
    assert_eq!(refused.unwrap_err().status, KVKEEP_ERR_LIMIT);
    assert_eq!((cache.stats().jobs, cache.stats().jobs_submitted), (5, 5));
    cache.node.release_job(jobs[0]).unwrap();
    cache.submit(sessions[1], 0..1, PrefetchRequest::default());
    cache.node.close();
}

#[test]
fn p9_l1_bytes_in_key_order() {
    let cache = Cache::open(64 * KIB, &[], |_| {});
    let session = cache.session();
    let mut out = views(18);
    let mut sizes = vec![4096; 18];
    sizes[10] = 32 << 10;
    assert!(!cache.node.reserve_write(session, &keys(0..18), &sizes, false, &mut out).unwrap());
    let statuses: Vec<i32> = out.iter().map(|view| view.status).collect();
    // After the first that does not fit, none does: a prefix with a hole is useless.
    assert_eq!(statuses, [vec![0; 10], vec![said(KVKEEP_ERR_NO_MEMORY); 8]].concat());
    let stats = cache.stats();
    assert!(stats.l1_used_bytes <= stats.l1_bytes);
    assert_eq!((stats.l1_used_bytes, stats.refusals), (40 * KIB, 1));
    cache.node.close();
}

#[test]
fn p9_a_spaces_quota_evicts_within_the_space() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..100, 4096);
    let mut bounded = spec(40 << 10);
    bounded.tenant = "bounded".to_owned();
    let space = cache.node.open_space(bounded).unwrap();
    let session = cache.node.begin_session(space, "q", None).unwrap();
    for first in (0..100).step_by(10) {
        cache.put(session, first..first + 10, 4096);
    }
    let reader = cache.session();
    assert!(cache.read(reader, 0..100, 0).iter().all(|view| view.status == 0));
    assert_eq!(cache.read(session, 90..100, 0).iter().filter(|view| view.status == 0).count(), 10);
    let mut out = views(1);
    cache.node.reserve_write(session, &[key(200)], &[4096], false, &mut out).unwrap();
    assert_eq!(out[0].status, said(KVKEEP_ERR_QUOTA));
    assert_eq!(cache.stats().l1_objects, 110);
    cache.node.close();
}

#[test]
fn p9_a_lowered_quota_is_kept_at_once_by_what_is_not_in_use() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..200, 4096);
    let reader = cache.session();
    cache.read(reader, 0..30, 0);
    cache.node.open_space(spec(100 << 12)).unwrap();
    assert_eq!(cache.stats().l1_objects, 100);
    cache.node.open_space(spec(20 << 12)).unwrap();
    assert_eq!(cache.stats().l1_objects, 30);
    assert_eq!(cache.finish(reader, 0..30, 0), [0; 30]);
    cache.put(cache.session(), 300..301, 4096);
    assert_eq!(cache.stats().l1_objects, 20);
    cache.node.close();
}

#[test]
fn p9_the_write_queue_and_l2() {
    watched(|| {
        let url = "fault:memory:?fault.store_hang=1";
        let cache = Cache::open(MIB, &[url], |config| config.writes_pending_max = 16);
        cache.store(0..200, 4096);
        let stats = cache.stats();
        // The queue's bound, and what the writer has taken from it: a quarter of L1.
        assert!(stats.writes_pending <= 16 + 64 + 1, "{} are pending", stats.writes_pending);
        assert!(stats.stores_dropped >= 200 - 16 - 64 - 1);
        cache.node.remove_backend(1).unwrap();
        cache.node.add_backend("memory:?capacity=64KiB").unwrap();
        for first in (1000..1200).step_by(8) {
            cache.store(first..first + 8, 4096);
            cache.node.flush(WATCHDOG_MS).unwrap();
            assert!(cache.stats().l2_bytes <= 64 * KIB);
        }
        assert!(cache.stats().l2_evictions > 0);
        cache.node.close();
    });
}

#[test]
fn p9_bytes_being_loaded() {
    watched(|| {
        let url = "fault:memory:?fault.delay=1&fault.delay_ms=1";
        let cache = Cache::open(4 * MIB, &[url], |config| config.loading_bytes_max = 64 << 10);
        cache.store_below(0..256, 4096);
        let session = cache.session();
        let job = cache.submit(session, 0..256, PrefetchRequest::default());
        while cache.answer(job).is_none() {
            let stats = cache.stats();
            // Loads in flight are staged; the bound may be passed by one object.
            assert!(stats.l1_staged <= 17, "{} are being loaded", stats.l1_staged);
        }
        assert_eq!(cache.answer(job).unwrap().hit_chunks, 256);
        cache.node.close();
    });
}

#[test]
fn p11_readers_see_all_of_a_batch_or_nothing() {
    watched(|| {
        let cache = Cache::open(4 * MIB, &[], |_| {});
        let stop = AtomicBool::new(false);
        let (seen_all, seen_none) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let session = cache.session();
                        let held = cache.read(session, 0..64, 0);
                        let there = held.iter().filter(|view| view.status == 0).count();
                        assert!(there == 0 || there == 64, "half a batch: {there} of 64");
                        if there == 64 {
                            assert!(held.iter().zip(0..).all(|(view, number)| intact(view, number)));
                            assert_eq!(cache.finish(session, 0..64, 0), [0; 64]);
                            seen_all.store(true, Ordering::Relaxed);
                        } else {
                            seen_none.store(true, Ordering::Relaxed);
                        }
                        cache.node.end_session(session).unwrap();
                    }
                });
            }
            let mut rounds = 0;
            while rounds < 300 || !(seen_all.load(Ordering::Relaxed) && seen_none.load(Ordering::Relaxed)) {
                rounds += 1;
                cache.store(0..64, 4096);
                cache.node.clear(if rounds % 2 == 0 { cache.space } else { 0 }, true).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        cache.at_rest();
        cache.node.close();
    });
}
