//! The state of a job in each phase of its life. The transitions between the phases are in `job.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::pins::JobPins;
use super::plan::NOWHERE;
use super::tier_choice::TierCosts;
use crate::abi::JobResult;
use crate::config::Notify;
use crate::control::backends::{BackendList, BackendSlot};
use crate::error::{Error, KVKEEP_OK, Status};
use crate::key::SpaceTag;

/// The keys of a job as far as they are found, until the job is done.
#[derive(Default)]
pub struct Search {
    /// Where each key was found: 0 for L1, the tier's place for a backend, or [`NOWHERE`].
    pub found: Vec<u8>,
    /// Payload sizes of the keys found. Empty until L1 was asked.
    pub sizes: Vec<u64>,
    /// The backends it asked.
    pub backends: BackendList,
    /// What loads from those backends cost.
    pub costs: TierCosts,
    /// Pins on its objects in those backends.
    pub pins: JobPins,
    /// By key: a bit for each place of a backend that could not give it. Empty until there is one.
    pub(super) tried: Vec<u8>,
    /// A backend gave no answer to a lookup.
    pub unanswered: bool,
    /// Backends were asked, which need not look for keys after the first that is missing.
    pub in_order: bool,
    /// The last failure, for the message of the result.
    pub trouble: Option<String>,
    /// How the caller is notified. Taken by the completion, so that there is one.
    pub(super) notify: Option<Notify>,
}

/// The state of a job whose tiers are being asked.
pub struct LookupPhase {
    /// The keys found so far.
    pub search: Search,
    /// Lookups that backends have not answered.
    pub asking: usize,
    /// Until when missing chunks are asked for again.
    pub(super) ask_until: Option<Instant>,
    /// Whether a commit may answer it.
    pub(super) awaiting: bool,
    /// How the caller is notified of the answer. Taken by it.
    pub(super) lookup_notify: Notify,
    /// The load is not to begin before the job is resumed.
    pub(super) pauses: bool,
}

/// The state of a job whose lookup is answered and whose bytes are queued or being loaded.
pub struct LoadPhase {
    /// The keys found, and the pins on those to be loaded.
    pub search: Search,
    /// The lookup's answer in chunks, and when it was known.
    pub(super) lookup: (u32, Instant),
    /// Keys to be loaded, in order; those before `cursor` are on their way or over.
    pub(super) to_load: Vec<u32>,
    pub(super) cursor: usize,
    /// Nothing is queued before the job is resumed.
    pub(super) paused: bool,
    /// Keys on their way.
    pub(super) loading: usize,
    /// Planned keys that could not be loaded.
    pub(super) failed: u32,
    /// Why the last of them could not.
    pub(super) failed_status: Status,
    pub(super) loaded_bytes: u64,
    /// Keys that a backend could not give, and why: they count as on their way until others have been asked.
    pub elsewhere: Vec<(u32, Error)>,
    /// Those of them that others are being asked for, and how many of these have not answered.
    pub(super) asked: BTreeMap<u32, Error>,
    pub asking: usize,
}

/// The state of a job at its end.
pub struct DonePhase {
    /// The lookup's answer in chunks.
    pub lookup_chunks: u32,
    /// The lookup was answered before the job ended.
    pub is_looked_up: bool,
    /// The answer that callers read.
    pub result: JobResult,
    /// Where each key that could be had was found, [`NOWHERE`] for the others. Empty unless the job ended well.
    pub(super) found: Vec<u8>,
    /// When the job was done.
    pub at: Instant,
    /// The table of jobs no longer has it: waiters return.
    pub released: bool,
}

/// The phase of a job, with all that only this phase has.
pub enum Phase {
    /// Tiers are being asked.
    Lookup(LookupPhase),
    /// Bytes are queued or being loaded.
    Load(LoadPhase),
    /// The answer is known, and no longer changes.
    Done(DonePhase),
}

/// The state of a job, behind its lock.
pub struct JobState {
    /// Keys whose shares the job's session holds.
    pub held: Vec<bool>,
    /// Where the job is in its life.
    pub phase: Phase,
}

/// Which keys were found in some tier.
pub(super) fn there(found: &[u8]) -> Vec<bool> {
    found.iter().map(|&found| found != NOWHERE).collect()
}

impl Search {
    /// The backend at `place`, if the job has asked it.
    pub fn slot(&self, place: u8) -> Option<&Arc<BackendSlot>> {
        self.backends.iter().find(|slot| slot.place == place as usize)
    }

    /// Of a lookup that ends before its answer: only the keys that are held could be had.
    pub(super) fn keep_found(&mut self, held: &[bool]) {
        let missing = self.found.iter_mut().zip(held).filter(|(_, held)| !**held);
        missing.for_each(|(found, _)| *found = NOWHERE);
    }

    /// Whether the backend `slot` is to be asked by I/O for the key `index`.
    pub fn wants_to_ask(&self, index: usize, slot: &BackendSlot) -> bool {
        match self.found[index] {
            NOWHERE => true,
            0 => false,
            place => self.costs.is_worth_asking(slot, place),
        }
    }

    /// Notes that the backend at `place` could not give the key `index`. True if another may have it.
    pub(super) fn note_failed(&mut self, index: usize, place: usize, space: &SpaceTag) -> bool {
        if self.backends.len() < 2 {
            return false;
        }
        if self.tried.is_empty() {
            self.tried = vec![0; self.found.len()];
        }
        self.tried[index] |= 1 << place;
        self.backends.iter().any(|slot| !self.has_tried(index, slot) && slot.may_have(space))
    }

    /// Whether the backend `slot` could not give the key `index`.
    pub fn has_tried(&self, index: usize, slot: &BackendSlot) -> bool {
        self.tried.get(index).is_some_and(|tried| tried >> slot.place & 1 == 1)
    }

    /// Whether the answer of the backend `slot` that it has the key `index` is better than what was found so far.
    pub fn wants_from(&self, index: usize, slot: &BackendSlot) -> bool {
        match self.found[index] {
            NOWHERE => true,
            0 => false,
            place => self.costs.is_cheaper(slot, place),
        }
    }

    /// Notes that the backend `slot` has the key `index` and has pinned it for this job.
    pub fn note_found(&mut self, index: usize, slot: &BackendSlot, bytes: u64) {
        self.found[index] = slot.place as u8;
        self.sizes[index] = bytes;
        self.pins.take_over(index, slot.place, self.found.len());
    }
}

impl LookupPhase {
    /// Whether the control thread looks through the job after a commit.
    pub fn awaits_commits(&self) -> bool {
        self.awaiting
    }
}

impl LoadPhase {
    /// Of what was found, `to_load` is to be loaded. `lookup` is the lookup's answer in chunks, and when it was known.
    pub(super) fn new(search: Search, lookup: (u32, Instant), to_load: Vec<u32>) -> LoadPhase {
        LoadPhase {
            search,
            lookup,
            to_load,
            cursor: 0,
            paused: false,
            loading: 0,
            failed: 0,
            failed_status: KVKEEP_OK,
            loaded_bytes: 0,
            elsewhere: Vec::new(),
            asked: BTreeMap::new(),
            asking: 0,
        }
    }

    /// The lookup's answer in chunks.
    pub fn lookup_chunks(&self) -> u32 {
        self.lookup.0
    }

    /// The keys that have not been asked for, in order.
    pub fn planned(&self) -> &[u32] {
        &self.to_load[self.cursor..]
    }

    /// Takes the planned keys that have not been loaded out of those found.
    pub(super) fn forget_unloaded(&mut self, held: &[bool]) {
        let unloaded = self.to_load.iter().filter(|&&index| !held[index as usize]);
        unloaded.for_each(|&index| self.search.found[index as usize] = NOWHERE);
    }

    /// Whether every planned key was asked for.
    pub fn all_issued(&self) -> bool {
        self.cursor == self.to_load.len()
    }
}

impl JobState {
    /// Whether the job is at its end.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(_))
    }

    /// Whether the job waits to be resumed.
    pub fn is_paused(&self) -> bool {
        matches!(&self.phase, Phase::Load(load) if load.paused)
    }

    /// The keys held and the state of the lookup, while the job looks up.
    pub fn lookup_mut(&mut self) -> Option<(&mut [bool], &mut LookupPhase)> {
        match &mut self.phase {
            Phase::Lookup(lookup) => Some((&mut self.held, lookup)),
            Phase::Load(_) | Phase::Done(_) => None,
        }
    }

    /// The state of the load, while the job loads.
    pub fn load_mut(&mut self) -> Option<&mut LoadPhase> {
        match &mut self.phase {
            Phase::Load(load) => Some(load),
            Phase::Lookup(_) | Phase::Done(_) => None,
        }
    }

    /// The keys as far as they are found, unless the job is done.
    pub fn search(&self) -> Option<&Search> {
        match &self.phase {
            Phase::Lookup(lookup) => Some(&lookup.search),
            Phase::Load(load) => Some(&load.search),
            Phase::Done(_) => None,
        }
    }

    pub(super) fn search_mut(&mut self) -> Option<&mut Search> {
        match &mut self.phase {
            Phase::Lookup(lookup) => Some(&mut lookup.search),
            Phase::Load(load) => Some(&mut load.search),
            Phase::Done(_) => None,
        }
    }

    /// Notes a failure for the message of the result, unless the job is done.
    pub fn note_trouble(&mut self, why: String) {
        if let Some(search) = self.search_mut() {
            search.trouble = Some(why);
        }
    }

    /// Keys found in a backend that has not been asked for their bytes yet.
    pub fn to_ask(&self) -> impl Iterator<Item = usize> {
        let (pins, load) = match &self.phase {
            Phase::Lookup(lookup) => (Some(&lookup.search.pins), None),
            Phase::Load(load) => (None, Some(load)),
            Phase::Done(_) => (None, None),
        };
        let found = pins.into_iter().flat_map(JobPins::iter);
        let planned = load.into_iter().flat_map(|load| load.planned().iter().copied());
        let elsewhere = load
            .into_iter()
            .flat_map(|load| load.elsewhere.iter().map(|(index, _)| *index).chain(load.asked.keys().copied()));
        found.chain(planned.chain(elsewhere).map(|index| index as usize))
    }
}
