//! P3: every share is returned exactly once, whichever way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvkeep::abi::KeyState;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Policy, PrefetchRequest};
use kvkeep::error::{KVKEEP_ERR_EXPIRED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD};
use kvkeep::log::{Log, LogLevel};

use super::cache::{Cache, KIB, MIB, WATCHDOG_MS, fill, intact, key, keys, said, until, views, watched};

#[test]
fn p3_by_finish_in_any_portions_and_no_more() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..2, 4096);
    let session = cache.session();
    cache.read(session, 0..2, 127);
    assert_eq!(cache.stats().l1_shares, 256);
    assert_eq!(cache.finish(session, 0..2, 99), [0, 0]);
    assert_eq!(cache.finish(session, 0..1, 27), [0]);
    // More than is held returns none of it.
    assert_eq!(cache.finish(session, 0..2, 28), [said(KVKEEP_ERR_NOT_HELD); 2]);
    assert_eq!(cache.stats().l1_shares, 28);
    assert_eq!(cache.finish(session, 1..2, 27), [0]);
    assert_eq!(cache.finish(session, 0..2, 0), [said(KVKEEP_ERR_NOT_HELD); 2]);
    cache.node.end_session(session).unwrap();
    cache.at_rest();
    cache.node.close();
}

#[test]
fn p3_never_another_sessions_share() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..1, 4096);
    let (one, two, three) = (cache.session(), cache.session(), cache.session());
    let held = cache.read(one, 0..1, 2);
    cache.read(two, 0..1, 0);
    assert_eq!(cache.finish(three, 0..1, 0), [said(KVKEEP_ERR_NOT_HELD)]);
    assert_eq!(cache.finish(two, 0..1, 1), [said(KVKEEP_ERR_NOT_HELD)]);
    assert_eq!(cache.finish(two, 0..1, 0), [0]);
    assert_eq!(cache.finish(two, 0..1, 0), [said(KVKEEP_ERR_NOT_HELD)]);
    cache.node.end_session(two).unwrap();
    cache.node.abort_session(three).unwrap();
    assert_eq!(cache.stats().l1_shares, 3);
    cache.node.clear(0, true).unwrap();
    // A session that takes a number used before takes none of its shares.
    for _ in 0..100 {
        let late = cache.session();
        assert_eq!(cache.finish(late, 0..1, 0), [said(KVKEEP_ERR_NOT_HELD)]);
        cache.node.end_session(late).unwrap();
    }
    assert!(intact(&held[0], 0));
    assert_eq!(cache.finish(one, 0..1, 2), [0]);
    cache.node.end_session(one).unwrap();
    cache.at_rest();
    cache.node.close();
}

#[test]
fn p3_by_end_and_by_abort_once() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..8, 4096);
    for end in [true, false] {
        let session = cache.session();
        cache.read(session, 0..8, 7);
        cache.finish(session, 0..4, 3);
        let leave = || if end { cache.node.end_session(session) } else { cache.node.abort_session(session) };
        leave().unwrap();
        assert_eq!(leave().unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        cache.at_rest();
    }
    cache.node.close();
}

#[test]
fn p3_by_cancel_of_the_job_and_a_done_job_keeps_them() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..8, 4096);
        cache.store(0..4, 4096);
        let session = cache.session();
        let job = cache.submit(session, 0..8, PrefetchRequest { extra_count: 3, ..Default::default() });
        assert_eq!((cache.stats().l1_shares, cache.answer(job).is_none()), (16, true));
        cache.node.cancel(job).unwrap();
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!((cache.stats().l1_shares, cache.answer(job).unwrap().hit_chunks), (0, 0));
        let done = cache.submit(session, 0..4, PrefetchRequest { extra_count: 3, ..Default::default() });
        cache.node.cancel(done).unwrap();
        assert_eq!((cache.answer(done).unwrap().hit_chunks, cache.stats().l1_shares), (4, 16));
        cache.node.release_job(done).unwrap();
        assert_eq!(cache.finish(session, 0..4, 3), [0; 4]);
        cache.node.end_session(session).unwrap();
        cache.node.close();
    });
}

#[test]
fn p3_extra_count_goes_through_lookup_trim_and_failed_loads() {
    watched(|| {
        let url = "fault:memory:?fault.load_error=0.5&fault.seed=3";
        let cache = Cache::open(4 * MIB, &[url], |_| {});
        cache.store_below(0..64, 4096);
        // Some of the prefix is there in any case, and some beyond where it ends.
        cache.store(0..4, 4096);
        cache.store(40..60, 4096);
        for extra in [0, 1, 7, 127] {
            let session = cache.session();
            let job = cache.submit(session, 0..64, PrefetchRequest { extra_count: extra, ..Default::default() });
            cache.node.wait(job, WATCHDOG_MS).unwrap();
            let hits = cache.answer(job).unwrap().hit_chunks;
            // The first time half of the others cannot be loaded; what could be stays.
            assert!(hits >= 4 && (extra > 0 || hits < 64), "{hits}");
            assert_eq!(cache.stats().l1_shares, u64::from(hits * (extra + 1)));
            assert_eq!(cache.finish(session, 0..hits, extra), vec![0; hits as usize]);
            cache.node.end_session(session).unwrap();
            cache.at_rest();
        }
        cache.node.close();
    });
}

#[test]
fn p3_by_revocation_after_expiry_and_a_late_return_is_told() {
    watched(|| {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let logged = Arc::clone(&lines);
        let log = Log::new(LogLevel::Warn, move |_, line: &str| logged.lock().unwrap().push(line.to_owned()));
        let cache = Cache::open(64 * KIB, &[], |config| config.log = log);
        cache.store(0..8, 4096);
        let lasting = cache.session();
        let late = cache.node.begin_session(cache.space, "late", Some(Duration::from_millis(5))).unwrap();
        let kept = cache.read(lasting, 0..2, 0);
        cache.read(late, 0..8, 1);
        cache.node.begin_session(cache.space, "idle", Some(Duration::from_millis(5))).unwrap();
        until("the deadline", || cache.stats().sessions_reclaimed == 1);
        // Pressure: all but what the lasting session holds can be had.
        let writer = cache.session();
        assert!(cache.node.reserve_write(writer, &keys(100..114), &[4096; 14], false, &mut views(14)).unwrap());
        let stats = cache.stats();
        assert_eq!((stats.shares_revoked, stats.l1_shares), (16, 2));
        let taken = format!("session {late} (\"late\", pid {}): 16 of its shares were taken", std::process::id());
        until("the log", || lines.lock().unwrap().iter().any(|line| line.starts_with(&taken)));
        assert!(kept.iter().zip(0..).all(|(view, number)| intact(view, number)));
        let mut again = views(1);
        if let Ok(all) = cache.node.get_views(late, &[key(7)], &mut again) {
            assert!(!all);
            assert_eq!(again[0].status, said(KVKEEP_ERR_EXPIRED));
            assert_eq!(cache.finish(late, 0..8, 1), [said(KVKEEP_ERR_EXPIRED); 8]);
            assert_eq!(cache.finish(late, 0..8, 1), [said(KVKEEP_ERR_NOT_HELD); 8]);
            cache.node.end_session(late).unwrap();
        } else {
            // It held nothing any more and was reclaimed meanwhile.
            assert_eq!(cache.node.end_session(late).unwrap_err().status, KVKEEP_ERR_EXPIRED);
        }
        assert_eq!(cache.stats().l1_shares, 2);
        cache.node.end_session(lasting).unwrap();
        cache.node.end_session(writer).unwrap();
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p3_by_release_of_tokens_for_all_readers_together() {
    let cache = Cache::open(MIB, &[], |_| {});
    let session = cache.session();
    let tokens: Vec<u32> = (0..160).collect();
    cache.node.append_tokens(session, &tokens).unwrap();
    let mut chunk_keys = keys(0..10);
    cache.node.session_keys(session, 0, (0, 1, 1), &mut chunk_keys).unwrap();
    assert!(cache.node.reserve_write(session, &chunk_keys, &[4096; 10], false, &mut views(10)).unwrap());
    cache.node.finish_write_and_reserve_read(session, &chunk_keys, 3, &mut views(10)).unwrap();
    assert_eq!(cache.node.finish_read_tokens(session, 70..160, (0, 1, 1), 3).unwrap(), 5);
    assert_eq!(cache.node.finish_read_tokens(session, 0..160, (0, 1, 1), 3).unwrap(), 5);
    assert_eq!(cache.node.finish_read_tokens(session, 0..160, (0, 1, 1), 3).unwrap(), 0);
    cache.node.end_session(session).unwrap();
    cache.at_rest();
    cache.node.close();
}

#[test]
fn p3_a_job_that_misses_its_deadline_holds_nothing() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..8, 4096);
        cache.store(0..4, 4096);
        for (policy, hits) in [(Policy::Deadline, 0), (Policy::BestEffort, 4)] {
            let session = cache.session();
            let deadline = Some(Duration::from_millis(30));
            let job = cache.submit(session, 0..8, PrefetchRequest { policy, deadline, ..Default::default() });
            // An answer nobody has read by its second deadline is reclaimed.
            let _ = cache.node.wait(job, WATCHDOG_MS);
            assert_eq!(cache.stats().l1_shares, hits);
            cache.node.end_session(session).unwrap();
        }
        cache.node.close();
    });
}

/// Commits an object that is to be read once.
fn put_temporary(cache: &Cache, session: u64, number: u32) {
    let mut out = views(1);
    assert!(cache.node.reserve_write(session, &[key(number)], &[4096], true, &mut out).unwrap());
    fill(&out[0], number);
    assert!(cache.node.finish_write(session, &[key(number)], None).unwrap());
}

#[test]
fn a_lookup_that_gives_nothing_back_drops_no_temporary_object_that_nobody_has_read() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..1, 4096);
        let (writer, session) = (cache.session(), cache.session());
        put_temporary(&cache, writer, 2);
        // Trimmed, since the key before it is nowhere; then given up, while the key before it is loaded.
        let trimmed = cache.submit(session, 1..3, PrefetchRequest::default());
        cache.node.wait(trimmed, WATCHDOG_MS).unwrap();
        assert_eq!(cache.answer(trimmed).unwrap().hit_chunks, 0);
        put_temporary(&cache, writer, 1);
        let cancelled = cache.submit(session, 0..3, PrefetchRequest::default());
        assert_eq!(cache.stats().l1_shares, 2);
        cache.node.cancel(cancelled).unwrap();
        cache.node.wait(cancelled, WATCHDOG_MS).unwrap();
        assert_eq!(cache.stats().l1_shares, 0);
        // Both are there for their reader, and go with it.
        let held = cache.read(session, 1..3, 0);
        assert!(held.iter().zip(1..).all(|(view, number)| intact(view, number)));
        assert_eq!(cache.finish(session, 1..3, 0), [0, 0]);
        assert_eq!(cache.read(session, 1..3, 0)[0].status, said(KVKEEP_ERR_NOT_FOUND));
        cache.node.close();
    });
}

#[test]
fn a_temporary_object_that_was_read_goes_with_the_lookup_that_returns_its_last_share() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..1, 4096);
        let (reader, other) = (cache.session(), cache.session());
        put_temporary(&cache, reader, 1);
        cache.read(reader, 1..2, 0);
        let job = cache.submit(other, 0..2, PrefetchRequest::default());
        assert_eq!(cache.finish(reader, 1..2, 0), [0]);
        assert_eq!(cache.stats().l1_objects, 1);
        cache.node.cancel(job).unwrap();
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!(cache.stats().l1_objects, 0);
        cache.node.close();
    });
}

#[test]
fn p3_shares_of_a_hidden_copy_are_no_shares_of_the_object_that_came_after() {
    let cache = Cache::open(MIB, &[], |_| {});
    let session = cache.session();
    cache.put(session, 0..1, 4096);
    let old = cache.read(session, 0..1, 0);
    cache.node.clear(0, true).unwrap();
    cache.put(session, 0..1, 8192);
    let shares = || {
        let mut state = [KeyState::default()];
        cache.node.query_keys(cache.space, &[key(0)], &mut state).unwrap();
        state[0].shares
    };
    assert_eq!(shares(), 0);
    cache.read(session, 0..1, 1);
    assert_eq!(shares(), 2);
    // Three are held, but of no copy so many.
    assert_eq!(cache.finish(session, 0..1, 2), [said(KVKEEP_ERR_NOT_HELD)]);
    let report: serde_json::Value = serde_json::from_str(&cache.node.explain_session(session).unwrap()).unwrap();
    let of = |what: &str| {
        report["sessions"][0][what].as_array().unwrap().iter().map(|held| held[1].clone()).collect::<Vec<_>>()
    };
    assert_eq!((of("held"), of("held_of_cleared")), (vec![2.into()], vec![1.into()]), "{report}");
    // Two can only be those of the new object, and the old one is read on.
    assert_eq!(cache.finish(session, 0..1, 1), [0]);
    assert_eq!((shares(), cache.stats().l1_shares), (0, 1));
    assert!(intact(&old[0], 0));
    let mut gone = [9];
    assert!(cache.node.delete(cache.space, &[key(0)], Some(&mut gone)).unwrap());
    assert_eq!(cache.finish(session, 0..1, 0), [0]);
    assert_eq!(cache.finish(session, 0..1, 0), [said(KVKEEP_ERR_NOT_HELD)]);
    cache.node.end_session(session).unwrap();
    cache.at_rest();
    cache.node.close();
}
