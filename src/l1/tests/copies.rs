//! Sessions that copy for another.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{commit, key, l1, session, space};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
use crate::l1::L1;

fn staged_copy(l1: &Arc<L1>) -> (u64, u64, u64) {
    let space = space(l1, 0);
    let user = session(l1, space);
    let copy = l1.begin_copy(user, space, &[], 7).unwrap();
    let mut views = [View::none(KVKEEP_OK)];
    assert!(l1.reserve_write(copy, &[key(1)], &[64], false, &mut views).unwrap());
    (space, user, copy)
}

fn end(l1: &L1, copy: u64) -> i32 {
    let mut statuses = [0];
    l1.finish_write(copy, &[key(1)], Some(&mut statuses)).unwrap();
    l1.end_session(copy, true).unwrap();
    statuses[0]
}

#[test]
fn a_copy_outlives_a_session_that_ends_and_commits() {
    let l1 = l1(StoreMode::Never, 8);
    let (space, user, copy) = staged_copy(&l1);
    l1.end_session(user, true).unwrap();
    assert_eq!(end(&l1, copy), KVKEEP_OK as i32);
    let reader = session(&l1, space);
    assert!(l1.reserve_read(reader, &[key(1)], 1, &mut [View::none(KVKEEP_OK)]).unwrap());
    l1.end_session(reader, false).unwrap();
    assert_eq!((l1.gauges().1.locked_bytes, l1.gauges().1.sessions), (0, 0));
}

#[test]
fn a_copy_for_a_session_that_was_aborted_commits_nothing() {
    let l1 = l1(StoreMode::Never, 8);
    let (space, user, copy) = staged_copy(&l1);
    l1.end_session(user, false).unwrap();
    assert_eq!(end(&l1, copy), KVKEEP_ERR_CANCELLED as i32);
    let reader = session(&l1, space);
    let mut views = [View::none(KVKEEP_OK)];
    assert!(!l1.reserve_read(reader, &[key(1)], 1, &mut views).unwrap());
    assert_eq!(views[0].status, KVKEEP_ERR_NOT_FOUND as i32);
    assert_eq!((l1.gauges().1.used_bytes, l1.gauges().1.staged), (0, 0));
    assert_eq!(l1.begin_copy(user, space, &[], 7).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
}

#[test]
fn forgotten_sessions_keep_no_copy_out() {
    let l1 = l1(StoreMode::Never, 8);
    l1.set_ms.store(1, Ordering::Relaxed);
    let space = space(&l1, 0);
    let user = session(&l1, space);
    commit(&l1, user, 1..2);
    let forgotten: Vec<u64> = (1..100).map(|_| session(&l1, space)).collect();
    for &session in &forgotten {
        assert!(l1.reserve_read(session, &[key(1)], 1, &mut [View::none(KVKEEP_OK)]).unwrap());
    }
    assert_eq!(l1.begin_copy(user, space, &[], 7).unwrap_err().status, KVKEEP_ERR_LIMIT);
    l1.set_ms.store(5000, Ordering::Relaxed);
    l1.begin_copy(user, space, &[], 7).unwrap();
    assert_eq!(l1.session_lives(forgotten[0]).unwrap_err().status, KVKEEP_ERR_EXPIRED);
    assert!(l1.session_lives(user).is_ok() && l1.session_lives(forgotten[1]).is_ok());
}

#[test]
fn a_copy_is_of_its_sessions_space() {
    let l1 = l1(StoreMode::Never, 8);
    let (space, user, copy) = staged_copy(&l1);
    assert_eq!(l1.begin_copy(user, space ^ 1, &[], 7).unwrap_err().status, crate::error::KVKEEP_ERR_INVALID);
    l1.end_session(copy, false).unwrap();
    assert_eq!(l1.gauges().1.sessions, 1);
}
