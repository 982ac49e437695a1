use std::sync::atomic::Ordering;

use super::Eviction;
use crate::abi::View;
use crate::config::{SpaceSpec, StoreMode};
use crate::error::{KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
use crate::l1::L1;
use crate::l1::tests::{commit, key, l1, session, space, write_all};

fn evict_all(l1: &L1) {
    while l1.evict_slice(true) == Eviction::More {}
}

fn hold(l1: &L1, session: u64, numbers: std::ops::Range<u32>) {
    let keys: Vec<_> = numbers.map(key).collect();
    assert!(l1.reserve_read(session, &keys, 1, &mut vec![View::none(KVKEEP_OK); keys.len()]).unwrap());
}

#[test]
fn what_is_gone_keeps_nothing_from_being_written() {
    let l1 = l1(StoreMode::WriteThrough, 100);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..100);
    // The writer stalls, and the space is cleared.
    assert_eq!(l1.clear(None, false).unwrap(), (100, true));
    commit(&l1, session, 100..200);
    assert_eq!((write_all(&l1), l1.gauges().0.writes_dropped()), (100, 0));
}

#[test]
fn a_write_put_off_is_not_counted_as_dropped() {
    let l1 = l1(StoreMode::WriteBack, 2);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..85);
    let mut written = 0;
    loop {
        evict_all(&l1);
        match write_all(&l1) {
            0 => break,
            some => written += some,
        }
    }
    assert_eq!((written, l1.gauges().0.writes_dropped()), (25, 0));
}

#[test]
fn background_eviction_turns_to_another_pool_if_the_fullest_is_in_use() {
    let l1 = l1(StoreMode::Never, 10);
    let bounded = SpaceSpec {
        generation: 0,
        model: "bounded".to_owned(),
        layout: String::new(),
        tenant: String::new(),
        chunk_tokens: 16,
        quota_bytes: 60 * 4096,
    };
    let held = session(&l1, l1.open_space(&bounded).unwrap());
    commit(&l1, held, 0..50);
    hold(&l1, held, 0..50);
    commit(&l1, session(&l1, space(&l1, 0)), 0..45);
    evict_all(&l1);
    assert_eq!(l1.gauges().1.used_bytes, 60 * 4096);
}

#[test]
fn what_waited_to_be_written_goes_when_there_is_nothing_to_write_it_to() {
    let l1 = l1(StoreMode::WriteBack, 2);
    let session = session(&l1, space(&l1, 0));
    commit(&l1, session, 0..85);
    evict_all(&l1);
    l1.set_has_l2(false);
    write_all(&l1);
    evict_all(&l1);
    assert_eq!(l1.gauges().1.objects, 60);
}

#[test]
fn what_cannot_fit_evicts_nothing_though_a_session_expired() {
    let l1 = l1(StoreMode::Never, 10);
    l1.set_ms.store(1, Ordering::Relaxed);
    let space = space(&l1, 0);
    let old = session(&l1, space);
    commit(&l1, old, 0..98);
    hold(&l1, old, 0..1);
    l1.set_ms.store(5000, Ordering::Relaxed);
    let now = session(&l1, space);
    hold(&l1, now, 1..2);
    let mut view = [View::none(KVKEEP_OK)];
    assert!(!l1.reserve_write(now, &[key(1000)], &[100 * 4096], false, &mut view).unwrap());
    assert_eq!(l1.gauges().1.objects, 98);
}

#[test]
fn what_is_evicted_by_name_counts_as_dropped_only_if_it_was_to_be_written() {
    let modes = [(StoreMode::WriteThrough, 1), (StoreMode::WriteBack, 1), (StoreMode::Never, 0)];
    for (mode, dropped) in modes {
        let l1 = l1(mode, 100);
        let space = space(&l1, 0);
        let session = session(&l1, space);
        commit(&l1, session, 0..2);
        hold(&l1, session, 1..2);
        let mut statuses = [9; 3];
        assert!(!l1.evict(space, &[key(0), key(1), key(2)], Some(&mut statuses)).unwrap());
        assert_eq!(statuses, [0, KVKEEP_ERR_LOCKED as i32, KVKEEP_ERR_NOT_FOUND as i32]);
        let counts = l1.gauges().0;
        assert_eq!((counts.evictions, counts.evicted_bytes, counts.writes_dropped()), (1, 4096, dropped));
        // What is written, or given up on, is nothing to lose.
        write_all(&l1);
        l1.set_has_l2(false);
        assert!(l1.finish_read(session, &[key(1)], 1, None).unwrap());
        assert!(l1.evict(space, &[key(1)], None).unwrap());
        assert_eq!((l1.gauges().0.writes_dropped(), l1.gauges().1.used_bytes), (dropped, 0));
    }
}
