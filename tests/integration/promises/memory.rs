//! P1 and P2: what is read was committed, and what is in use is not reused.

use std::time::Duration;

use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::error::{KVKEEP_ERR_EXISTS, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND};

use super::cache::{Cache, KIB, MIB, WATCHDOG_MS, fill, intact, key, keys, said, until, views, watched};

#[test]
fn p1_staging_is_invisible_until_its_commit() {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    let (writer, reader) = (cache.session(), cache.session());
    let mut out = views(1);
    assert!(cache.node.reserve_write(writer, &[key(1)], &[4096], false, &mut out).unwrap());
    fill(&out[0], 1);
    assert_eq!(cache.read(reader, 1..2, 0)[0].status, said(KVKEEP_ERR_NOT_FOUND));
    assert_eq!(cache.read(writer, 1..2, 0)[0].status, said(KVKEEP_ERR_NOT_FOUND));
    assert_eq!(cache.prefetch(reader, 1..2).hit_chunks, 0);
    assert!(!cache.node.touch(cache.space, &[key(1)], None).unwrap());
    cache.node.finish_write(writer, &[key(1)], None).unwrap();
    assert!(intact(&cache.read(reader, 1..2, 0)[0], 1));
    cache.node.close();
}

#[test]
fn p1_the_first_commit_of_a_key_wins_and_the_second_is_a_success() {
    let cache = Cache::open(MIB, &[], |_| {});
    let (first, second) = (cache.session(), cache.session());
    let (mut one, mut two) = (views(1), views(1));
    assert!(cache.node.reserve_write(first, &[key(1)], &[4096], false, &mut one).unwrap());
    assert!(cache.node.reserve_write(second, &[key(1)], &[4096], false, &mut two).unwrap());
    fill(&one[0], 1);
    fill(&two[0], 2);
    assert!(cache.node.finish_write(first, &[key(1)], None).unwrap());
    let before = cache.read(first, 1..2, 0);
    let mut after = views(1);
    assert!(cache.node.finish_write_and_reserve_read(second, &[key(1)], 0, &mut after).unwrap());
    assert_eq!((after[0].data, cache.stats().commits_discarded), (before[0].data, 1));
    // An object never changes after its commit: its key cannot be staged again.
    assert!(!cache.node.reserve_write(first, &[key(1)], &[4096], false, &mut one).unwrap());
    assert_eq!(one[0].status, said(KVKEEP_ERR_EXISTS));
    assert!(intact(&before[0], 1));
    cache.node.close();
}

#[test]
fn p1_a_second_commit_makes_a_temporary_object_a_kept_one() {
    for (second_temporary, left) in [(false, 1), (true, 0)] {
        let cache = Cache::open(MIB, &[], |_| {});
        let (first, second) = (cache.session(), cache.session());
        for (session, temporary) in [(first, true), (second, second_temporary)] {
            assert!(cache.node.reserve_write(session, &[key(1)], &[4096], temporary, &mut views(1)).unwrap());
        }
        cache.node.finish_write_and_reserve_read(first, &[key(1)], 0, &mut views(1)).unwrap();
        cache.node.finish_write(second, &[key(1)], None).unwrap();
        assert_eq!(cache.finish(first, 1..2, 0), [0]);
        assert_eq!(cache.stats().l1_objects, left);
        cache.node.close();
    }
}

/// Fills all of L1 that can be had.
fn flood(cache: &Cache, from: u32) {
    let session = cache.session();
    for number in from..from + 600 {
        let mut out = views(1);
        if cache.node.reserve_write(session, &[key(number)], &[4096], false, &mut out).unwrap() {
            fill(&out[0], number);
            cache.node.finish_write(session, &[key(number)], None).unwrap();
        }
    }
    cache.node.end_session(session).unwrap();
}

#[test]
fn p2_shared_objects_survive_pressure_clear_and_expiry() {
    for policy in ["lru", "s3fifo", "mq", "none"] {
        let cache = Cache::open(MIB, &[], |config| {
            config.eviction_policy = policy.to_owned();
        });
        cache.store(0..20, 4096);
        let (reader, sleeper) = (cache.session(), cache.session());
        let held = cache.read(reader, 0..10, 1);
        flood(&cache, 1000);
        let (_, all) = cache.node.clear(cache.space, false).unwrap();
        assert!(!all);
        cache.node.clear(cache.space, true).unwrap();
        assert_eq!(cache.read(sleeper, 0..1, 0)[0].status, said(KVKEEP_ERR_NOT_FOUND));
        flood(&cache, 2000);
        cache.node.clear(cache.space, true).unwrap();
        cache.store(0..10, 4096);
        flood(&cache, 3000);
        assert!(held.iter().zip(0..10).all(|(view, number)| intact(view, number)), "{policy}");
        assert_eq!(cache.finish(reader, 0..10, 1), [0; 10]);
        cache.node.end_session(reader).unwrap();
        cache.node.end_session(sleeper).unwrap();
        cache.at_rest();
        cache.node.close();
    }
}

#[test]
fn p2_an_expired_session_is_revived_where_nothing_was_taken() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |_| {});
        cache.store(0..4, 4096);
        let short = || cache.node.begin_session(cache.space, "short", Some(Duration::from_millis(20))).unwrap();
        let holder = short();
        let held = cache.read(holder, 0..4, 0);
        short();
        until("the idle session to be reclaimed", || cache.stats().sessions_reclaimed == 1);
        assert!(held.iter().zip(0..).all(|(view, number)| intact(view, number)));
        assert!(cache.node.get_views(holder, &keys(0..4), &mut views(4)).unwrap());
        assert_eq!(cache.finish(holder, 0..4, 0), [0; 4]);
        cache.node.close();
    });
}

#[test]
fn p2_staging_is_the_sessions_until_it_gives_it_back() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |_| {});
        let writer = cache.node.begin_session(cache.space, "w", Some(Duration::from_millis(1))).unwrap();
        let mut out = views(10);
        assert!(cache.node.reserve_write(writer, &keys(0..10), &[4096; 10], false, &mut out).unwrap());
        out.iter().zip(0..).for_each(|(view, number)| fill(view, number));
        cache.node.begin_session(cache.space, "i", Some(Duration::from_millis(1))).unwrap();
        until("the other session to be reclaimed", || cache.stats().sessions_reclaimed == 1);
        cache.node.clear(0, true).unwrap();
        flood(&cache, 1000);
        assert!(out.iter().zip(0..).all(|(view, number)| intact(view, number)));
        assert!(cache.node.finish_write(writer, &keys(0..10), None).unwrap());
        let held = cache.read(writer, 0..10, 0);
        assert!(held.iter().zip(0..).all(|(view, number)| intact(view, number)));
        cache.node.end_session(writer).unwrap();
        cache.node.close();
    });
}

#[test]
fn p2_close_leaves_what_is_held_where_it_is() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..4, 4096);
    let session = cache.session();
    let held = cache.read(session, 0..4, 0);
    let mut staged = views(1);
    cache.node.reserve_write(session, &[key(9)], &[4096], false, &mut staged).unwrap();
    fill(&staged[0], 9);
    cache.node.close();
    drop(cache);
    assert!(held.iter().zip(0..).all(|(view, number)| intact(view, number)));
    assert!(intact(&staged[0], 9));
}

#[test]
fn p2_memory_that_a_hung_backend_may_write_is_quarantined_until_it_answers() {
    watched(|| {
        let cache = Cache::open(256 * KIB, &["fault:memory:?fault.load_hang=1"], |config| {
            config.backend_timeout = Duration::from_secs(1);
        });
        cache.store_below(0..8, 4096);
        let session = cache.session();
        let answer = cache.prefetch(session, 0..8);
        assert_eq!((answer.hit_chunks, answer.failed_keys), (0, 8));
        cache.node.end_session(session).unwrap();
        // The job is over; the bytes are not free.
        assert_eq!((cache.stats().l1_locked_bytes, cache.stats().l1_objects), (8 * 4096, 0));
        flood(&cache, 1000);
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!(cache.stats().l1_locked_bytes, 8 * 4096);
        cache.node.remove_backend(1).unwrap();
        until("the hung backend's buffers", || cache.stats().l1_locked_bytes == 0);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p2_an_object_being_written_to_l2_is_neither_deleted_nor_evicted() {
    watched(|| {
        let cache = Cache::open(64 * KIB, &["fault:memory:?fault.store_hang=1"], |_| {});
        cache.store(0..4, 4096);
        until("the writes to be under way", || cache.stats().l1_locked_bytes == 4 * 4096);
        let mut statuses = [0; 4];
        assert!(!cache.node.delete(cache.space, &keys(0..4), Some(&mut statuses)).unwrap());
        assert_eq!(statuses, [said(KVKEEP_ERR_LOCKED); 4]);
        statuses = [0; 4];
        assert!(!cache.node.evict(cache.space, &keys(0..4), Some(&mut statuses)).unwrap());
        assert_eq!(statuses, [said(KVKEEP_ERR_LOCKED); 4]);
        let session = cache.session();
        let mut out = views(13);
        cache.node.reserve_write(session, &keys(100..113), &[4096; 13], false, &mut out).unwrap();
        assert_eq!(out[12].status, said(KVKEEP_ERR_NO_MEMORY));
        assert!(cache.read(session, 0..4, 0).iter().zip(0..).all(|(view, number)| intact(view, number)));
        cache.node.end_session(session).unwrap();
        cache.node.remove_backend(1).unwrap();
        cache.node.flush(WATCHDOG_MS).unwrap();
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p2_a_load_that_lands_after_its_session_ended_leaves_nothing_held() {
    watched(|| {
        let url = "fault:memory:?fault.delay=1&fault.delay_ms=20";
        let cache = Cache::open(MIB, &[url], |_| {});
        cache.store_below(0..16, 4096);
        let session = cache.session();
        let job = cache.submit(session, 0..16, PrefetchRequest::default());
        let mut hits = 0;
        until("the lookup", || cache.node.query_lookup_hits(job, &mut hits).unwrap() == kvkeep::error::KVKEEP_OK);
        cache.node.end_session(session).unwrap();
        until("the loads to land", || cache.stats().l1_locked_bytes == 0);
        cache.at_rest();
        cache.node.close();
    });
}
