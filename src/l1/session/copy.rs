//! Sessions of copies: the library reads and writes in them for a request, apart from the session of the request.
//!
//! The memory under a copy belongs to the copy, so that the request's session may end meanwhile. The objects that a copy stores count as
//! used by the request; those that it stores for one that was aborted are dropped instead of committed.

use std::time::Duration;

use super::lifecycle;
use super::sessions::Session;
use crate::error::{Error, Result};
use crate::l1::remove;
use crate::l1::tier::L1;
use crate::shape::Shape;

/// A copy is never late: as long as a deadline can be.
const FOREVER: Duration = Duration::from_millis(u32::MAX as u64);

pub(in crate::l1) fn begin_copy(l1: &L1, session: u64, space: u64, shapes: &[Shape], owner_pid: u32) -> Result<u64> {
    l1.with(|state| {
        let (user, &mut Session { space: index, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let of_session = state.spaces[index as usize].tag.number();
        if of_session != space {
            return Err(Error::invalid(format!(
                "session {session} is of space {of_session} and the pool of space {space}: use a pool of the session's space"
            )));
        }
        remove::declare_shapes(state, index, shapes)?;
        // The session itself is in use, so that it is not the one.
        if state.sessions.full() {
            lifecycle::end_longest_expired(state);
        }
        let now_ms = state.now_ms;
        // A report of the key's holders names the request it is copied for.
        let whose = format!("copy for session {session}, {}", state.sessions.at_mut(user).request_id);
        let whose = whose.trim_end_matches(", ");
        let copy = state.sessions.begin(index, owner_pid, whose, FOREVER, now_ms)?;
        state.sessions.serve(copy, user)?;
        Ok(copy)
    })
}
