//! Reservations that wait: they evict nothing that is still to be written, but wait until it is, and for copies under way.

use std::time::{Duration, Instant};

use super::state::{L1State, MayEvict};
use super::tier::L1;
use super::wakes::WAKE_EVICTION;
use super::{lookup, pending_writes, write};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result, Status};
use crate::key::Key;

/// Whether a view was refused for want of memory or quota.
pub fn is_refused(view: &View) -> bool {
    [KVKEEP_ERR_NO_MEMORY as i32, KVKEEP_ERR_QUOTA as i32].contains(&view.status)
}

pub(super) fn reserve_waiting(
    l1: &L1,
    (session, writer): (u64, u64),
    keys: &[Key],
    sizes: &[u64],
    timeout: Duration,
    views: &mut [View],
) -> Result<Status> {
    let until = Instant::now() + timeout;
    // Counted before memory is looked for: it is woken for all that is freed after.
    l1.freed.begin_wait();
    let status = loop {
        let turn = l1.freed.turn();
        let tried = lookup::with_fingerprints(l1, keys, |state, fingerprints, _| {
            // Where nothing is written, the tail of a prompt would push out its head.
            state.may_evict =
                if pending_writes::stores_everything(state) { MayEvict::Written } else { MayEvict::Nothing };
            let staged = write::stage_all(state, (session, writer), keys, fingerprints, sizes, false, views);
            state.may_evict = MayEvict::All;
            let first = views.iter().zip(sizes).find(|(view, _)| is_refused(view));
            staged.map(|_| first.is_none_or(|(_, &size)| memory_is_coming(state, session, size)))
        });
        let coming = match tried {
            Ok(coming) => coming,
            Err(error) => break Err(error),
        };
        let refused = views.iter().filter(|view| is_refused(view)).count();
        match (refused, coming) {
            (0, _) => break Ok(KVKEEP_OK),
            (_, false) => break Ok(KVKEEP_PARTIAL),
            _ if l1.freed.is_closed() => break Ok(KVKEEP_PARTIAL),
            _ if refused < views.len() => break Ok(KVKEEP_PENDING),
            _ => {}
        }
        if !l1.freed.wait(turn, until) {
            break Ok(KVKEEP_PENDING);
        }
    };
    l1.freed.end_wait();
    status
}

/// Whether memory becomes free for an object of so many bytes without any caller's doing: by writes, and by copies, which are
/// written when they are over.
fn memory_is_coming(state: &mut L1State, session: u64, size: u64) -> bool {
    let Ok(index) = state.sessions.index(session) else { return false };
    let quota = state.spaces[state.sessions.at_mut(index).space as usize].quota;
    if !pending_writes::stores_everything(state) || size > state.alloc.capacity() || quota > 0 && size > quota {
        return false;
    }
    let writes_back = state.config.store_mode == StoreMode::WriteBack;
    if writes_back && !state.parked.is_empty() && state.above(state.config.low_percent, 0) {
        // Background eviction has them written.
        state.wakes |= WAKE_EVICTION;
        return true;
    }
    state.slots.busy() > 0 || !state.writes.is_empty() || copies_hold(state)
}

/// Whether copies under way hold memory.
fn copies_hold(state: &L1State) -> bool {
    state.sessions.live().any(|(_, session)| session.user != 0 && (session.shares > 0 || !session.staged.is_empty()))
}
