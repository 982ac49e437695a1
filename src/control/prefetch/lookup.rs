//! The lookup of a job: L1 is asked first, then the backends' indexes, then the backends themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashSet;

use super::job::Job;
use super::phases::{JobState, LoadPhase, Phase, Search};
use super::plan::NOWHERE;
use super::prefetcher::Prefetcher;
use super::tier_choice::TierCosts;
use crate::config::Mode;
use crate::control::backends::BackendSlot;
use crate::error::{Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_IO, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{Found, LookupRequest, Reply};

/// Keys (by index) to be asked of a backend.
type Asks = Vec<(Arc<BackendSlot>, Vec<u32>)>;
/// Takes in a backend's answer.
type OnAnswer = fn(&Arc<Prefetcher>, &Arc<Job>, &Arc<BackendSlot>, Result<Answers>);

/// Keys of which a backend's index is asked at a time: the notes about them stay in the core's cache.
const PIECE: usize = 256;
/// Why a lookup is not sent that another came before.
const NOT_ASKED: &str = "it failed before, and another request decides whether it is asked again";

impl Prefetcher {
    /// Looks for missing keys in L1, then in the backends' indexes. Keys that need I/O are returned, to be asked of the
    /// backends once the state is unlocked: a backend may answer at once.
    pub(super) fn ask(self: &Arc<Self>, job: &Arc<Job>, state: &mut JobState) -> Asks {
        let Some((held, lookup)) = state.lookup_mut() else { return Vec::new() };
        let search = &mut lookup.search;
        if self.find_in_l1(job, held, search).is_err() {
            job.finish(state, KVKEEP_ERR_CANCELLED, Some("the session has ended".to_owned()), &*self.table);
            // Its session's end may have passed before it was known.
            self.table.forget(job);
            job.mark_released(state);
            return Vec::new();
        }
        // Here and below, a vector that grows bit by bit would ask for memory again and again, which others may be asking for too.
        let mut missing: Vec<u32> = Vec::with_capacity(job.keys.len());
        missing.extend((0..job.keys.len() as u32).filter(|&i| search.found[i as usize] == NOWHERE));
        if missing.is_empty() {
            self.looked_up(job, state);
            return Vec::new();
        }
        // As long as there are none, it has asked none.
        if search.backends.is_empty() {
            search.backends = self.backends.list();
        }
        let backends = search.backends.clone();
        let mut unknown: Asks = Vec::new();
        search.costs = TierCosts::of(&backends, missing.len());
        for slot in search.costs.order(&backends).into_iter().filter(|slot| slot.may_have(&job.space.tag)) {
            if missing.is_empty() {
                break;
            }
            let ask = look_in_index(job, search, slot, &mut missing);
            if !ask.is_empty() {
                unknown.push((slot.clone(), ask));
            }
        }
        for (slot, ask) in &mut unknown {
            ask.retain(|&index| search.wants_to_ask(index as usize, slot));
        }
        if job.request.mode == Mode::Prefix && job.request.group_rules.is_empty() {
            search.in_order |= unknown.iter().any(|(_, ask)| !ask.is_empty());
            leave_out_beyond_gap(&missing, &mut unknown);
        }
        unknown.retain(|(_, ask)| !ask.is_empty());
        lookup.asking = unknown.len();
        if unknown.is_empty() {
            self.looked_up(job, state);
        }
        unknown
    }

    /// Takes shares of the job's keys that are in L1 by now.
    pub(super) fn find_in_l1(&self, job: &Job, held: &mut [bool], search: &mut Search) -> Result<()> {
        search.sizes.resize(job.keys.len(), 0);
        self.l1.reserve_found(job.session, &job.keys, job.shares(), held, Some(&mut search.sizes))?;
        for (held, found) in held.iter().zip(&mut search.found) {
            if *held && *found == NOWHERE {
                *found = 0;
            }
        }
        Ok(())
    }

    /// Ends the lookup of a job, and queues the job if it has something to load. Called under the lock of the state.
    pub(super) fn looked_up(&self, job: &Arc<Job>, state: &mut JobState) {
        if job.looked_up(state, &*self.table) && self.loader.enqueue(job) {
            self.table.wake();
        }
    }

    /// Asks backends for keys that their indexes do not know. Called with no lock held.
    pub(super) fn ask_backends(self: &Arc<Self>, job: &Arc<Job>, asks: Asks) {
        // Where only one backend is asked, the first gap decides a prefix: it need not ask beyond.
        let in_order = job.request.mode == Mode::Prefix && job.request.group_rules.is_empty() && asks.len() == 1;
        self.send_asks(job, asks, in_order, Prefetcher::answered);
    }

    /// As [`ask_backends`](Prefetcher::ask_backends), of keys that other backends could not give.
    pub(super) fn ask_backends_elsewhere(self: &Arc<Self>, job: &Arc<Job>, asks: Asks) {
        self.send_asks(job, asks, false, Prefetcher::answered_elsewhere);
    }

    fn send_asks(self: &Arc<Self>, job: &Arc<Job>, asks: Asks, in_order: bool, then: OnAnswer) {
        for (slot, ask) in asks {
            if slot.read_breaker.admit() {
                self.ask_backend(job, slot, ask, in_order, then);
            } else {
                then(self, job, &slot, Err(Error::new(KVKEEP_ERR_IO, NOT_ASKED)));
            }
        }
    }

    fn ask_backend(
        self: &Arc<Self>,
        job: &Arc<Job>,
        slot: Arc<BackendSlot>,
        ask: Vec<u32>,
        in_order: bool,
        then: OnAnswer,
    ) {
        let keys = ask.iter().map(|&i| job.object(i as usize)).collect();
        let (me, late_job, late_slot) = (self.clone(), job.clone(), slot.clone());
        let on_late = std::iter::once(Box::new(move || {
            me.meters.backend_timeouts.add(1);
            let error = Error::new(KVKEEP_ERR_TIMEOUT, "a lookup was not answered in time");
            late_slot.note_read(Some(&error));
            then(&me, &late_job, &late_slot, Err(error));
        }) as Box<dyn FnOnce() + Send>);
        let ticket = self.deadlines.begin(&slot, on_late).pop();
        let (me, job, answered_slot) = (self.clone(), job.clone(), slot.clone());
        let reply = Reply::new(move |result: Result<Vec<Found>>| {
            let answers =
                result.map(|found| Answers { job: job.clone(), slot: answered_slot.clone(), asked: ask, found });
            // Dropped, with the pins in it, if the job was notified already that it is too late.
            if ticket.is_some_and(|ticket| ticket.answered()) {
                answered_slot.note_read(answers.as_ref().err());
                then(&me, &job, &answered_slot, answers);
            }
        });
        let deadline = self.deadlines.deadline(&slot);
        slot.backend.lookup(LookupRequest { keys, in_order, deadline, reply });
    }

    /// Looks in other backends' indexes for the keys that a backend could not give. Keys that need I/O are returned, to be asked of the
    /// backends once the state is unlocked.
    pub(super) fn ask_elsewhere(self: &Arc<Self>, job: &Arc<Job>, state: &mut JobState) -> Asks {
        // Those that fail while others are asked wait for the answers.
        let ready = |load: &&mut LoadPhase| load.asking == 0 && !load.elsewhere.is_empty();
        let Some(load) = state.load_mut().filter(ready) else { return Vec::new() };
        let mut wanted = std::mem::take(&mut load.elsewhere);
        wanted.sort_unstable_by_key(|(index, _)| *index);
        let mut missing: Vec<u32> = wanted.iter().map(|(index, _)| *index).collect();
        let backends = load.search.backends.clone();
        let search = &mut load.search;
        let is_wanted = |index: usize| missing.binary_search(&(index as u32)).is_ok();
        search.pins.give_back(&backends, |index| job.object(index), is_wanted);
        let mut asks: Asks = Vec::new();
        for slot in search.costs.order(&backends).into_iter().filter(|slot| slot.may_have(&job.space.tag)) {
            let (tried, mut fresh): (Vec<u32>, Vec<u32>) =
                missing.iter().partition(|&&index| search.has_tried(index as usize, slot));
            let ask = look_in_index(job, search, slot, &mut fresh);
            missing = [tried, fresh].concat();
            missing.sort_unstable();
            asks.push((slot.clone(), ask));
        }
        asks.iter_mut().for_each(|(_, ask)| ask.retain(|index| missing.binary_search(index).is_ok()));
        asks.retain(|(_, ask)| !ask.is_empty());
        load.asking = asks.len();
        let is_asked = |index: &u32| asks.iter().any(|(_, ask)| ask.binary_search(index).is_ok());
        let (asked, known): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(index, _)| is_asked(index));
        load.asked = asked.into_iter().collect();
        let (lost, found): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|(index, _)| missing.binary_search(index).is_ok());
        let found: Vec<u32> = found.into_iter().map(|(index, _)| index).collect();
        self.looked_elsewhere(job, state, &found, lost);
        asks
    }

    /// Ends the search elsewhere for keys of a job, and queues the job if some were found. Called under the lock of the state.
    fn looked_elsewhere(&self, job: &Arc<Job>, state: &mut JobState, found: &[u32], lost: Vec<(u32, Error)>) {
        if job.looked_elsewhere(state, found, lost, &*self.table) && self.loader.enqueue(job) {
            self.table.wake();
        }
    }

    /// Takes in a backend's answer about keys that other backends could not give, on the backend's thread, or on the control thread when
    /// it is late.
    fn answered_elsewhere(self: &Arc<Self>, job: &Arc<Job>, slot: &Arc<BackendSlot>, answers: Result<Answers>) {
        if let Ok(answers) = &answers {
            slot.lookups.add(&answers.found);
        }
        let mut state = job.state.lock();
        // The pins of an answer that comes after the job's end are given back when it is dropped.
        let Some(load) = state.load_mut() else { return };
        let mut found = Vec::new();
        if let Ok(mut answers) = answers {
            for (index, bytes) in answers.take(|index| load.asked.contains_key(&(index as u32))) {
                load.asked.remove(&(index as u32));
                load.search.note_found(index, slot, bytes);
                found.push(index as u32);
            }
        }
        load.asking = load.asking.saturating_sub(1);
        let lost = if load.asking == 0 { std::mem::take(&mut load.asked) } else { BTreeMap::new() };
        self.looked_elsewhere(job, &mut state, &found, lost.into_iter().collect());
    }

    /// Takes in a backend's answer, on the backend's thread, or on the control thread when it is late.
    fn answered(self: &Arc<Self>, job: &Arc<Job>, slot: &Arc<BackendSlot>, answers: Result<Answers>) {
        let mut state = job.state.lock();
        match answers {
            Ok(mut answers) => {
                slot.lookups.add(&answers.found);
                if let Some((_, lookup)) = state.lookup_mut() {
                    let search = &mut lookup.search;
                    let better = answers.take(|index| search.wants_from(index, slot));
                    let backends = search.backends.clone();
                    let chosen: HashSet<usize> = better.iter().map(|(index, _)| *index).collect();
                    search.pins.give_back(&backends, |index| job.object(index), |index| chosen.contains(&index));
                    for (index, bytes) in better {
                        search.note_found(index, slot, bytes);
                    }
                }
            }
            Err(error) => {
                if let Some((_, lookup)) = state.lookup_mut() {
                    lookup.search.unanswered = true;
                }
                state.note_trouble(format!("backend {}: {error}", slot.number));
            }
        }
        if let Phase::Lookup(lookup) = &mut state.phase {
            lookup.asking = lookup.asking.saturating_sub(1);
            if lookup.asking == 0 {
                self.looked_up(job, &mut state);
            }
        }
    }
}

/// Leaves out of a prefix's questions all keys after the first one that no backend has.
fn leave_out_beyond_gap(missing: &[u32], unknown: &mut Asks) {
    let is_asked = |index: &u32| unknown.iter().any(|(_, ask)| ask.binary_search(index).is_ok());
    if let Some(&gap) = missing.iter().find(|index| !is_asked(index)) {
        unknown.iter_mut().for_each(|(_, ask)| ask.retain(|index| *index < gap));
    }
}

/// Looks for missing keys in the index of a backend: keys that it has go out of `missing`. Keys that it does not know without
/// asking are returned.
fn look_in_index(job: &Job, search: &mut Search, slot: &BackendSlot, missing: &mut Vec<u32>) -> Vec<u32> {
    let mut ask = Vec::new();
    let mut still = 0;
    let mut objects: Vec<ObjectKey> = Vec::with_capacity(missing.len().min(PIECE));
    let mut found = [Found::Unknown; PIECE];
    for from in (0..missing.len()).step_by(PIECE) {
        let piece = from..missing.len().min(from + PIECE);
        objects.clear();
        objects.extend(missing[piece.clone()].iter().map(|&i| job.object(i as usize)));
        let found = &mut found[..piece.len()];
        slot.backend.lookup_cached(&objects, found);
        slot.lookups.add(found);
        for (at, &found) in piece.zip(&*found) {
            let index = missing[at];
            match found {
                Found::Present(bytes) => {
                    search.note_found(index as usize, slot, bytes);
                    continue;
                }
                Found::Absent => {}
                Found::Unknown => {
                    if ask.is_empty() {
                        ask.reserve_exact(missing.len() - at);
                    }
                    ask.push(index);
                }
            }
            missing[still] = index;
            still += 1;
        }
    }
    missing.truncate(still);
    ask
}

/// A backend's answers to a lookup of a job. Pins that are not taken out are given back when it is dropped.
struct Answers {
    job: Arc<Job>,
    slot: Arc<BackendSlot>,
    /// The job's keys that were asked for.
    asked: Vec<u32>,
    found: Vec<Found>,
}

impl Answers {
    /// The present keys that `wants` chooses, with their sizes. The caller owns their pins from now on.
    fn take(&mut self, wants: impl Fn(usize) -> bool) -> Vec<(usize, u64)> {
        let mut taken = Vec::new();
        for (&index, found) in self.asked.iter().zip(&mut self.found) {
            if let Found::Present(bytes) = *found
                && wants(index as usize)
            {
                *found = Found::Absent;
                taken.push((index as usize, bytes));
            }
        }
        taken
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let present = self.asked.iter().zip(&self.found).filter(|(_, found)| matches!(found, Found::Present(_)));
        let keys: Vec<ObjectKey> = present.map(|(&index, _)| self.job.object(index as usize)).collect();
        if !keys.is_empty() {
            self.slot.backend.unpin(&keys);
        }
    }
}
