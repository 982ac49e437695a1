//! Sessions of copies: what the library itself reads and writes for a request, held apart from what the request holds.
//!
//! The memory under a copy belongs to the copy, so that the request's session may end meanwhile. What a copy stores counts as
//! used by the request; what it stores for one that was aborted is dropped instead of committed.

use std::time::Duration;

use super::Session;
use crate::error::{Error, Result};
use crate::l1::{L1, State};
use crate::shape::Shape;

/// A copy is never late: as long as a deadline can be.
const FOREVER: Duration = Duration::from_millis(u32::MAX as u64);

impl L1 {
    /// Begins a session that copies for `session`, which must be of `space`, from or to pages of these shapes.
    pub fn begin_copy(&self, session: u64, space: u64, shapes: &[Shape], owner_pid: u32) -> Result<u64> {
        self.with(|state| {
            let (user, &mut Session { space: index, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let of_session = state.spaces[index as usize].tag.number();
            if of_session != space {
                return Err(Error::invalid(format!(
                    "session {session} is of space {of_session} and the pool of space {space}: use a pool of the session's space"
                )));
            }
            state.declare_shapes(index, shapes)?;
            // The session itself is in use, so that it is not the one.
            if state.sessions.full() {
                state.reclaim_oldest();
            }
            let now_ms = state.now_ms;
            // Whoever asks who holds a key is told for whom it is copied.
            let whose = format!("copy for session {session}, {}", state.sessions.at_mut(user).request_id);
            let whose = whose.trim_end_matches(", ");
            let copy = state.sessions.begin(index, owner_pid, whose, FOREVER, now_ms)?;
            state.sessions.serve(copy, user)?;
            Ok(copy)
        })
    }
}

impl State {
    /// Whether the session that `copy` copies for, if it does, has shares of an object.
    #[inline(always)]
    pub(in crate::l1) fn is_held_for(&mut self, copy: u32, id: u32) -> bool {
        self.sessions.at_mut(copy).user != 0 && {
            let user = self.sessions.user_of(copy);
            user != copy && self.shares_of(user, id) > 0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::abi::View;
    use crate::config::StoreMode;
    use crate::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
    use crate::l1::tests::{commit, key, l1, session, space};

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
}
