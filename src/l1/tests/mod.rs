//! Cases that random operations meet too rarely, or that need a clock or numbers no test waits for.

pub(super) mod model;

mod copies;
mod read;
mod recency;
mod shapes;
mod staged_bytes;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::evict::Eviction;
use super::open_space::open_tagged_space;
use super::slot::{LEAVING, Ref, SHARES_MAX};
use super::{L1, L1Config, LoadReader};
use crate::abi::View;
use crate::arena::{Arena, MapOptions};
use crate::config::{SpaceSpec, StoreMode};
use crate::error::{
    KVKEEP_ERR_EXPIRED, KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_NOT_FOUND,
    KVKEEP_ERR_QUOTA, KVKEEP_OK,
};
use crate::key::{Key, SpaceTag};
use crate::shape::ShapeTag;

const PAGES: usize = 100;

pub(super) fn l1(store_mode: StoreMode, writes_max: u32) -> Arc<L1> {
    let config = L1Config {
        policy: "lru".to_owned(),
        high_percent: 80,
        low_percent: 60,
        store_mode,
        writes_max,
        sessions_max: 100,
        boot: 0,
    };
    let l1 = L1::new(Arc::new(Arena::map(PAGES * 4096, MapOptions::default()).unwrap()), config).unwrap();
    l1.set_has_l2(true);
    l1
}

pub(super) fn space(l1: &L1, quota_bytes: u64) -> u64 {
    let (layout, tenant) = (String::new(), String::new());
    l1.open_space(&SpaceSpec { generation: 0, model: "m".to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes })
        .unwrap()
}

pub(super) fn session(l1: &L1, space: u64) -> u64 {
    l1.begin_session(space, 7, "r", Duration::from_secs(1)).unwrap()
}

pub(super) fn key(number: u32) -> Key {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    Key { hash, rank: 0, group: 0 }
}

fn reserve(l1: &L1, session: u64, number: u32, size: u64) -> i32 {
    let mut view = [View::none(KVKEEP_OK)];
    l1.reserve_write(session, &[key(number)], &[size], false, &mut view).unwrap();
    view[0].status
}

pub(super) fn commit(l1: &L1, session: u64, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert_eq!(reserve(l1, session, number, 4096), 0);
        l1.finish_write(session, &[key(number)], None).unwrap();
    }
}

pub(super) fn write_all(l1: &L1) -> usize {
    let writes = l1.take_writes(1000, u64::MAX);
    let names: Vec<Ref> = writes.iter().map(|write| write.name).collect();
    drop(writes);
    names.iter().for_each(|&name| l1.written(name, true));
    names.len()
}

fn temporary_load(l1: &L1, space: u32) -> Ref {
    let staged = l1.stage_loads(space, std::iter::once((&key(1), 4096, 0)), true);
    let (name, buffer) = staged.into_iter().next().unwrap().unwrap();
    drop(buffer);
    name
}

#[test]
fn write_back_evicts_down_to_the_low_watermark_and_no_further() {
    let l1 = l1(StoreMode::WriteBack, 1000);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..85);
    while l1.evict_slice(true) == Eviction::More {}
    assert_eq!(write_all(&l1), 25);
    let (_, gauges) = l1.gauges();
    assert_eq!(gauges.objects, 60);
    l1.with(|state| assert_eq!(state.leaving_bytes, 0));
}

#[test]
fn background_eviction_lets_callers_go_first_unless_it_insists() {
    let l1 = l1(StoreMode::Never, 10);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..85);
    let caller = l1.state.lock();
    assert_eq!(l1.evict_slice(false), Eviction::Busy);
    std::thread::scope(|scope| {
        let insists = scope.spawn(|| l1.evict_slice(true));
        // For longer than who does not insist waits.
        (0..10_000).for_each(|_| std::thread::yield_now());
        drop(caller);
        assert_eq!(insists.join().unwrap(), Eviction::Done);
    });
    assert_eq!(l1.evict_slice(false), Eviction::Done);
    assert_eq!(l1.gauges().1.objects, 60);
}

#[test]
fn a_full_write_queue_does_not_keep_an_object_from_being_written_later() {
    let l1 = l1(StoreMode::WriteBack, 2);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..85);
    let mut written = 0;
    loop {
        while l1.evict_slice(true) == Eviction::More {}
        match write_all(&l1) {
            0 => break,
            some => written += some,
        }
    }
    assert_eq!((written, l1.gauges().1.objects), (25, 60));
    l1.with(|state| assert!(state.slots.live().all(|(_, slot)| !slot.is(LEAVING))));
}

#[test]
fn objects_passed_over_and_written_since_are_not_remembered_forever() {
    let l1 = l1(StoreMode::WriteThrough, 1000);
    let session = session(&l1, space(&l1, 0));
    for round in 0..200 {
        commit(&l1, session, round * 50..round * 50 + 50);
        while l1.evict_slice(true) == Eviction::More {}
        write_all(&l1);
    }
    l1.with(|state| assert!(state.parked.len() < 4 * PAGES, "{} are parked", state.parked.len()));
}

#[test]
fn of_two_readers_of_one_load_the_one_that_keeps_wins() {
    for (keep, left) in [([false, true], 1), ([true, false], 1), ([false, false], 0)] {
        let l1 = l1(StoreMode::Never, 10);
        let session = session(&l1, space(&l1, 0));
        let readers = keep.map(|keep| LoadReader { session, count: 1, keep });
        assert_eq!(l1.commit_load(temporary_load(&l1, 0), ShapeTag::UNKNOWN, &readers, false), Some(vec![true, true]));
        l1.finish_read(session, &[key(1)], 2, None).unwrap();
        assert_eq!(l1.gauges().1.objects, left);
    }
}

#[test]
fn a_temporary_load_whose_readers_are_gone_is_not_kept() {
    let l1 = l1(StoreMode::Never, 10);
    space(&l1, 0);
    let gone = [LoadReader { session: 5, count: 1, keep: false }];
    assert_eq!(l1.commit_load(temporary_load(&l1, 0), ShapeTag::UNKNOWN, &gone, false), Some(vec![false]));
    assert_eq!(l1.gauges().1.used_bytes, 0);
}

#[test]
fn retention_works_when_the_cache_has_been_open_for_a_year() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(365 * 24 * 3600 * 1000, Ordering::Relaxed);
    let space = space(&l1, 0);
    let session = session(&l1, space);
    commit(&l1, session, 0..100);
    l1.retain(space, &[key(0), key(1)], 100, 1000, None).unwrap();
    commit(&l1, session, 100..150);
    let mut statuses = [9; 3];
    l1.touch(space, &[key(0), key(1), key(2)], Some(&mut statuses)).unwrap();
    assert_eq!(statuses, [0, 0, KVKEEP_ERR_NOT_FOUND as i32]);
    // And it ends.
    l1.set_ms.fetch_add(2000, Ordering::Relaxed);
    commit(&l1, session, 150..250);
    l1.touch(space, &[key(0)], Some(&mut statuses[..1])).unwrap();
    assert_eq!(statuses[0], KVKEEP_ERR_NOT_FOUND as i32);
}

#[test]
fn how_long_a_key_is_shared_is_right_after_the_clock_wraps() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store((1 << 32) - 100, Ordering::Relaxed);
    let space = space(&l1, 0);
    let session = session(&l1, space);
    commit(&l1, session, 0..1);
    l1.reserve_read(session, &[key(0)], 1, &mut [View::none(KVKEEP_OK)]).unwrap();
    l1.set_ms.fetch_add(300, Ordering::Relaxed);
    assert_eq!(l1.explain_key(space, &key(0)).unwrap()[0].shared_for_ms, 300);
}

#[test]
fn shares_beyond_what_can_be_counted_are_refused() {
    let l1 = l1(StoreMode::Never, 10);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..1);
    let mut views = [View::none(KVKEEP_OK); 2];
    l1.reserve_read(session, &[key(0)], SHARES_MAX - 1, &mut views[..1]).unwrap();
    assert!(!l1.reserve_read(session, &[key(0), key(0)], 1, &mut views).unwrap());
    assert_eq!((views[0].status, views[1].status), (0, KVKEEP_ERR_LIMIT as i32));
    assert_eq!(l1.gauges().1.shares, u64::from(SHARES_MAX));
    l1.finish_read(session, &[key(0)], SHARES_MAX, None).unwrap();
    assert_eq!(l1.gauges().1.locked_bytes, 0);
}

#[test]
fn what_can_never_fit_is_refused_without_evicting() {
    for quota in [0, 300_000, u64::MAX] {
        let l1 = l1(StoreMode::Never, 10);
        let session = session(&l1, space(&l1, quota));
        commit(&l1, session, 0..50);
        for size in [PAGES as u64 * 4096 + 1, 1 << 40, u64::MAX - 1, u64::MAX] {
            let status = reserve(&l1, session, 1000, size);
            assert!([KVKEEP_ERR_NO_MEMORY as i32, KVKEEP_ERR_QUOTA as i32].contains(&status));
        }
        assert_eq!(l1.gauges().1.objects, 50);
    }
}

#[test]
fn forgotten_sessions_that_hold_shares_keep_no_others_out() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1, Ordering::Relaxed);
    let space = space(&l1, 0);
    let writer = session(&l1, space);
    commit(&l1, writer, 0..1);
    assert_eq!(reserve(&l1, writer, 1, 4096), 0);
    let forgotten: Vec<u64> = (1..100).map(|_| session(&l1, space)).collect();
    for &session in &forgotten {
        l1.reserve_read(session, &[key(0)], 2, &mut [View::none(KVKEEP_OK)]).unwrap();
    }
    let begin = || l1.begin_session(space, 7, "r", Duration::from_secs(1));
    assert_eq!(begin().unwrap_err().status, KVKEEP_ERR_LIMIT);
    l1.set_ms.store(5000, Ordering::Relaxed);
    assert!(begin().is_ok());
    assert_eq!(l1.session_lives(forgotten[0]).unwrap_err().status, KVKEEP_ERR_EXPIRED);
    assert_eq!((l1.gauges().0.shares_revoked, l1.gauges().1.shares), (2, 98 * 2));
    assert_eq!(l1.reclaim_sessions().0, [forgotten[0]]);
    // One that stages is never taken, and the others are as they were.
    assert!(l1.session_lives(writer).is_ok());
    assert!(l1.finish_read(forgotten[1], &[key(0)], 2, None).unwrap());
}

#[test]
fn idle_sessions_are_reclaimed_when_due_whatever_else_lives() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1, Ordering::Relaxed);
    let space = space(&l1, 0);
    let long = l1.begin_session(space, 7, "long", Duration::from_secs(100)).unwrap();
    assert!(l1.reclaim_sessions().0.is_empty());
    let (idle, holder) = (session(&l1, space), session(&l1, space));
    commit(&l1, holder, 0..1);
    l1.reserve_read(holder, &[key(0)], 1, &mut [View::none(KVKEEP_OK)]).unwrap();
    l1.set_ms.store(1003, Ordering::Relaxed);
    assert_eq!(l1.reclaim_sessions().0, [idle]);
    // One that holds something past its deadline is looked at again, also when what it held was taken from it.
    l1.return_unread(holder, std::iter::once(key(0)), 1);
    l1.set_ms.store(2100, Ordering::Relaxed);
    assert_eq!(l1.reclaim_sessions().0, [holder]);
    assert!(l1.session_lives(long).is_ok());
}

#[test]
fn a_session_that_takes_turns_with_another_names_what_it_uses_once() {
    let l1 = l1(StoreMode::Never, 10);
    let space = space(&l1, 0);
    let sessions = [session(&l1, space), session(&l1, space)];
    for round in 0..100 {
        // From time to time the slots get other objects.
        let first = round / 20 * 50;
        if round % 20 == 0 {
            commit(&l1, session(&l1, space), first..first + 50);
        }
        let keys: Vec<Key> = (first..first + 50).map(key).collect();
        for session in sessions {
            assert!(l1.reserve_read(session, &keys, 1, &mut [View::none(KVKEEP_OK); 50]).unwrap());
            if round < 99 {
                assert!(l1.finish_read(session, &keys, 1, None).unwrap());
            }
        }
    }
    l1.with(|state| {
        for (_, session) in state.sessions.live() {
            assert!(session.used.len() <= 64 + 2 * 50 + 50, "{} names", session.used.len());
        }
    });
    assert_eq!(l1.gauges().1.shares, 100);
    sessions.iter().for_each(|&session| l1.end_session(session, true).unwrap());
    assert_eq!((l1.gauges().1.shares, l1.gauges().1.locked_bytes), (0, 0));
}

#[test]
fn readers_of_the_same_objects_leave_the_counters_as_they_were() {
    const READERS: u32 = 4;
    const ROUNDS: u32 = 3000;
    let l1 = l1(StoreMode::Never, 10);
    let space = space(&l1, 0);
    commit(&l1, session(&l1, space), 0..60);
    let misses = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (l1, misses) = (&l1, &misses);
            scope.spawn(move || {
                let mut session = session(l1, space);
                for round in 0..ROUNDS {
                    // Some keys twice, some that others read too, and one that is not there.
                    let mut keys: Vec<Key> = (0..8).map(|i| key((reader * 7 + round * (i + 1)) % 61)).collect();
                    keys.retain(|key| key.hash[0] < 60 || round % 16 == 0);
                    let mut views = vec![View::none(KVKEEP_OK); keys.len()];
                    let count = 1 + round % 3;
                    let all = l1.reserve_read(session, &keys, count, &mut views).unwrap();
                    let absent = views.iter().filter(|view| view.status != KVKEEP_OK as i32).count() as u64;
                    assert_eq!(all, absent == 0);
                    misses.fetch_add(absent, Ordering::Relaxed);
                    keys.retain(|key| key.hash[0] < 60);
                    assert!(l1.finish_read(session, &keys, count, None).unwrap());
                    if let Some(key) = keys.first() {
                        assert!(!l1.finish_read(session, &[*key], 1, None).unwrap());
                    }
                    if round % 500 == 0 {
                        l1.end_session(session, true).unwrap();
                        session = self::session(l1, space);
                    }
                }
            });
        }
    });
    let (counts, gauges) = l1.gauges();
    assert_eq!((gauges.shares, gauges.locked_bytes, gauges.objects), (0, 0, 60));
    assert_eq!(counts.read_misses, misses.into_inner());
    // Nothing is left that eviction would pass over.
    commit(&l1, session(&l1, space), 100..200);
    assert_eq!(l1.gauges().0.evictions, 60);
}

/// A thread remembers what it looked up last, wherever that was.
#[test]
fn a_space_whose_number_is_another_spaces_is_refused() {
    let l1 = l1(StoreMode::Never, 100);
    let spec = |tenant: &str| SpaceSpec {
        model: "m".to_owned(),
        layout: String::new(),
        tenant: tenant.to_owned(),
        generation: 0,
        chunk_tokens: 16,
        quota_bytes: 0,
    };
    let tag = |first: u8, last: u8| SpaceTag(std::array::from_fn(|i| if i < 8 { first } else { last }));
    let one = open_tagged_space(&l1, tag(1, 1), &spec("a")).unwrap();
    let error = open_tagged_space(&l1, tag(1, 2), &spec("b")).unwrap_err();
    assert_eq!(error.status, KVKEEP_ERR_INVALID);
    assert!(error.message.contains(&one.to_string()) && error.message.contains("tenant"), "{error}");
    // The same space opens again, and the refused one changed nothing.
    assert_eq!(open_tagged_space(&l1, tag(1, 1), &spec("a")).unwrap(), one);
    assert_eq!(l1.space(one).unwrap().tag, tag(1, 1));
    // No space has the number 0: one that would shares 1.
    assert_eq!(open_tagged_space(&l1, tag(0, 1), &spec("c")).unwrap(), 1);
    let begins_with_1 = SpaceTag(std::array::from_fn(|i| u8::from(i == 0)));
    assert_eq!(open_tagged_space(&l1, begins_with_1, &spec("d")).unwrap_err().status, KVKEEP_ERR_INVALID);
}

#[test]
fn a_thread_takes_nothing_from_one_cache_or_space_to_the_next() {
    let (one, two) = (l1(StoreMode::Never, 100), l1(StoreMode::Never, 100));
    let keys: Vec<Key> = (0..5).map(key).collect();
    let other = SpaceSpec {
        generation: 0,
        model: "other".to_owned(),
        layout: String::new(),
        tenant: String::new(),
        chunk_tokens: 16,
        quota_bytes: 0,
    };
    let places: Vec<(&L1, u64)> = [&one, &two]
        .into_iter()
        .flat_map(|l1| [space(l1, 0), l1.open_space(&other).unwrap()].map(|space| (&**l1, session(l1, space))))
        .collect();
    let views = || vec![View::none(KVKEEP_OK); keys.len()];
    for (at, &(l1, session)) in places.iter().enumerate() {
        assert!(l1.reserve_write(session, &keys, &[4096; 5], false, &mut views()).unwrap());
        for &(l1, session) in &places[at + 1..] {
            assert!(!l1.reserve_read(session, &keys, 1, &mut views()).unwrap());
            let mut statuses = [0; 5];
            assert!(!l1.finish_read(session, &keys, 1, Some(&mut statuses)).unwrap());
            assert!(!l1.finish_write(session, &keys, Some(&mut statuses)).unwrap());
            assert_eq!(statuses, [KVKEEP_ERR_NOT_FOUND as i32; 5]);
        }
        assert!(l1.finish_write(session, &keys, None).unwrap());
        assert!(places[..=at].iter().all(|&(l1, session)| l1.reserve_read(session, &keys, 1, &mut views()).unwrap()));
        assert!(places[..=at].iter().all(|&(l1, session)| l1.finish_read(session, &keys, 1, None).unwrap()));
    }
}
