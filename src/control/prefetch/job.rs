//! One prefetch job: what it asked, what is known of each key, and its answer.

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::pins::Pins;
use super::plan::{Plan, Question};
use crate::abi::{Completion, JobKind, JobResult, KVKEEP_MESSAGE_BYTES, KVKEEP_TIERS_MAX};
use crate::config::{JobObserver, Notify, PrefetchRequest};
use crate::control::backends::{Tier, TierList};
use crate::error::Status;
use crate::key::{Key, ObjectKey};
use crate::l1::{Landed, SpaceInfo};

/// Where a key was found: not yet.
pub const NOWHERE: u8 = u8::MAX;

/// Where a job is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Tiers are being asked.
    Lookup,
    /// Bytes are being loaded, or wait for their turn.
    Load,
    /// Over.
    Done,
}

/// How a key of a job came into L1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// It was loaded. So many bytes count for this job: none if they count for another that waits for the same object.
    Loaded(u64),
    /// It was there when its turn came.
    There,
}

/// What changes while a job lives.
pub struct Progress {
    /// Its phase.
    pub phase: Phase,
    /// Keys whose shares its session holds.
    pub held: Vec<bool>,
    /// Where each key was found: 0 for L1, the tier's place for a backend, or [`NOWHERE`].
    pub found: Vec<u8>,
    /// Payload sizes of the keys found in a backend.
    pub sizes: Vec<u64>,
    /// The backends it asked.
    pub tiers: TierList,
    /// Pins on its objects in those backends.
    pub pins: Pins,
    /// Lookups on their way.
    pub asking: usize,
    /// Until when missing chunks are asked for again.
    pub ask_until: Option<Instant>,
    /// Whether it waits for commits.
    pub awaiting: bool,
    /// The lookup's answer.
    pub lookup: Option<(u32, Instant)>,
    /// Keys still to be loaded, in order; those before `cursor` are on their way or over.
    pub to_load: Vec<u32>,
    /// How far `to_load` has been issued.
    pub cursor: usize,
    /// Keys on their way.
    pub loading: usize,
    /// Planned keys that could not be loaded.
    pub failed: u32,
    /// Bytes loaded.
    pub loaded_bytes: u64,
    /// What went wrong last, for the message.
    pub trouble: Option<String>,
    /// Its answer.
    pub result: Option<JobResult>,
    /// How to tell; taken by the completion, so that there is one.
    pub notify: Option<Notify>,
    /// When it was done.
    pub done_at: Option<Instant>,
    /// Forgotten by its caller.
    pub released: bool,
}

/// One job.
pub struct Job {
    /// Its number.
    pub id: u64,
    /// Its session.
    pub session: u64,
    /// Its space.
    pub space: SpaceInfo,
    /// Its keys, chunk-major.
    pub keys: Vec<Key>,
    /// What it asked, less how to tell.
    pub request: PrefetchRequest,
    /// Of the job of a load: the keys that its request asked for before. Empty if there are none.
    pub asked_before: Vec<bool>,
    /// Who follows it.
    pub observer: Option<Arc<dyn JobObserver>>,
    /// When it was submitted.
    pub submitted: Instant,
    /// Its deadline.
    pub deadline: Instant,
    /// What changes.
    pub progress: Mutex<Progress>,
    /// Told when it is done or released.
    pub done: Condvar,
}

impl Progress {
    /// Keys found in a backend that has not been asked for their bytes yet.
    pub fn to_ask(&self) -> impl Iterator<Item = usize> {
        let found = (self.phase == Phase::Lookup).then(|| self.pins.iter()).into_iter().flatten();
        let planned = if self.phase == Phase::Load { &self.to_load[self.cursor..] } else { &[] };
        found.chain(planned.iter().map(|&index| index as usize))
    }
}

impl Job {
    /// A job just submitted.
    pub fn new(
        id: u64,
        session: u64,
        space: SpaceInfo,
        keys: &[Key],
        mut request: PrefetchRequest,
        submitted: Instant,
        deadline: Instant,
    ) -> Job {
        let notify = std::mem::replace(&mut request.notify, Notify::Poll);
        let observer = match &notify {
            Notify::Observer(observer) => Some(observer.clone()),
            _ => None,
        };
        let progress = Progress {
            phase: Phase::Lookup,
            held: vec![false; keys.len()],
            found: vec![NOWHERE; keys.len()],
            sizes: Vec::new(),
            tiers: TierList::default(),
            pins: Pins::default(),
            asking: 0,
            ask_until: None,
            awaiting: false,
            lookup: None,
            to_load: Vec::new(),
            cursor: 0,
            loading: 0,
            failed: 0,
            loaded_bytes: 0,
            trouble: None,
            result: None,
            notify: Some(notify),
            done_at: None,
            released: false,
        };
        let (progress, done) = (Mutex::new(progress), Condvar::new());
        let keys = keys.to_vec();
        let asked_before = Vec::new();
        Job { id, session, space, keys, request, asked_before, observer, submitted, deadline, progress, done }
    }

    /// Shares of each key it takes.
    pub fn shares(&self) -> u32 {
        self.request.extra_count + 1
    }

    /// Its part in a load.
    pub fn reader(&self) -> Landed {
        Landed { session: self.session, count: self.shares(), keep: !self.request.temporary }
    }

    /// The full name of a key.
    pub fn object(&self, index: usize) -> ObjectKey {
        ObjectKey { space: self.space.tag, key: self.keys[index] }
    }

    /// What it asks for.
    pub fn question(&self) -> Question<'_> {
        Question {
            keys: &self.keys,
            per_chunk: self.request.objects_per_chunk as usize,
            mode: self.request.mode,
            rules: &self.request.group_rules,
        }
    }

    /// The answer when the keys marked in `there` can be had.
    pub fn answer(&self, there: &[bool]) -> Plan {
        self.question().answer(there)
    }

    /// Unpins the pinned keys that `which` chooses.
    pub fn unpin(&self, progress: &mut Progress, which: impl Fn(usize) -> bool) {
        progress.pins.give_back(&progress.tiers, |index| self.object(index), which);
    }

    /// The backend that `place` names.
    pub fn tier<'a>(&self, progress: &'a Progress, place: u8) -> Option<&'a Arc<Tier>> {
        progress.tiers.iter().find(|tier| tier.place == place as usize)
    }

    /// Writes the answer of a job that holds what `progress.held` says.
    pub fn conclude(&self, progress: &mut Progress, chunks: u32, status: Status) -> Completion {
        let now = Instant::now();
        let (lookup_chunks, lookup_at) = progress.lookup.unwrap_or((0, now));
        let mut tier_keys = [0; KVKEEP_TIERS_MAX];
        for (&held, &found) in progress.held.iter().zip(&progress.found) {
            if held && let Some(count) = tier_keys.get_mut(found as usize) {
                *count += 1;
            }
        }
        let since = |later: Instant, earlier: Instant| later.saturating_duration_since(earlier).as_micros() as u64;
        let result = JobResult {
            struct_size: size_of::<JobResult>() as u32,
            abi_version: 0,
            status: status as i32,
            hit_chunks: chunks,
            lookup_chunks,
            failed_keys: progress.failed,
            tier_keys,
            loaded_bytes: progress.loaded_bytes,
            lookup_us: since(lookup_at, self.submitted),
            load_us: since(now, lookup_at),
            total_us: since(now, self.submitted),
            message: message_bytes(progress.trouble.as_deref().unwrap_or("")),
            kind: JobKind::KVKEEP_JOB_PREFETCH as u32,
            asked_keys: self.keys.len() as u32,
            ..JobResult::default()
        };
        progress.result = Some(result);
        result.completion(self.id, self.session)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let Job { keys, space, progress, .. } = self;
        let Progress { pins, tiers, .. } = progress.get_mut();
        pins.give_back(tiers, |index| ObjectKey { space: space.tag, key: keys[index] }, |_| true);
    }
}

/// A message as completions carry it, cut to what fits.
pub fn message_bytes(message: &str) -> [c_char; KVKEEP_MESSAGE_BYTES] {
    let mut bytes = [0; KVKEEP_MESSAGE_BYTES];
    let fits = message.floor_char_boundary(KVKEEP_MESSAGE_BYTES - 1);
    for (place, byte) in bytes.iter_mut().zip(message[..fits].bytes()) {
        *place = byte as c_char;
    }
    bytes
}
