//! What L1 says of itself to people: who holds what, since when, and why a key cannot be evicted (P12).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hashbrown::HashSet;
use serde::Serialize;

use super::session::Session;
use super::slot::{GIVEN_UP, HIDDEN, NOBODY, QUEUED, STAGING, STORED, TEMPORARY};
use super::{L1, State};
use crate::error::Result;
use crate::key::Key;

/// Slots looked at under one lock.
const SLICE: usize = 4096;

/// One session's hold on an object.
#[derive(Serialize, Debug)]
pub struct HolderReport {
    /// The session.
    pub session: u64,
    /// Its request.
    pub request_id: String,
    /// Process that opened it.
    pub owner_pid: u32,
    /// Shares it holds.
    pub shares: u32,
    /// Whether they may be taken under pressure, because its deadline passed.
    pub revocable: bool,
}

/// One object, or one staging of it.
#[derive(Serialize, Debug)]
pub struct ObjectReport {
    /// The key.
    pub key: String,
    /// "absent", "staging", "ready" or "hidden".
    pub state: &'static str,
    /// Bytes.
    pub bytes: u64,
    /// All shares.
    pub shares: u32,
    /// Transfers running on its bytes.
    pub transfers: u32,
    /// Milliseconds since the first of the present shares was taken.
    pub shared_for_ms: u64,
    /// Times it was read.
    pub uses: u32,
    /// Dropped with its last share.
    pub temporary: bool,
    /// A backend has it, as far as L1 knows.
    pub written: bool,
    /// Writing it was given up.
    pub write_given_up: bool,
    /// Waiting to be written.
    pub write_pending: bool,
    /// Live retention priority.
    pub retention_priority: u8,
    /// Who holds it.
    pub holders: Vec<HolderReport>,
    /// Why it cannot be evicted now; empty if it can.
    pub unevictable_because: Vec<String>,
}

/// One session.
#[derive(Serialize, Debug)]
pub struct SessionReport {
    /// Its number.
    pub session: u64,
    /// Its request.
    pub request_id: String,
    /// Process that opened it.
    pub owner_pid: u32,
    /// Its space.
    pub space: u64,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds until its deadline, negative past it.
    pub expires_in_ms: i64,
    /// Shares it holds.
    pub shares: u64,
    /// Keys it holds shares of, with how many.
    pub held: Vec<(String, u32)>,
    /// Keys of which it holds shares of a copy that was cleared meanwhile and nobody else finds, with how many.
    pub held_of_cleared: Vec<(String, u32)>,
    /// Keys it stages.
    pub staged: Vec<String>,
    /// Jobs not done.
    pub jobs: u32,
}

impl L1 {
    /// What is known of a key; more than one report if it is staged too. It is looked for slot by slot, a slice at a time, so
    /// that nobody waits for it, and then in the table, where it may have come meanwhile.
    pub fn explain_key(&self, space: u64, key: &Key) -> Result<Vec<ObjectReport>> {
        let (space, slots) = self.with(|state| Ok((state.space_index(space)?, state.slots.count())))?;
        let fingerprint = self.fingerprinter.fingerprint(key).within(space);
        let mut by_slot = BTreeMap::new();
        for first in (0..slots).step_by(SLICE) {
            self.with(|state| {
                let slice = state.slots.live_among(first..first + SLICE as u32);
                let its = slice.filter(|(_, slot)| slot.is_of(fingerprint));
                by_slot.extend(its.map(|(id, _)| (id, state.object_report(id))));
            });
        }
        self.with(|state| {
            by_slot.extend(state.find_fingerprint(fingerprint).map(|id| (id, state.object_report(id))));
        });
        let mut reports: Vec<ObjectReport> = by_slot.into_values().collect();
        reports.sort_by_key(|report| ["ready", "hidden", "staging"].iter().position(|state| *state == report.state));
        Ok(reports)
    }

    /// What a session holds; all sessions that hold something for `None`, one after another.
    pub fn explain_sessions(&self, session: Option<u64>) -> Result<Vec<SessionReport>> {
        let report = |id| {
            self.with(|state| {
                let index = state.sessions.index(id)?;
                Ok(state.session_report(index, &state.sessions.at(index)))
            })
        };
        if let Some(session) = session {
            return Ok(vec![report(session)?]);
        }
        let holding: Vec<u64> = self.with(|state| {
            state.sessions.live().filter(|(_, session)| !session.idle()).map(|(_, session)| session.id).collect()
        });
        // One that ended meanwhile holds nothing.
        Ok(holding.into_iter().filter_map(|session| report(session).ok()).collect())
    }
}

impl State {
    fn holder_report(&self, index: u32, shares: u32) -> HolderReport {
        let session = self.sessions.at(index);
        HolderReport {
            session: session.id,
            request_id: session.request_id.to_string(),
            owner_pid: session.owner_pid,
            shares,
            revocable: session.is_expired(self.now_ms),
        }
    }

    fn object_report(&self, id: u32) -> ObjectReport {
        let slot = &self.slots[id];
        let (staging, shares, transfers) = (slot.is(STAGING), self.slots.shares(id), self.slots.transfers(id));
        let mut holders = Vec::new();
        let (holder, held) = slot.holder();
        if holder != NOBODY && (held > 0 || staging) {
            holders.push(self.holder_report(holder, held));
        }
        holders.extend(self.holds.iter(&self.slots, id).map(|(index, shares)| self.holder_report(index, shares)));
        let mut because = Vec::new();
        for holder in holders.iter().filter(|holder| staging || !holder.revocable) {
            let what = if staging { "stages it".to_owned() } else { format!("holds {} share(s)", holder.shares) };
            because.push(format!(
                "session {} (\"{}\", pid {}) {what}",
                holder.session, holder.request_id, holder.owner_pid
            ));
        }
        if transfers > 0 {
            because.push(format!("{transfers} transfer(s) run on its bytes"));
        }
        ObjectReport {
            key: self.slots.key(id).to_string(),
            state: match (slot.is(HIDDEN), staging) {
                (true, _) => "hidden",
                (_, true) => "staging",
                _ => "ready",
            },
            bytes: slot.size(),
            shares,
            transfers,
            shared_for_ms: if shares > 0 {
                u64::from((self.now_ms as u32).wrapping_sub(slot.since_ms.load(Ordering::Relaxed)))
            } else {
                0
            },
            uses: slot.uses(),
            temporary: slot.is(TEMPORARY),
            written: slot.is(STORED),
            write_given_up: slot.is(GIVEN_UP) && !slot.is(QUEUED),
            write_pending: slot.is(QUEUED),
            retention_priority: self.slots.meta(id, self.now_ms).priority,
            holders,
            unevictable_because: because,
        }
    }

    fn session_report(&self, index: u32, session: &Session) -> SessionReport {
        let mut seen = HashSet::new();
        let (mut held, mut held_of_cleared) = (Vec::<(String, u32)>::new(), Vec::new());
        for &name in &session.used {
            if self.slots.find(name).is_none() {
                continue;
            }
            let shares = self.shares_of(index, name.slot);
            if shares > 0 && seen.insert(name) {
                let list = if self.slots[name.slot].is(HIDDEN) { &mut held_of_cleared } else { &mut held };
                list.push((self.slots.key(name.slot).to_string(), shares));
            }
        }
        SessionReport {
            session: session.id,
            request_id: session.request_id.to_string(),
            owner_pid: session.owner_pid,
            space: self.spaces[session.space as usize].tag.number(),
            age_ms: self.now_ms - session.began_ms,
            expires_in_ms: session.deadline_ms as i64 - self.now_ms as i64,
            shares: session.shares,
            held,
            held_of_cleared,
            staged: session.staged.iter().map(|staged| self.slots.key(staged.id).to_string()).collect(),
            jobs: session.jobs,
        }
    }
}
