//! Answers about L1 for programs and people: the state of keys, the holders of an object (P12), numbers.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::counters::Gauges;
use super::lookup;
use super::session::sessions::{Session, Staged};
use super::slot::{BUSY, DETACHED, GIVEN_UP, NOBODY, NONE, QUEUED, STAGING, STORED, Slot, TEMPORARY};
use super::space::Space;
use super::state::L1State;
use super::tier::L1;

use crate::abi::{
    KVKEEP_KEY_EVICTABLE, KVKEEP_KEY_STORED, KVKEEP_KEY_STORING, KVKEEP_KEY_TEMPORARY, KeyState, ObjectState,
    SessionState, SpaceUsage, chars,
};
use crate::error::Result;
use crate::key::{Key, SpaceTag};
use crate::space_names::SpaceNames;
use crate::space_report::SpaceReport;

/// Slots looked at under one lock.
const SLICE: usize = 4096;
/// With more live sessions, the one that stages a key is not looked for under the lock.
const STAGERS_MAX: usize = 1024;
/// Most spaces that are reported.
const SPACES_SHOWN: usize = 256;

/// One session's hold on an object.
#[derive(Serialize, Debug)]
pub struct HolderReport {
    /// The number of the session.
    pub session: u64,
    /// The name of its request.
    pub request_id: String,
    /// Process that opened it.
    pub owner_pid: u32,
    /// Shares that the session holds of it.
    pub shares: u32,
    /// Whether they may be taken under pressure, because its deadline passed.
    pub revocable: bool,
}

/// One object, or one staging of it.
#[derive(Serialize, Debug)]
pub struct ObjectReport {
    /// The key, as text.
    pub key: String,
    /// "absent", "staging", "ready" or "detached".
    pub state: &'static str,
    /// Bytes of its payload.
    pub bytes: u64,
    /// Shares that sessions hold of it.
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
    /// It waits to be written.
    pub write_pending: bool,
    /// Its retention priority, 0 when that has ended.
    pub retention_priority: u8,
    /// The sessions that hold or stage it.
    pub holders: Vec<HolderReport>,
    /// Why it cannot be evicted now; empty if it can.
    pub unevictable_because: Vec<String>,
}

pub(super) fn query_keys(l1: &L1, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()> {
    lookup::with_slots(l1, keys, false, |mut lookup| {
        l1.with(|state| {
            let space = state.space_index(space)?;
            let (found, _) = lookup.find_all(state, space);
            for (said, &id) in states.iter_mut().zip(&*found) {
                *said = if id == NONE { KeyState::default() } else { key_state(state, id) };
            }
            Ok(())
        })
    })
}

pub(super) fn query_space(l1: &L1, space: u64, usage: &mut SpaceUsage) -> Result<()> {
    l1.with(|state| {
        let space = &state.spaces[state.space_index(space)? as usize];
        usage.objects = space.ready;
        usage.used_bytes = space.used;
        usage.quota_bytes = space.quota;
        Ok(())
    })
}

pub(super) fn spaces(l1: &L1) -> Vec<SpaceReport> {
    let mut open: Vec<(u64, u64)> = l1.with(|state| {
        state.by_number.iter().map(|(&number, &index)| (state.spaces[index as usize].used, number)).collect()
    });
    open.sort_unstable_by_key(|&(used, number)| (Reverse(used), number));
    open.truncate(SPACES_SHOWN);
    l1.with(|state| {
        let report = |(_, number): (u64, u64)| {
            // It may have been closed meanwhile.
            let index = *state.by_number.get(&number)?;
            let Space { spec, ready, used, quota, lookups, .. } = &state.spaces[index as usize];
            Some(SpaceReport {
                space: number,
                model: spec.model.clone(),
                layout: spec.layout.clone(),
                tenant: spec.tenant.clone(),
                generation: spec.generation,
                chunk_tokens: spec.chunk_tokens,
                objects: *ready,
                used_bytes: *used,
                quota_bytes: *quota,
                lookups: *lookups,
            })
        };
        open.into_iter().filter_map(report).collect()
    })
}

pub(super) fn space_names(l1: &L1) -> Vec<(SpaceTag, SpaceNames)> {
    l1.with(|state| {
        let spaces = state.by_number.values().map(|&index| &state.spaces[index as usize]);
        spaces.map(|space| (space.tag, space.spec.names())).collect()
    })
}

pub(super) fn query_session(l1: &L1, session: u64, answer: &mut SessionState) -> Result<()> {
    l1.with(|state| {
        let session = state.sessions.at(state.sessions.index(session)?);
        *answer = SessionState {
            struct_size: answer.struct_size,
            abi_version: answer.abi_version,
            space: state.spaces[session.space as usize].tag.number(),
            age_ms: state.now_ms - session.began_ms,
            expires_in_ms: session.deadline_ms as i64 - state.now_ms as i64,
            shares: session.shares,
            revoked_shares: session.revoked.values().copied().map(u64::from).sum(),
            staged_keys: session.staged.len() as u64,
            jobs: session.jobs,
            owner_pid: session.owner_pid,
            request_id: chars(&session.request_id),
        };
        Ok(())
    })
}

pub(super) fn explain_key(l1: &L1, space: u64, key: &Key) -> Result<Vec<ObjectReport>> {
    let (space, slots) = l1.with(|state| Ok((state.space_index(space)?, state.slots.count())))?;
    let fingerprint = l1.fingerprinter.fingerprint(key).within(space);
    let mut by_slot = BTreeMap::new();
    for first in (0..slots).step_by(SLICE) {
        l1.with(|state| {
            let slice = state.slots.live_among(first..first + SLICE as u32);
            let its = slice.filter(|(_, slot)| slot.is_of(fingerprint));
            by_slot.extend(its.map(|(id, _)| (id, object_report(state, id))));
        });
    }
    l1.with(|state| {
        by_slot.extend(state.find_fingerprint(fingerprint).map(|id| (id, object_report(state, id))));
    });
    let mut reports: Vec<ObjectReport> = by_slot.into_values().collect();
    reports.sort_by_key(|report| ["ready", "detached", "staging"].iter().position(|state| *state == report.state));
    Ok(reports)
}

pub(super) fn stager(l1: &L1, session: u64, key: &Key) -> Option<String> {
    let fingerprint = l1.fingerprinter.fingerprint(key);
    l1.with(|state| {
        if state.staged == 0 || state.sessions.len() > STAGERS_MAX {
            return None;
        }
        let index = state.sessions.index(session).ok()?;
        let space = state.sessions.at(index).space;
        let fingerprint = fingerprint.within(space);
        let is_its = |staged: &Staged| state.slots[staged.id].is_of(fingerprint);
        let stages = |other: &Session| other.space == space && other.staged.find(fingerprint.hash, is_its).is_some();
        state.sessions.live().find(|(_, other)| stages(other)).map(|(_, other)| other.name())
    })
}

/// Milliseconds since the first of an object's present shares was taken.
pub(super) fn shared_for(state: &L1State, slot: &Slot) -> u64 {
    u64::from((state.now_ms as u32).wrapping_sub(slot.since_ms))
}

pub(super) fn gauges(state: &L1State) -> Gauges {
    let policies: usize = state.pools.iter().map(|pool| pool.policy.memory_bytes()).sum();
    Gauges {
        capacity_bytes: state.alloc.capacity(),
        used_bytes: state.alloc.used_bytes(),
        locked_bytes: state.in_use.locked_bytes,
        objects: state.ready,
        staged: state.staged,
        shares: state.in_use.shares,
        sessions: state.sessions.len() as u64,
        writes_queued: state.writes_waiting,
        memory_bytes: (policies + state.table.memory_bytes() + state.slots.memory_bytes() + state.alloc.memory_bytes())
            as u64,
    }
}

fn key_state(state: &L1State, id: u32) -> KeyState {
    let slot = &state.slots[id];
    let flags = [
        (slot.is(TEMPORARY), KVKEEP_KEY_TEMPORARY),
        (evictable(state, id), KVKEEP_KEY_EVICTABLE),
        (slot.is(STORED), KVKEEP_KEY_STORED),
        (slot.is(QUEUED), KVKEEP_KEY_STORING),
    ];
    KeyState {
        size: slot.size(),
        state: ObjectState::KVKEEP_OBJECT_READY as u32,
        shares: state.slots.shares(id),
        flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
        reserved: 0,
    }
}

/// Whether eviction may take a ready object: its memory is not in use, or only by sessions past their deadlines.
fn evictable(state: &L1State, id: u32) -> bool {
    let word = state.slots[id].word();
    if !word.locked() || word.is(BUSY) {
        return !word.locked();
    }
    let expired = |session: u32| state.sessions.at(session).is_expired(state.now_ms);
    let (holder, held) = word.holder();
    (held == 0 || expired(holder)) && state.holders.iter(&state.slots, id).all(|(session, _)| expired(session))
}

fn holder_report(state: &L1State, index: u32, shares: u32) -> HolderReport {
    let session = state.sessions.at(index);
    HolderReport {
        session: session.id,
        request_id: session.request_id.to_string(),
        owner_pid: session.owner_pid,
        shares,
        revocable: session.is_expired(state.now_ms),
    }
}

fn object_report(state: &L1State, id: u32) -> ObjectReport {
    let slot = &state.slots[id];
    let (staging, shares, transfers) = (slot.is(STAGING), state.slots.shares(id), state.slots.transfers(id));
    let mut holders = Vec::new();
    let (holder, held) = slot.holder();
    if holder != NOBODY && (held > 0 || staging) {
        holders.push(holder_report(state, holder, held));
    }
    holders.extend(state.holders.iter(&state.slots, id).map(|(index, shares)| holder_report(state, index, shares)));
    let mut because = Vec::new();
    for holder in holders.iter().filter(|holder| staging || !holder.revocable) {
        let what = if staging { "stages it".to_owned() } else { format!("holds {} share(s)", holder.shares) };
        because
            .push(format!("session {} (\"{}\", pid {}) {what}", holder.session, holder.request_id, holder.owner_pid));
    }
    if transfers > 0 {
        because.push(format!("{transfers} transfer(s) run on its bytes"));
    }
    ObjectReport {
        key: state.slots.key(id).to_string(),
        state: match (slot.is(DETACHED), staging) {
            (true, _) => "detached",
            (_, true) => "staging",
            _ => "ready",
        },
        bytes: slot.size(),
        shares,
        transfers,
        shared_for_ms: if shares > 0 { shared_for(state, slot) } else { 0 },
        uses: slot.uses(),
        temporary: slot.is(TEMPORARY),
        written: slot.is(STORED),
        write_given_up: slot.is(GIVEN_UP) && !slot.is(QUEUED),
        write_pending: slot.is(QUEUED),
        retention_priority: state.slots.meta(id, state.now_ms).priority,
        holders,
        unevictable_because: because,
    }
}
