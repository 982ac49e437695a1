//! The order of uses, in which objects are evicted.

use super::{commit, key, l1, session, space};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::KVKEEP_OK;
use crate::key::Key;
use crate::l1::L1;

fn read(l1: &L1, session: u64, number: u32) {
    let mut views = [View::none(KVKEEP_OK)];
    assert!(l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap(), "object {number} is not there");
    assert!(l1.finish_read(session, &[key(number)], 1, None).unwrap());
}

/// Random calls of a session against a list of its objects in order of use: of one call, the last first.
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
                0 if order.len() > 10 => {
                    assert_eq!(l1.delete(space, &[key(order.remove(at))]).unwrap(), [KVKEEP_OK]);
                }
                1 if order.len() < 100 => {
                    commit(&l1, session, next..next + 1);
                    order.push(next);
                    next += 1;
                }
                2 if at > 0 => {
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
