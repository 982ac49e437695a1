//! The accounts of writers.

use super::{key, l1, session, space};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result};
use crate::key::Key;
use crate::l1::L1;

const A: u64 = 11;
const B: u64 = 12;
const SIZE: u64 = 4096;

fn stage(l1: &L1, writer: u64, session: u64, key: Key) -> Result<bool> {
    l1.reserve_write_by(writer, session, &[key], &[SIZE], false, &mut [View::none(KVKEEP_OK)])
}

fn staged(l1: &L1) -> u64 {
    l1.gauges().1.staged
}

#[test]
fn a_writers_end_drops_its_own_staging_and_no_later_one_of_the_same_key() {
    let l1 = l1(StoreMode::Never, 8);
    l1.open_writer(A, u64::MAX);
    l1.open_writer(B, u64::MAX);
    let (space, shared) = (space(&l1, 0), session(&l1, space(&l1, 0)));
    assert!(stage(&l1, B, shared, key(1)).unwrap());
    assert!(stage(&l1, B, shared, key(2)).unwrap());
    assert!(stage(&l1, A, shared, key(3)).unwrap());
    // Another client commits it, it goes, and is staged anew.
    assert!(l1.finish_write(shared, &[key(1)], None).unwrap());
    assert!(l1.evict(space, &[key(1)], None).unwrap());
    assert!(stage(&l1, A, shared, key(1)).unwrap());
    l1.close_writer(B);
    assert_eq!(staged(&l1), 2);
    let notices = l1.take_notices();
    assert!(notices.len() == 1 && notices[0].1.contains("since their writer has gone: 1"), "{notices:?}");
    let mut statuses = [0; 3];
    l1.finish_write(shared, &[key(1), key(2), key(3)], Some(&mut statuses)).unwrap();
    assert_eq!(statuses, [0, KVKEEP_ERR_NOT_FOUND as i32, 0]);
    assert_eq!(stage(&l1, B, shared, key(4)).unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
}

#[test]
fn staging_leaves_its_writers_account_when_anyone_commits_aborts_or_ends_its_session() {
    let l1 = l1(StoreMode::Never, 8);
    l1.open_writer(B, SIZE);
    let space = space(&l1, 0);
    let ends: [fn(&L1, u64, Key); 4] = [
        |l1, session, key| assert!(l1.finish_write(session, &[key], None).unwrap()),
        |l1, session, key| assert!(l1.abort_write(session, &[key], None).unwrap()),
        |l1, session, _| l1.end_session(session, false).unwrap(),
        |l1, session, key| {
            assert!(l1.finish_write_and_reserve_read(session, &[key], 1, &mut [View::none(KVKEEP_OK)]).unwrap());
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let shared = session(&l1, space);
        let key = key(number as u32);
        assert!(stage(&l1, B, shared, key).unwrap());
        let error = stage(&l1, B, shared, super::key(99)).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_LIMIT);
        assert!(error.message.contains("raise staged_bytes_per_client_max"), "{error}");
        end(&l1, shared, key);
    }
    l1.close_writer(B);
    assert_eq!(staged(&l1), 0);
}
