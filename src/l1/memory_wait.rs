//! Reservations that wait: they take no memory of what is still to be written, but wait until it is, and for copies under way.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{L1, State, WAKE_ROOM};
use crate::abi::View;
use crate::config::StoreMode;
use crate::error::{KVKEEP_ERR_NO_MEMORY, KVKEEP_ERR_QUOTA, KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result, Status};
use crate::key::Key;

/// Tells those that wait that memory may be had.
#[derive(Default)]
pub(super) struct Freed {
    waiting: AtomicU32,
    turn: Mutex<u64>,
    changed: Condvar,
    over: AtomicBool,
}

impl Freed {
    #[inline]
    pub(super) fn tell(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            *self.turn.lock() += 1;
            self.changed.notify_all();
        }
    }
}

/// What a reservation leaves in L1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spared {
    /// It evicts what is not in use.
    Nothing,
    /// It evicts what is written.
    Unwritten,
    /// It takes only memory that is free.
    Everything,
}

/// Whether a view was refused for want of memory or quota.
pub fn is_refused(view: &View) -> bool {
    [KVKEEP_ERR_NO_MEMORY as i32, KVKEEP_ERR_QUOTA as i32].contains(&view.status)
}

impl L1 {
    /// Stages what fits of `keys`, in their order, for a writer. Evicts nothing that is still to be written; where none of them fits,
    /// waits up to `timeout` for writes and copies under way. OK: none was refused. PENDING: those refused may fit later. PARTIAL:
    /// nothing that is under way will free memory for them.
    pub fn reserve_patiently(
        &self,
        (session, writer): (u64, u64),
        keys: &[Key],
        sizes: &[u64],
        timeout: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        let until = Instant::now() + timeout;
        // Counted before memory is looked for: what is freed after that is told.
        self.freed.waiting.fetch_add(1, Ordering::Relaxed);
        let status = loop {
            let turn = *self.freed.turn.lock();
            let tried = self.with_fingerprints(keys, |state, fingerprints, _| {
                // Where nothing is written, the tail of a prompt would push out its head.
                state.spared = if state.writes_what_is_stored() { Spared::Unwritten } else { Spared::Everything };
                let staged = state.stage_all((session, writer), keys, fingerprints, sizes, false, views);
                state.spared = Spared::Nothing;
                let first = views.iter().zip(sizes).find(|(view, _)| is_refused(view));
                staged.map(|_| first.is_none_or(|(_, &size)| state.room_is_coming(session, size)))
            });
            let coming = match tried {
                Ok(coming) => coming,
                Err(error) => break Err(error),
            };
            let refused = views.iter().filter(|view| is_refused(view)).count();
            match (refused, coming) {
                (0, _) => break Ok(KVKEEP_OK),
                (_, false) => break Ok(KVKEEP_PARTIAL),
                _ if self.freed.over.load(Ordering::Acquire) => break Ok(KVKEEP_PARTIAL),
                _ if refused < views.len() => break Ok(KVKEEP_PENDING),
                _ => {}
            }
            let mut now = self.freed.turn.lock();
            while *now == turn {
                if self.freed.changed.wait_until(&mut now, until).timed_out() {
                    break;
                }
            }
            if *now == turn {
                break Ok(KVKEEP_PENDING);
            }
        };
        self.freed.waiting.fetch_sub(1, Ordering::Relaxed);
        status
    }
}

impl L1 {
    /// Ends every wait: the cache closes.
    pub fn stop_waiting(&self) {
        self.freed.over.store(true, Ordering::Release);
        *self.freed.turn.lock() += 1;
        self.freed.changed.notify_all();
    }
}

impl State {
    /// Whether what is committed is written to L2 sooner or later, whoever uses it.
    pub(super) fn writes_what_is_stored(&self) -> bool {
        self.has_l2 && matches!(self.config.store_mode, StoreMode::WriteThrough | StoreMode::WriteBack)
    }

    /// Whether memory becomes free for an object of so many bytes without any caller's doing: by writes, and by copies, which are
    /// written when they have landed.
    fn room_is_coming(&mut self, session: u64, size: u64) -> bool {
        let Ok(index) = self.sessions.index(session) else { return false };
        let quota = self.spaces[self.sessions.at_mut(index).space as usize].quota;
        if !self.writes_what_is_stored() || size > self.alloc.capacity() || quota > 0 && size > quota {
            return false;
        }
        let writes_back = self.config.store_mode == StoreMode::WriteBack;
        if writes_back && !self.parked.is_empty() && self.above(self.config.low_percent, 0) {
            // Background eviction has them written.
            self.wakes |= WAKE_ROOM;
            return true;
        }
        self.slots.busy() > 0 || !self.writes.is_empty() || self.copies_hold()
    }

    /// Whether one more object of a session can be queued to be written beside those that it stages. Where none waits there is room: what
    /// is more than may wait at all is no reason to wait.
    pub(super) fn writes_have_room_for(&mut self, session: u32) -> bool {
        let staged = self.sessions.at_mut(session).staged.len() as u64;
        self.writes_waiting == 0 || self.writes_waiting + staged < u64::from(self.config.writes_max)
    }

    fn copies_hold(&self) -> bool {
        self.sessions.live().any(|(_, session)| session.user != 0 && (session.shares > 0 || !session.staged.is_empty()))
    }
}
