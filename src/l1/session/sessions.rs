//! The sessions of a tier: the objects each of them used, its shares, what it stages, and its deadline.
//!
//! `lifecycle.rs` changes their states.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::{HashMap, HashSet, HashTable};

use crate::error::{Error, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, Result};
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::l1::slot::{NOBODY, Ref};
use crate::l1::slots::Slots;

/// Characters of a request id that are shown.
const REQUEST_SHOWN: usize = 24;
/// Sessions reclaimed by their deadline that are remembered, so that a late use is answered with EXPIRED.
const REMEMBERED: usize = 4096;
/// A session's number: the cache's boot in the upper 16 bits, then the round in which it was given, then its index.
const INDEX_BITS: u32 = NOBODY.count_ones();
const BOOT_SHIFT: u32 = 48;
/// Most rounds in which each index is given once.
const ROUNDS_MAX: u32 = (1 << (BOOT_SHIFT - INDEX_BITS)) - 1;
/// So many indexes are given in a round before the next begins: sessions one after another would soon use the rounds up.
const SPREAD: usize = 1 << 12;

/// A live session, or one whose deadline has passed.
pub struct Session {
    /// Its number, which callers know.
    pub id: u64,
    /// Index of its space.
    pub space: u32,
    /// The process that opened it.
    pub owner_pid: u32,
    /// The caller's name for the request, shown to people.
    pub request_id: Box<str>,
    /// Milliseconds it may be idle.
    pub timeout_ms: u64,
    /// When it expires, in milliseconds of the cache's clock.
    pub deadline_ms: u64,
    /// When it began, in milliseconds of the cache's clock.
    pub began_ms: u64,
    /// Objects it used, in order of first use; some may be named twice.
    pub used: Vec<Ref>,
    /// Length of `used` after duplicates were last removed.
    distinct: usize,
    /// Some of the entries of `used`, by slot, once `used` was found to fill with duplicates.
    known: Box<[Ref]>,
    /// Whether objects were loaded for it.
    pub landed: bool,
    /// Shares it holds of all objects together.
    pub shares: u64,
    /// The key it took a share of last, by a call of one key.
    pub last_read: Option<LastRead>,
    /// Objects that it stages, by the hashes of the keys.
    pub staged: HashTable<Staged>,
    /// Shares that were taken from it after its deadline.
    pub revoked: HashMap<Key, u32>,
    /// Objects that were detached while it held them, by key, until it has returned them.
    pub detached: HashMap<Key, Vec<Ref>>,
    /// Of keys of which it holds several copies: shares it returned, while it is open of which copy they were.
    pub owed: HashMap<Key, u32>,
    /// Place in the prompt that its next new object gets.
    pub next_depth: u32,
    /// Jobs of it that are not done.
    pub jobs: u32,
    /// The session that it copies for, or 0.
    pub user: u64,
    /// Its space was forgotten while it copied: keys that it has not staged by then are not stored any more.
    pub forgotten: bool,
}

impl Session {
    /// The session, for people.
    pub fn name(&self) -> String {
        Session::named(self.id, &self.request_id, self.owner_pid)
    }

    /// The session of these, for people.
    pub fn named(id: u64, request_id: &str, owner_pid: u32) -> String {
        let shown: String = request_id.chars().take(REQUEST_SHOWN).collect();
        format!("session {id} (\"{shown}\", pid {owner_pid})")
    }

    /// Whether it holds nothing.
    pub fn idle(&self) -> bool {
        self.shares == 0 && self.staged.is_empty() && self.jobs == 0
    }

    /// Whether its deadline has passed, so that its shares may be taken.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.deadline_ms < now_ms
    }

    /// Notes the use of objects. The memory that has to be looked at for each is likely to be far away, and in a loop that does
    /// nothing else the accesses overlap.
    pub fn note_all(&mut self, slots: &Slots, ids: &[u32]) {
        for &id in ids {
            self.next_depth = self.next_depth.max(slots.use_record(id).depth + 1);
            self.note(slots.name(id));
        }
    }

    /// A share of a revoked key was returned: so many fewer are answered with EXPIRED.
    pub fn forgive_revoked(&mut self, key: &Key, count: u32) {
        if let Some(left) = self.revoked.get_mut(key) {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.revoked.remove(key);
            }
        }
    }

    fn note(&mut self, object: Ref) {
        if !self.known.is_empty() {
            let known = &mut self.known[object.slot as usize & (self.known.len() - 1)];
            if *known == object {
                return;
            }
            *known = object;
        }
        self.used.push(object);
    }

    /// Whether it is time to take duplicates out of `used`.
    #[inline]
    pub fn has_duplicates(&self) -> bool {
        self.used.len() > 64 + 2 * self.distinct
    }

    /// `used` has no duplicates any more, of which there were `twice`. If they were many, the session looks before it notes.
    pub fn set_distinct(&mut self, twice: usize) {
        self.distinct = self.used.len();
        if twice >= self.distinct && self.known.len() < self.distinct {
            self.known = vec![Ref::NOTHING; self.distinct.next_power_of_two()].into_boxed_slice();
        }
    }
}

/// An object that is staged.
pub struct Staged {
    /// The slot it is in.
    pub id: u32,
    /// The writer that reserved it, whose account it is in.
    pub writer: u64,
}

/// A key, its fingerprint within the session's space, and the slot that it was in.
#[derive(Clone, Copy)]
pub struct LastRead {
    pub key: Key,
    pub fingerprint: Fingerprint,
    pub id: u32,
}

/// A session that others copy for.
#[derive(Default)]
struct Served {
    copies: u32,
    aborted: bool,
}

/// All live sessions, by index.
pub struct Sessions {
    places: Vec<Option<Box<Session>>>,
    /// The round in which each index was given last.
    given: Vec<u32>,
    spare: VecDeque<u32>,
    round: u32,
    boot: u16,
    live: usize,
    most: usize,
    reclaimed: VecDeque<u64>,
    reclaimed_set: HashSet<u64>,
    /// By number, and while there are copies, though the session be over.
    served: HashMap<u64, Served>,
}

impl Sessions {
    /// Without a session yet, at most `most`, which is at most [`NOBODY`]. Their numbers begin with `boot`.
    pub fn new(most: u32, boot: u16) -> Sessions {
        Sessions {
            places: Vec::new(),
            given: Vec::new(),
            spare: VecDeque::new(),
            round: 1,
            boot,
            live: 0,
            most: most as usize,
            reclaimed: VecDeque::new(),
            reclaimed_set: HashSet::new(),
            served: HashMap::new(),
        }
    }

    /// Whether as many live as may.
    pub fn full(&self) -> bool {
        self.live >= self.most
    }

    /// Begins a session and gives its number. Called by `lifecycle.rs` alone.
    pub fn begin(
        &mut self,
        space: u32,
        owner_pid: u32,
        request_id: &str,
        timeout: Duration,
        now_ms: u64,
    ) -> Result<u64> {
        if self.full() {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} sessions are live: end some, or raise sessions_max", self.live),
            ));
        }
        let index = self.next_index()?;
        self.live += 1;
        let id = u64::from(self.boot) << BOOT_SHIFT | u64::from(self.round) << INDEX_BITS | u64::from(index);
        let timeout_ms = timeout.as_millis() as u64;
        self.places[index as usize] = Some(Box::new(Session {
            id,
            space,
            owner_pid,
            request_id: request_id.into(),
            timeout_ms,
            deadline_ms: now_ms + timeout_ms,
            began_ms: now_ms,
            used: Vec::new(),
            distinct: 0,
            known: Box::default(),
            landed: false,
            shares: 0,
            last_read: None,
            staged: HashTable::new(),
            revoked: HashMap::new(),
            detached: HashMap::new(),
            owed: HashMap::new(),
            next_depth: 0,
            jobs: 0,
            user: 0,
            forgotten: false,
        }));
        Ok(id)
    }

    /// An index that was not given in this round; another round may begin.
    fn next_index(&mut self) -> Result<u32> {
        match self.spare.front() {
            Some(&index) if self.given[index as usize] < self.round || self.places.len() >= SPREAD => {
                if self.given[index as usize] == self.round {
                    if self.round == ROUNDS_MAX {
                        return Err(Error::new(
                            KVKEEP_ERR_LIMIT,
                            "all numbers of sessions were given once: open the cache anew, or restart the daemon",
                        ));
                    }
                    self.round += 1;
                }
                self.given[index as usize] = self.round;
                self.spare.pop_front();
                Ok(index)
            }
            _ => {
                self.places.push(None);
                self.given.push(self.round);
                Ok((self.places.len() - 1) as u32)
            }
        }
    }

    /// The index of a live session.
    #[inline]
    pub fn index(&self, id: u64) -> Result<u32> {
        let index = (id & ((1 << INDEX_BITS) - 1)) as usize;
        match self.places.get(index) {
            Some(Some(place)) if place.id == id => Ok(index as u32),
            _ => Err(self.gone(id)),
        }
    }

    #[cold]
    fn gone(&self, id: u64) -> Error {
        if self.reclaimed_set.contains(&id) {
            let why = format!(
                "session {id} passed its deadline idle and was ended: begin a new one, with a longer timeout_ms"
            );
            return Error::new(KVKEEP_ERR_EXPIRED, why);
        }
        let why = format!("session {id} is not live: it was never begun, or has ended; begin one and use its number");
        Error::new(KVKEEP_ERR_NOT_FOUND, why)
    }

    /// A live session and its index, its deadline renewed.
    #[inline]
    pub fn use_now(&mut self, id: u64, now_ms: u64) -> Result<(u32, &mut Session)> {
        let index = self.index(id)?;
        let session = self.at_mut(index);
        session.deadline_ms = now_ms + session.timeout_ms;
        Ok((index, session))
    }

    /// The session at a live index.
    pub fn at(&self, index: u32) -> &Session {
        match &self.places[index as usize] {
            Some(session) => session,
            None => unreachable!("no session at index {index}"),
        }
    }

    /// The session at a live index.
    #[inline]
    pub fn at_mut(&mut self, index: u32) -> &mut Session {
        match &mut self.places[index as usize] {
            Some(session) => session,
            None => unreachable!("no session at index {index}"),
        }
    }

    /// Forgets the session at a live index; one that was `reclaimed` is remembered as expired. Called by `lifecycle.rs` alone, after
    /// it returned what the session held.
    pub fn remove(&mut self, index: u32, reclaimed: bool) {
        let Some(session) = self.places[index as usize].take() else { return };
        self.live -= 1;
        let Session { id, user, .. } = *session;
        if let Some(served) = self.served.get_mut(&user) {
            served.copies -= 1;
            if served.copies == 0 {
                self.served.remove(&user);
            }
        }
        self.spare.push_back(index);
        if reclaimed {
            self.reclaimed.push_back(id);
            self.reclaimed_set.insert(id);
            if self.reclaimed.len() > REMEMBERED
                && let Some(oldest) = self.reclaimed.pop_front()
            {
                self.reclaimed_set.remove(&oldest);
            }
        }
    }

    /// From now on the session `id` copies for the session at the live index `user`.
    pub fn serve(&mut self, id: u64, user: u32) -> Result<()> {
        let copy = self.index(id)?;
        let user = self.at_mut(user).id;
        self.at_mut(copy).user = user;
        self.served.entry(user).or_default().copies += 1;
        Ok(())
    }

    /// The session that the one at a live index copies for, while that lives; itself otherwise.
    pub fn user_of(&mut self, index: u32) -> u32 {
        let user = self.at_mut(index).user;
        if user == 0 { index } else { self.index(user).unwrap_or(index) }
    }

    /// Whether the session at a live index copies for one that was aborted.
    pub fn is_orphan(&self, index: u32) -> bool {
        let user = self.at(index).user;
        user != 0 && self.served.get(&user).is_some_and(|served| served.aborted)
    }

    /// Notes that the session at a live index is being aborted.
    pub fn mark_aborted(&mut self, index: u32) {
        let id = self.at_mut(index).id;
        if let Some(served) = self.served.get_mut(&id) {
            served.aborted = true;
        }
    }

    /// Live sessions and their indexes.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Session)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(index, place)| Some((index as u32, &**place.as_ref()?)))
    }

    /// As [`live`](Sessions::live), to be changed.
    pub fn live_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.places.iter_mut().flatten().map(|session| &mut **session)
    }

    /// How many sessions are live.
    pub fn len(&self) -> usize {
        self.live
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(sessions: &mut Sessions) -> Result<u64> {
        sessions.begin(0, 1, "r", Duration::from_secs(1), 0)
    }

    #[test]
    fn no_number_is_given_twice_and_all_carry_the_run() {
        let mut sessions = Sessions::new(NOBODY, 0xffff);
        let mut seen = HashSet::new();
        let (mut live, mut last) = (VecDeque::new(), 0);
        for turn in 0..4 * SPREAD {
            let id = begin(&mut sessions).unwrap();
            assert!(seen.insert(id) && id >> BOOT_SHIFT == 0xffff && id >> 63 == 1);
            live.push_back(id);
            // One lives at a time, then some more.
            if live.len() > 1 + turn / SPREAD {
                let gone = live.pop_front().unwrap();
                let index = sessions.index(gone).unwrap();
                sessions.remove(index, false);
                assert_eq!(sessions.index(gone).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
            }
            last = id;
        }
        assert!(sessions.places.len() <= SPREAD + 4 && sessions.round <= 6, "{}", sessions.round);
        assert!(sessions.index(last).is_ok());
    }

    #[test]
    fn when_all_numbers_were_given_no_session_begins() {
        let mut sessions = Sessions::new(NOBODY, 7);
        sessions.round = ROUNDS_MAX;
        for _ in 0..SPREAD {
            let id = begin(&mut sessions).unwrap();
            assert_eq!(id >> BOOT_SHIFT, 7);
            let index = sessions.index(id).unwrap();
            sessions.remove(index, false);
        }
        let error = begin(&mut sessions).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_LIMIT);
        assert!(error.message.contains("restart the daemon"), "{error}");
    }
}
