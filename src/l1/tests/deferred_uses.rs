//! Uses that wait before the policies know of them.

use std::sync::Arc;

use super::{commit, key, l1, session, space};
use crate::abi::View;
use crate::config::{SpaceSpec, StoreMode};
use crate::error::KVKEEP_OK;
use crate::key::Key;
use crate::l1::L1;
use crate::l1::counters::PARTS;
use crate::l1::deferred_uses::{MANY, MOST};

fn read(l1: &L1, session: u64, number: u32) {
    let mut views = [View::none(KVKEEP_OK)];
    assert!(l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap(), "object {number} is not there");
    assert!(l1.finish_read(session, &[key(number)], 1, None).unwrap());
}

fn waiting(l1: &L1) -> usize {
    l1.state.read().deferred.len()
}

/// Space for 40 objects in a pool of their own, and for 60 others; a session of each, which leave their uses at the same place.
fn full() -> (Arc<L1>, [u64; 2]) {
    let l1 = l1(StoreMode::Never, 10);
    let quota_bytes = 40 * 4096;
    let (model, layout, tenant) = ("bounded".to_owned(), String::new(), String::new());
    let bounded = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes };
    let spaces = [space(&l1, 0), l1.open_space(&bounded).unwrap()];
    let sessions = spaces.map(|space| {
        let session = session(&l1, space);
        for _ in 1..PARTS {
            self::session(&l1, space);
        }
        session
    });
    for (session, count) in sessions.into_iter().zip([60, 40]) {
        commit(&l1, session, 0..count);
    }
    l1.contention.stay();
    (l1, sessions)
}

#[test]
fn objects_used_under_the_shared_lock_are_evicted_last() {
    let (l1, sessions) = full();
    for number in 0..10 {
        sessions.iter().for_each(|&session| read(&l1, session, number));
    }
    assert!(waiting(&l1) > 0, "no call shared the lock");
    for session in sessions {
        commit(&l1, session, 100..110);
        assert_eq!(waiting(&l1), 0);
        for number in (0..10).chain(20..40).chain(100..110) {
            read(&l1, session, number);
        }
        let mut views = [View::none(KVKEEP_OK); 10];
        let evicted: Vec<_> = (10..20).map(key).collect();
        l1.reserve_read(session, &evicted, 1, &mut views).unwrap();
        assert!(views.iter().all(|view| view.status != KVKEEP_OK as i32));
    }
}

#[test]
fn uses_under_the_exclusive_lock_come_first_though_another_pool_takes_the_place() {
    let (l1, sessions) = full();
    l1.contention.leave();
    (1..20).for_each(|number| read(&l1, sessions[0], number));
    l1.contention.stay();
    (20..60).chain([0]).for_each(|number| read(&l1, sessions[0], number));
    read(&l1, sessions[1], 0);
    commit(&l1, sessions[0], 100..101);
    let mut views = [View::none(KVKEEP_OK)];
    l1.reserve_read(sessions[0], &[key(1)], 1, &mut views).unwrap();
    assert_ne!(views[0].status, KVKEEP_OK as i32, "what was used first was not the first to go");
}

/// Random calls of a session, under the exclusive and the shared lock, against a list of its objects in order of use: of one call, the last first.
#[test]
fn what_was_used_first_is_evicted_first_however_it_was_used() {
    let mut seed = 42u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as usize % below
    };
    for _ in 0..300 {
        let l1 = l1(StoreMode::Never, 100);
        let space = space(&l1, 0);
        let session = session(&l1, space);
        commit(&l1, session, 0..50);
        let (mut order, mut next): (Vec<u32>, u32) = ((0..50).collect(), 50);
        for _ in 0..random(300) {
            let at = random(order.len());
            match random(40) {
                0 => l1.contention.stay(),
                1 => l1.contention.leave(),
                2 if order.len() > 10 => {
                    assert_eq!(l1.delete(space, &[key(order.remove(at))]).unwrap(), [KVKEEP_OK]);
                }
                3 if order.len() < 100 => {
                    commit(&l1, session, next..next + 1);
                    order.push(next);
                    next += 1;
                }
                4 if at > 0 => {
                    let used: Vec<u32> = order.drain(..at).collect();
                    let keys: Vec<Key> = used.iter().copied().map(key).collect();
                    let mut views = vec![View::none(KVKEEP_OK); keys.len()];
                    assert!(l1.reserve_read(session, &keys, 1, &mut views).unwrap());
                    assert!(l1.finish_read(session, &keys, 1, None).unwrap());
                    order.extend(used.into_iter().rev());
                }
                _ => {
                    let used = order.remove(at);
                    read(&l1, session, used);
                    order.push(used);
                }
            }
        }
        commit(&l1, session, 1000..1100 - order.len() as u32);
        for (at, number) in (2000..).zip(order) {
            commit(&l1, session, at..at + 1);
            let mut views = [View::none(KVKEEP_OK)];
            l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap();
            assert_ne!(views[0].status, KVKEEP_OK as i32, "object {number} was not the next to go");
        }
    }
}

#[test]
fn uses_are_passed_on_before_too_many_wait() {
    let (l1, [session, _]) = full();
    let mut most = 0;
    for turn in 0..3 * MOST as u32 {
        read(&l1, session, turn % 60);
        most = most.max(waiting(&l1));
    }
    assert_eq!(most, MANY - 1);
    l1.gauges();
    let state = l1.state.read();
    let telling = state.pools[0].policy.lock();
    for turn in 1..MOST as u32 {
        read(&l1, session, turn % 60);
    }
    assert_eq!(waiting(&l1), MOST - 1);
    drop(telling);
    read(&l1, session, 0);
    assert_eq!(waiting(&l1), 0);
}
