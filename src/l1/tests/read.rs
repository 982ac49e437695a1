//! Reads: what became of objects between their reservation and their return.

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
fn what_was_detached_since_is_returned() {
    let l1 = l1(StoreMode::Never, 10);
    let space = space(&l1, 0);
    let session = session(&l1, space);
    for keys in [keys(0..1), keys(0..2)] {
        commit(&l1, session, 0..2);
        take(&l1, session, &keys);
        l1.clear(None, true).unwrap();
        let mut statuses = vec![9; keys.len()];
        assert!(l1.finish_read(session, &keys, 1, Some(&mut statuses)).unwrap(), "{statuses:?}");
        assert_eq!((l1.gauges().1.shares, l1.gauges().1.used_bytes), (0, 0));
    }
}

#[test]
fn what_was_revoked_is_expired() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1, Ordering::Relaxed);
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
    take(&l1, session, &keys(0..1));
    l1.set_ms.store(1300, Ordering::Relaxed);
    assert_eq!(l1.explain_key(space, &key(0)).unwrap()[0].shared_for_ms, 300);
}
