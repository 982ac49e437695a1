//! The host-memory tier: objects by key, their shares, the sessions that hold them, and the room they take.
//!
//! All of it is one [`State`] behind one lock, held for a batch at a time: that is what makes a batch atomic (P11). Nothing
//! under the lock does I/O, waits, or calls out. When calls meet, those that read share it (`beside.rs`).

pub mod alloc;
mod cleared;
mod counters;
mod detail;
pub mod evict;
mod holders;
mod keep;
mod lookup;
pub mod memory_wait;
mod query;
mod recency;
pub mod report;
mod session;
mod shapes;
mod share;
mod shared_read;
mod shortage;
mod single;
pub mod slot;
mod space;
pub mod staged_bytes;
mod tier_io;
pub mod tier_notes;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rustix::time::{ClockId, clock_gettime};

use self::counters::Tally;
pub use self::counters::{Counts, Gauges};
use self::holders::Holds;
use self::memory_wait::{Freed, Spared};
use self::recency::Touched;
use self::shared_read::Crowd;
use self::staged_bytes::Writers;
pub use self::tier_io::{Landed, Write};
use crate::arena::Arena;
use crate::config::StoreMode;
use crate::error::{Error, KVKEEP_OK, Result, Status};
use crate::events::{Event, EventKind, Events};
use crate::fingerprint::Fingerprinter;
use crate::key::SpaceTag;
use crate::policy::{EvictionPolicy, Removal};
use crate::slot_table::Table;
use alloc::Alloc;
use session::Sessions;
use shapes::Shapes;
use slot::{NOBODY, Ref, Slots, USES_MAX};
use space::new_pool;

/// Longest pause between two looks at the lock before sleeping: all pauses together are some tens of microseconds.
const PAUSES_MAX: u32 = 512;

/// A batch takes a microsecond and waking a sleeper takes tens of them, so spinning comes before sleeping. The pauses between
/// two looks grow, so that whoever has the state in its core's cache may make several calls before it moves.
fn patiently<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let mut pauses = 1;
    while pauses <= PAUSES_MAX {
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        if let Some(found) = look() {
            return Some(found);
        }
        pauses *= 2;
    }
    None
}

/// The coarse monotonic clock: read without a system call in a few nanoseconds, which matters once a call.
fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Something a background thread should look at, or'ed.
pub type Wakes = u8;
/// Objects wait to be written to L2.
pub const WAKE_WRITES: Wakes = 1;
/// L1 is above its high watermark.
pub const WAKE_ROOM: Wakes = 2;
/// An object was committed while somebody waits for one.
pub const WAKE_COMMITS: Wakes = 4;
/// Objects were used that backends have: noted, nobody is woken for it.
const WAKE_USES: Wakes = 8;
/// Memory may be had that was in use, or was still to be written.
pub(crate) const WAKE_FREED: Wakes = 16;

/// What L1 is made from.
pub struct L1Config {
    /// Eviction policy, by name.
    pub policy: String,
    /// Background eviction starts above so many percent …
    pub high_percent: u32,
    /// … and stops at so many.
    pub low_percent: u32,
    /// When committed objects are queued to be written.
    pub store_mode: StoreMode,
    /// Most objects queued.
    pub writes_max: u32,
    /// Most sessions.
    pub sessions_max: u32,
    /// Upper 16 bits of the sessions' numbers.
    pub boot: u16,
}

impl L1Config {
    /// Refuses what a slot has no bits for.
    fn check(&self) -> Result<()> {
        if self.sessions_max > NOBODY {
            let most = self.sessions_max;
            return Err(Error::invalid(format!(
                "sessions_max is {most}, more than {NOBODY}: allow fewer live sessions"
            )));
        }
        match self.store_mode {
            StoreMode::AfterUses(uses) if uses > USES_MAX => Err(Error::invalid(format!(
                "store_after_uses is {uses}, more than {USES_MAX}: have objects written after fewer"
            ))),
            _ => Ok(()),
        }
    }
}

struct Space {
    tag: SpaceTag,
    layout: [u8; 16],
    chunk_tokens: u32,
    quota: u64,
    /// Bytes of its objects, staged, ready or hidden: what the quota bounds.
    used: u64,
    ready: u64,
    pool: usize,
}

/// Objects that compete for room: those of all spaces without a quota, or those of one space with one.
struct Pool {
    /// Calls that run side by side lock it to touch what they read.
    policy: Mutex<Box<dyn EvictionPolicy>>,
    bytes: u64,
}

pub(crate) struct State {
    arena: Arc<Arena>,
    fingerprinter: Fingerprinter,
    table: Table,
    slots: Slots,
    holds: Holds,
    alloc: Alloc,
    spaces: Vec<Space>,
    /// By the numbers that callers know.
    by_number: HashMap<u64, u32>,
    shapes: Shapes,
    pools: Vec<Pool>,
    sessions: Sessions,
    writers: Writers,
    config: L1Config,
    has_l2: bool,
    writes: VecDeque<Ref>,
    /// Objects that were taken out of the table since `writes` was looked through, and stood there or were being written.
    writes_gone: usize,
    /// Objects that wait in `writes` and are still there.
    writes_waiting: u64,
    parked: VecDeque<Ref>,
    uses: tier_notes::Uses,
    hidden_writes: tier_notes::HiddenWrites,
    /// Of the parked objects, those that leave once they are written.
    leaving_bytes: u64,
    /// What the call that has the state now does not evict.
    spared: Spared,
    tally: Tally,
    touched: Touched,
    /// Committed by the call that has the state now; no policy knows of them yet.
    unranked: Vec<u32>,
    ready: u64,
    /// Objects out of the table whose memory is still in use.
    hidden: u64,
    staged: u64,
    counts: Counts,
    events: Arc<Events>,
    now_ms: u64,
    /// No session is due to be reclaimed before.
    reclaim_ms: u64,
    /// Sessions reclaimed of which the floors above were not told yet.
    reclaimed: Vec<u64>,
    wakes: Wakes,
    /// Passes made over sessions' objects.
    passes: u32,
}

/// The tier. Every method may be called from any thread; none blocks.
pub struct L1 {
    state: RwLock<State>,
    fingerprinter: Fingerprinter,
    arena: Arc<Arena>,
    events: Arc<Events>,
    began_ms: u64,
    crowd: Crowd,
    waker: OnceCell<Box<dyn Fn(Wakes) + Send + Sync>>,
    /// Objects were used that backends have.
    uses_noted: AtomicBool,
    /// How many wait for commits.
    awaiting: AtomicU32,
    freed: Freed,
    me: std::sync::Weak<L1>,
    /// What a test says the clock shows, if not 0.
    #[cfg(test)]
    set_ms: std::sync::atomic::AtomicU64,
}

/// What a batch call says per key: written to the caller's array if there is one.
pub struct Outcome<'a> {
    statuses: Option<&'a mut [i32]>,
    all_ok: bool,
}

impl<'a> Outcome<'a> {
    /// Nothing said yet.
    pub fn new(statuses: Option<&'a mut [i32]>) -> Outcome<'a> {
        Outcome { statuses, all_ok: true }
    }

    /// Says what became of one key.
    pub fn set(&mut self, index: usize, status: Status) {
        self.all_ok &= status == KVKEEP_OK;
        if let Some(statuses) = &mut self.statuses {
            statuses[index] = status as i32;
        }
    }

    /// Whether every key is OK.
    pub fn all_ok(&self) -> bool {
        self.all_ok
    }
}

/// A space, for the floors above.
#[derive(Clone, Copy, Debug)]
pub struct SpaceInfo {
    /// Its index.
    pub index: u32,
    /// Its tag.
    pub tag: SpaceTag,
    /// The tag of its layout.
    pub layout: [u8; 16],
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}

impl L1 {
    /// An empty tier over `arena`. The policy's name must be known.
    pub fn new(arena: Arc<Arena>, config: L1Config) -> Result<Arc<L1>> {
        config.check()?;
        let pool = new_pool(&config.policy)?;
        let alloc = Alloc::new(arena.bytes() as u64);
        let sessions = Sessions::new(config.sessions_max, config.boot);
        let fingerprinter = Fingerprinter::of_process();
        let events = Arc::<Events>::default();
        let state = State {
            arena: arena.clone(),
            fingerprinter: fingerprinter.clone(),
            table: Table::new(),
            slots: Slots::new(),
            holds: Holds::default(),
            alloc,
            spaces: Vec::new(),
            by_number: HashMap::new(),
            shapes: Shapes::default(),
            pools: vec![pool],
            sessions,
            writers: Writers::default(),
            config,
            has_l2: false,
            writes: VecDeque::new(),
            writes_gone: 0,
            writes_waiting: 0,
            parked: VecDeque::new(),
            uses: VecDeque::new(),
            hidden_writes: tier_notes::HiddenWrites::default(),
            leaving_bytes: 0,
            spared: Spared::Nothing,
            tally: Tally::default(),
            touched: Touched::default(),
            unranked: Vec::new(),
            ready: 0,
            hidden: 0,
            staged: 0,
            counts: Counts::default(),
            events: events.clone(),
            now_ms: 0,
            reclaim_ms: u64::MAX,
            reclaimed: Vec::new(),
            wakes: 0,
            passes: 0,
        };
        Ok(Arc::new_cyclic(|me| L1 {
            state: RwLock::new(state),
            fingerprinter,
            arena,
            events,
            began_ms: coarse_ms(),
            crowd: Crowd::default(),
            waker: OnceCell::new(),
            uses_noted: AtomicBool::new(false),
            awaiting: AtomicU32::new(0),
            freed: Freed::default(),
            me: me.clone(),
            #[cfg(test)]
            set_ms: Default::default(),
        }))
    }

    /// Whom to tell when a background thread has something to do. Set once.
    pub fn set_waker(&self, waker: impl Fn(Wakes) + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut State) -> R) -> R {
        self.with_at(self.now_ms(), body)
    }

    fn with_at<R>(&self, now_ms: u64, body: impl FnOnce(&mut State) -> R) -> R {
        self.run(self.lock(now_ms), now_ms, body)
    }

    /// As [`with`](L1::with), for a background thread whose work can wait: `None` if callers keep the state to themselves. Whoever sleeps
    /// for it would have to be woken by one of them.
    fn with_leave<R>(&self, body: impl FnOnce(&mut State) -> R) -> Option<R> {
        let look = || self.state.try_write();
        let state = look().or_else(|| patiently(look))?;
        Some(self.run(state, self.now_ms(), body))
    }

    fn run<R>(&self, mut state: RwLockWriteGuard<State>, now_ms: u64, body: impl FnOnce(&mut State) -> R) -> R {
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
            self.freed.tell();
        }
        if wakes != 0
            && let Some(waker) = self.waker.get()
        {
            waker(wakes);
        }
        result
    }

    /// The state for one call alone. A call that has to wait says so to those that read.
    fn lock(&self, now_ms: u64) -> RwLockWriteGuard<'_, State> {
        if let Some(state) = self.state.try_write() {
            return state;
        }
        self.crowd.met(now_ms);
        patiently(|| self.state.try_write()).unwrap_or_else(|| self.state.write())
    }

    /// The cache's clock: milliseconds since it was opened, a few coarse.
    pub fn now_ms(&self) -> u64 {
        #[cfg(test)]
        if let set @ 1.. = self.set_ms.load(Ordering::Relaxed) {
            return set;
        }
        coarse_ms() - self.began_ms
    }

    /// The memory behind it.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// What became of objects, here and in the backends.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
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

    /// Whether there is an L2 to write to.
    pub fn set_has_l2(&self, has_l2: bool) {
        self.with(|state| state.has_l2 = has_l2);
    }

    /// Begins a session for a process.
    pub fn begin_session(&self, space: u64, owner_pid: u32, request_id: &str, timeout: Duration) -> Result<u64> {
        self.with(|state| {
            let space = state.space_index(space)?;
            if state.sessions.full() {
                state.reclaim_oldest();
            }
            let session = state.sessions.begin(space, owner_pid, request_id, timeout, state.now_ms)?;
            state.reclaim_ms = state.reclaim_ms.min(state.now_ms + timeout.as_millis() as u64 + 1);
            Ok(session)
        })
    }

    /// Ends a session: returns its shares, drops its staging and, if `touch`, touches what it used, last used first.
    pub fn end_session(&self, session: u64, touch: bool) -> Result<()> {
        self.with(|state| {
            let index = state.sessions.index(session)?;
            if !touch {
                state.sessions.mark_aborted(index);
            }
            state.end(index, touch, false);
            Ok(())
        })
    }

    /// Counts those who wait for commits. Whoever looks here after he was counted sees what was committed before, and is told of
    /// what is committed later: the lock puts one before the other.
    pub fn await_commits(&self, begun: bool) {
        if begun {
            self.awaiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.awaiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts one more job of a session that is not done. Gives the session's space, how long it may be idle, and the session
    /// that it copies for, if it does.
    pub fn begin_job(&self, session: u64) -> Result<(SpaceInfo, Duration, Option<u64>)> {
        self.with(|state| {
            let (_, session) = state.sessions.use_now(session, state.now_ms)?;
            session.jobs += 1;
            let (space, timeout, user) = (session.space, Duration::from_millis(session.timeout_ms), session.user);
            Ok((state.space_info(space), timeout, (user != 0).then_some(user)))
        })
    }

    /// One job of a session is done. A session that is gone has none to count.
    pub fn end_job(&self, session: u64) {
        self.with(|state| {
            if let Ok((_, session)) = state.sessions.use_now(session, state.now_ms) {
                session.jobs = session.jobs.saturating_sub(1);
            }
        });
    }
}

impl State {
    fn record(&self, kind: EventKind, id: u32) {
        self.events.record_l1(kind, || {
            let slot = &self.slots[id];
            (self.spaces[self.slots.space(id) as usize].tag, *self.slots.key(id), slot.size())
        });
    }

    /// Whether the memory of a slot became free to evict, or was taken into use: call after each change, with what it was.
    #[inline]
    fn relock(&mut self, id: u32, was_locked: bool) {
        let slot = &self.slots[id];
        match (was_locked, slot.locked()) {
            (false, true) => self.tally.lock(slot.size()),
            (true, false) => self.tally.unlock(slot.size()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
