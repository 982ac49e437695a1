//! L1 itself: its lock, its clock, and the threads it wakes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};

use super::freed_memory::FreedMemory;
use super::spin::spin;
use super::state::{L1Config, L1State};
use super::wakes::{WAKE_COMMITS, WAKE_FREED, WAKE_USES, Wakes};
use crate::arena::Arena;
use crate::error::Result;
use crate::events::{Event, Events};
use crate::fingerprint::Fingerprinter;
use crate::misses::MissedKeys;

/// The coarse monotonic clock: read without a system call in a few nanoseconds, which matters once a call.
fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The tier. Every method may be called from any thread. None blocks but `reserve_waiting`.
pub struct L1 {
    pub(super) state: Mutex<L1State>,
    pub(super) fingerprinter: Fingerprinter,
    arena: Arc<Arena>,
    events: Arc<Events>,
    misses: Arc<MissedKeys>,
    began_ms: u64,
    waker: OnceCell<Box<dyn Fn(Wakes) + Send + Sync>>,
    /// Objects were used that backends have.
    pub(super) uses_noted: AtomicBool,
    /// How many wait for commits.
    awaiting: AtomicU32,
    pub(super) freed: FreedMemory,
    me: Weak<L1>,
    /// The time that a test has the clock show, if not 0.
    #[cfg(test)]
    pub(super) set_ms: std::sync::atomic::AtomicU64,
}

impl L1 {
    /// An empty tier over `arena`. The policy's name must be known.
    pub fn new(arena: Arc<Arena>, config: L1Config) -> Result<Arc<L1>> {
        config.check()?;
        let fingerprinter = Fingerprinter::of_process();
        let events = Arc::<Events>::default();
        let misses = Arc::new(MissedKeys::new(fingerprinter.clone(), arena.bytes() as u64));
        let state = L1State::new(arena.clone(), config, fingerprinter.clone(), events.clone(), misses.clone())?;
        Ok(Arc::new_cyclic(|me| L1 {
            state: Mutex::new(state),
            fingerprinter,
            arena,
            events,
            misses,
            began_ms: coarse_ms(),
            waker: OnceCell::new(),
            uses_noted: AtomicBool::new(false),
            awaiting: AtomicU32::new(0),
            freed: FreedMemory::default(),
            me: me.clone(),
            #[cfg(test)]
            set_ms: Default::default(),
        }))
    }

    /// Sets the function that wakes background threads, which L1 calls without its lock. Set once.
    pub fn set_waker(&self, waker: impl Fn(Wakes) + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    /// Runs `body` under the lock, and wakes threads after it.
    pub(super) fn with<R>(&self, body: impl FnOnce(&mut L1State) -> R) -> R {
        let now_ms = self.now_ms();
        self.run(self.lock(), now_ms, body)
    }

    /// As [`with`](L1::with), for a background thread whose work can wait: `None` if callers keep the state to themselves. One of
    /// them would have to wake a thread that sleeps for it.
    pub(super) fn with_if_free<R>(&self, body: impl FnOnce(&mut L1State) -> R) -> Option<R> {
        let look = || self.state.try_lock();
        let state = look().or_else(|| spin(look))?;
        Some(self.run(state, self.now_ms(), body))
    }

    fn run<R>(&self, mut state: MutexGuard<L1State>, now_ms: u64, body: impl FnOnce(&mut L1State) -> R) -> R {
        state.now_ms = state.now_ms.max(now_ms);
        let result = body(&mut state);
        let mut wakes = std::mem::take(&mut state.wakes);
        drop(state);
        if wakes & WAKE_USES != 0 {
            self.uses_noted.store(true, Ordering::Release);
            wakes &= !WAKE_USES;
        }
        if wakes & WAKE_COMMITS != 0 && self.awaiting.load(Ordering::Relaxed) == 0 {
            wakes &= !WAKE_COMMITS;
        }
        if wakes & WAKE_FREED != 0 {
            wakes &= !WAKE_FREED;
            self.freed.notify();
        }
        if wakes != 0
            && let Some(waker) = self.waker.get()
        {
            waker(wakes);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, L1State> {
        let look = || self.state.try_lock();
        look().or_else(|| spin(look)).unwrap_or_else(|| self.state.lock())
    }

    /// The cache's clock: milliseconds since it was opened, a few coarse.
    pub fn now_ms(&self) -> u64 {
        #[cfg(test)]
        if let set @ 1.. = self.set_ms.load(Ordering::Relaxed) {
            return set;
        }
        coarse_ms() - self.began_ms
    }

    /// This tier, unless it is being dropped.
    pub(super) fn upgrade(&self) -> Option<Arc<L1>> {
        self.me.upgrade()
    }

    /// The memory behind it.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The record of objects that came and went, here and in the backends.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The memory of what became of objects that left it or the backends.
    pub fn misses(&self) -> &Arc<MissedKeys> {
        &self.misses
    }

    /// Copies events as [`Events::drain`] does. They are kept from the first call on: begun under the lock, so that no event of L1 falls
    /// between those that are only counted and those that are kept.
    pub fn read_events(&self, next: &mut u64, events: &mut [Event]) -> Result<usize> {
        self.keep_events()?;
        self.events.drain(next, events)
    }

    /// Keeps events from the first call on.
    pub fn keep_events(&self) -> Result<()> {
        if self.events.are_kept() { Ok(()) } else { self.with(|_| self.events.keep()) }
    }

    /// Sets whether there is an L2 to write to. Without one, no object is queued to be written.
    pub fn set_has_l2(&self, has_l2: bool) {
        self.with(|state| state.has_l2 = has_l2);
    }

    /// Whether uses are noted of objects that no backend has, too.
    pub fn set_notes_all_uses(&self, notes_all: bool) {
        self.with(|state| state.notes_all_uses = notes_all);
    }

    /// Counts the jobs that wait for commits: `begun` for one more, else one fewer. A job that looks here after it was counted sees
    /// the commits of before, and is woken for later ones: the lock puts one before the other.
    pub fn await_commits(&self, begun: bool) {
        if begun {
            self.awaiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.awaiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
