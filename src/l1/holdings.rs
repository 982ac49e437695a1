//! What sessions hold of L1: the sums of each, its keys for those who ask for one, and the holder of most memory.

use hashbrown::HashSet;
use serde::Serialize;

use super::inspect::shared_for;
use super::pending_writes;
use super::session::sessions::Session;
use super::slot::{DETACHED, QUEUED, Ref, WRITING};
use super::state::L1State;
use super::tier::L1;
use crate::error::{Error, Result};

/// Objects of a session looked at under one lock.
const SLICE: usize = 1024;
/// Slots looked at under one lock.
const SLOT_SLICE: usize = 4096;

/// One session and the sums of its hold on L1.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The number of the session.
    pub session: u64,
    /// The name of its request.
    pub request_id: String,
    /// Process that opened it.
    pub owner_pid: u32,
    /// The number of its space.
    pub space: u64,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds since it was used last.
    pub idle_ms: u64,
    /// Milliseconds until its deadline, negative past it.
    pub expires_in_ms: i64,
    /// Bytes of L1 that it holds: of objects that it has shares of, which others may share, and of what it stages.
    pub bytes: u64,
    /// Objects that it has shares of, and those that it stages.
    pub keys: u64,
    /// Objects that it stages.
    pub staged_keys: u64,
    /// Milliseconds since the first of the present shares of an object that it holds was taken, of the object that is shared longest.
    pub shared_for_ms: u64,
    /// Shares that it holds of all keys together.
    pub shares: u64,
    /// Jobs of it that are not done.
    pub jobs_running: u32,
}

/// The holdings of all sessions.
#[derive(Serialize, Debug)]
pub struct HolderSums {
    /// Sessions that hold something.
    pub holding: u64,
    /// The sum of their bytes. Objects that several share count once for each.
    pub held_bytes: u64,
    /// The longest `shared_for_ms` of all.
    pub shared_for_ms: u64,
    /// Those with most bytes, the first one first.
    pub sessions: Vec<Holding>,
}

/// One session and the keys that it holds.
#[derive(Serialize, Debug)]
pub struct SessionReport {
    /// The session and its sums.
    #[serde(flatten)]
    pub holding: Holding,
    /// Keys it holds shares of, with how many.
    pub held: Vec<(String, u32)>,
    /// Keys of which it holds shares of a detached copy, with how many.
    pub held_of_cleared: Vec<(String, u32)>,
    /// Keys that it stages.
    pub staged: Vec<String>,
}

/// Sums over the objects that a session has shares of, each counted once.
#[derive(Default)]
struct Shared {
    seen: HashSet<Ref>,
    bytes: u64,
    shared_for_ms: u64,
}

impl Shared {
    /// Adds those of `used`, and calls `held` with the slot and the shares of each that is new.
    fn add(&mut self, state: &L1State, index: u32, used: &[Ref], mut held: impl FnMut(u32, u32)) {
        for &name in used {
            if state.slots.find(name).is_none() {
                continue;
            }
            let shares = state.shares_of(index, name.slot);
            if shares > 0 && self.seen.insert(name) {
                let slot = &state.slots[name.slot];
                self.bytes += slot.size();
                self.shared_for_ms = self.shared_for_ms.max(shared_for(state, slot));
                held(name.slot, shares);
            }
        }
    }

    fn holding(&self, state: &L1State, session: &Session) -> Holding {
        let staged: u64 = session.staged.iter().map(|staged| state.slots[staged.id].size()).sum();
        let used_ms = session.deadline_ms.saturating_sub(session.timeout_ms).max(session.began_ms);
        let staged_keys = session.staged.len() as u64;
        Holding {
            session: session.id,
            request_id: session.request_id.to_string(),
            owner_pid: session.owner_pid,
            space: state.spaces[session.space as usize].tag.number(),
            age_ms: state.now_ms - session.began_ms,
            idle_ms: state.now_ms.saturating_sub(used_ms),
            expires_in_ms: session.deadline_ms as i64 - state.now_ms as i64,
            bytes: self.bytes + staged,
            keys: self.seen.len() as u64 + staged_keys,
            staged_keys,
            shared_for_ms: self.shared_for_ms,
            shares: session.shares,
            jobs_running: session.jobs,
        }
    }
}

/// The sums of a session; none if it ended. Looked at a slice at a time, so that no call waits for it long.
fn holding(l1: &L1, session: u64) -> Option<Holding> {
    let (mut shared, mut first) = (Shared::default(), 0);
    loop {
        let whole = l1.with(|state| {
            let index = state.sessions.index(session).ok()?;
            let session = state.sessions.at(index);
            let end = session.used.len().min(first + SLICE);
            shared.add(state, index, session.used.get(first..end).unwrap_or_default(), |_, _| {});
            first += SLICE;
            Some((first >= session.used.len()).then(|| shared.holding(state, session)))
        })?;
        if whole.is_some() {
            return whole;
        }
    }
}

fn report(l1: &L1, session: u64) -> Result<SessionReport> {
    l1.with(|state| {
        let index = state.sessions.index(session)?;
        let session = state.sessions.at(index);
        let (mut held, mut held_of_cleared) = (Vec::new(), Vec::new());
        let mut shared = Shared::default();
        shared.add(state, index, &session.used, |id, shares| {
            let list = if state.slots[id].is(DETACHED) { &mut held_of_cleared } else { &mut held };
            list.push((state.slots.key(id).to_string(), shares));
        });
        let staged = session.staged.iter().map(|staged| state.slots.key(staged.id).to_string()).collect();
        Ok(SessionReport { holding: shared.holding(state, session), held, held_of_cleared, staged })
    })
}

/// The sessions that hold something and pass `also`.
fn holders(state: &L1State, also: impl Fn(&Session) -> bool) -> Vec<u64> {
    let holding = |session: &Session| !session.idle() && also(session);
    state.sessions.live().filter(|(_, session)| holding(session)).map(|(_, session)| session.id).collect()
}

pub(super) fn explain_sessions(l1: &L1, session: Option<u64>) -> Result<Vec<SessionReport>> {
    if let Some(session) = session {
        return Ok(vec![report(l1, session)?]);
    }
    // One that ended meanwhile holds nothing.
    let holding = l1.with(|state| holders(state, |_| true));
    let mut reports: Vec<SessionReport> = holding.into_iter().filter_map(|session| report(l1, session).ok()).collect();
    reports.sort_by_key(|report| std::cmp::Reverse(report.holding.bytes));
    Ok(reports)
}

pub(super) fn holdings(l1: &L1, most: usize) -> HolderSums {
    let holding_now = l1.with(|state| holders(state, |_| true));
    let mut sessions: Vec<Holding> = holding_now.into_iter().filter_map(|session| holding(l1, session)).collect();
    sessions.sort_by_key(|holding| std::cmp::Reverse(holding.bytes));
    let (holding, held_bytes) = (sessions.len() as u64, sessions.iter().map(|holding| holding.bytes).sum());
    let shared_for_ms = sessions.iter().map(|holding| holding.shared_for_ms).max().unwrap_or(0);
    sessions.truncate(most);
    HolderSums { holding, held_bytes, shared_for_ms, sessions }
}

pub(super) fn largest_holder(l1: &L1, session: u64, of_space: bool) -> Result<String> {
    let (whole, sessions) = l1.with(|state| {
        let index = state.sessions.index(session)?;
        let &mut Session { space, user, .. } = state.sessions.at_mut(index);
        let copies = user != 0;
        let quota = state.spaces[space as usize].quota;
        let whole = if of_space { quota } else { state.alloc.capacity() };
        // A copy is not in its own way with its earlier staging.
        let in_the_way = |other: &Session| (!of_space || other.space == space) && !(copies && other.id == session);
        Ok::<_, Error>((whole, holders(state, in_the_way)))
    })?;
    let holdings: Vec<Holding> = sessions.iter().filter_map(|session| holding(l1, *session)).collect();
    let in_use = l1.with(|state| state.in_use.locked_bytes);
    let moving = in_use.saturating_sub(holdings.iter().map(|holding| holding.bytes).sum());
    let moving = if of_space { 0 } else { moving };
    let largest = holdings.into_iter().max_by_key(|holding| holding.bytes).filter(|holding| holding.bytes > 0);
    let (whole_name, larger) = if of_space { ("the quota", "raise the quota") } else { ("L1", "make L1 larger") };
    let percent = |bytes: u64| u128::from(bytes) * 100 / u128::from(whole.max(1));
    // Cause and remedy first: the message of a completion has room for no more.
    Ok(match largest {
        Some(Holding { session, request_id, owner_pid, bytes, .. }) if bytes >= moving => format!(
            "session {session} holds {} % of {whole_name}: return its shares or end it, or {larger} ({request_id:?}, pid \
             {owner_pid}, has {bytes} of {whole} bytes, shares and writes together)",
            percent(bytes)
        ),
        _ if !l1.with(|state| pending_writes::stores_everything(state)) => format!(
            "{whole_name} is full, and no backend is given what is stored: add one, or {larger} ({whole} bytes)"
        ),
        _ if moving > 0 => format!(
            "writes and copies under way hold {} % of {whole_name}: try again when they end, or {larger} ({moving} of {whole} \
             bytes)",
            percent(moving)
        ),
        _ => format!("no object of this size fits into the {whole} bytes of {whole_name}: {larger}"),
    })
}

/// When the first of the present shares of the object was taken that is shared longest, by the cache's clock. Slots are looked at a slice
/// at a time, so that no call waits for it long.
pub(super) fn oldest_share(l1: &L1) -> Option<u64> {
    let slots = l1.with(|state| if state.in_use.shares == 0 { 0 } else { state.slots.count() });
    let slices = (0..slots).step_by(SLOT_SLICE).map(|first| {
        l1.with(|state| {
            let live = state.slots.live_among(first..first + SLOT_SLICE as u32);
            let shared = live.filter(|(id, slot)| slot.locked() && state.slots.shares(*id) > 0);
            let age = shared.map(|(_, slot)| shared_for(state, slot)).max()?;
            Some(state.now_ms.saturating_sub(age))
        })
    });
    slices.flatten().min()
}

/// When the oldest object that waits in the queue for the writer was queued, by the cache's clock.
pub(super) fn oldest_queued(l1: &L1) -> Option<u64> {
    l1.with(|state| {
        let waits = |name: Ref| {
            let slot = state.slots.find(name);
            slot.is_some_and(|slot| slot.is(QUEUED) && !slot.has(DETACHED | WRITING))
        };
        state.writes.iter().find(|(name, _)| waits(*name)).map(|(_, since_ms)| *since_ms)
    })
}
