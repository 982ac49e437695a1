use std::sync::atomic::Ordering;

use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_EXPIRED, KVKEEP_OK};
use crate::key::Key;
use crate::l1::L1;
use crate::l1::tests::{commit, key, l1, session, space};

fn views(count: usize) -> Vec<View> {
    vec![View::none(KVKEEP_OK); count]
}

fn keys(numbers: std::ops::Range<u32>) -> Vec<Key> {
    numbers.map(key).collect()
}

fn take(l1: &L1, session: u64, keys: &[Key]) {
    assert!(l1.reserve_read(session, keys, 1, &mut views(keys.len())).unwrap());
}

#[test]
fn a_session_of_a_long_prompt_shares_the_lock_again() {
    let l1 = l1(StoreMode::Never, 10);
    let space = space(&l1, 0);
    commit(&l1, session(&l1, space), 0..80);
    l1.contention.stay();
    let reader = session(&l1, space);
    let has_duplicates = || l1.with(|state| state.sessions.at(state.sessions.index(reader).unwrap()).has_duplicates());
    for round in 0..3 {
        take(&l1, reader, &keys(0..80));
        assert!(round == 0 || !has_duplicates());
        assert!(l1.finish_read(reader, &keys(0..80), 1, None).unwrap());
    }
}

#[test]
fn a_call_that_read_the_clock_long_ago_sets_no_deadline_back() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1000, Ordering::Relaxed);
    let space = space(&l1, 0);
    let (reader, writer) = (session(&l1, space), session(&l1, space));
    commit(&l1, writer, 0..100);
    l1.contention.stay();
    // While it waited for the lock, others used the session at a later time.
    l1.with(|state| {
        state.now_ms = 5000;
        state.sessions.use_now(reader, 5000).unwrap();
    });
    take(&l1, reader, &keys(0..60));
    l1.set_ms.store(5500, Ordering::Relaxed);
    take(&l1, writer, &keys(60..100));
    let mut view = views(1);
    assert!(!l1.reserve_write(writer, &[key(1000)], &[4096], false, &mut view).unwrap());
    assert_eq!(l1.gauges().0.shares_revoked, 0);
}

#[test]
fn what_was_detached_since_is_returned() {
    for contended in [true, false] {
        let l1 = l1(StoreMode::Never, 10);
        if contended {
            l1.contention.stay();
        }
        let space = space(&l1, 0);
        let session = session(&l1, space);
        for keys in [keys(0..1), keys(0..2)] {
            commit(&l1, session, 0..2);
            take(&l1, session, &keys);
            l1.clear(None, true).unwrap();
            let mut statuses = vec![9; keys.len()];
            assert!(l1.finish_read(session, &keys, 1, Some(&mut statuses)).unwrap(), "{statuses:?}");
            assert_eq!((l1.gauges().1.shares, l1.gauges().1.used_bytes), (0, 0), "contended: {contended}");
        }
    }
}

#[test]
fn what_was_revoked_is_expired() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1, Ordering::Relaxed);
    l1.contention.stay();
    let space = space(&l1, 0);
    let (reader, writer) = (session(&l1, space), session(&l1, space));
    commit(&l1, writer, 0..100);
    take(&l1, reader, &keys(0..60));
    l1.set_ms.store(5000, Ordering::Relaxed);
    take(&l1, writer, &keys(60..100));
    commit(&l1, writer, 200..201);
    let mut statuses = [9];
    l1.finish_read(reader, &keys(0..1), 1, Some(&mut statuses)).unwrap();
    assert_eq!(statuses, [KVKEEP_ERR_EXPIRED as i32]);
}

#[test]
fn what_is_used_often_enough_is_written() {
    let l1 = l1(StoreMode::AfterUses(2), 10);
    l1.contention.stay();
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..1);
    for written in [0, 1] {
        take(&l1, session, &keys(0..1));
        assert!(l1.finish_read(session, &keys(0..1), 1, None).unwrap());
        assert_eq!(l1.writes_queued(), written);
    }
}

#[test]
fn since_when_it_is_shared_is_known() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1000, Ordering::Relaxed);
    let space = space(&l1, 0);
    let session = session(&l1, space);
    commit(&l1, session, 0..1);
    l1.contention.stay();
    take(&l1, session, &keys(0..1));
    l1.set_ms.store(1300, Ordering::Relaxed);
    assert_eq!(l1.explain_key(space, &key(0)).unwrap()[0].shared_for_ms, 300);
}
