//! The states of a transfer and every transition between them.
//!
//! ```text
//! Copying ──────────────► Settling ──► Done
//!    └────► Stopping ────────┘
//! ```
//!
//! A transfer is copying from its submission on. A stop makes it stopping: nothing new starts, and what is in flight lands. It settles when
//! no step is under way and nothing more is expected, and is done when it has its answer. A bug that is caught makes it done at once.
//!
//! All functions here run under the transfer's lock (`Transfer::progress`) and call nothing that takes another, but for
//! [`Cache::arena_of`].

use std::sync::Arc;
use std::time::Instant;

use super::prefetch_arrival::PrefetchArrival;
use super::targets::{Targets, blocks_in};
use crate::abi::{JobResult, View};
use crate::cache::Cache;
use crate::config::Notify;
use crate::error::{Error, KVKEEP_ERR_EXISTS, KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result, Status};
use crate::transfer::copy_device::{CopyPiece, StreamEvent};
use crate::transfer::cpu_copy::{Fragment, Way};
use crate::transfer::pieces::{BatchSource, CutPiece, KeyBatch, ObjectPlace};

/// From so many bytes on a transfer goes past the caches: with its two sides it is larger than a core's own.
const COLD_BYTES: u64 = 2 << 20;
/// Waking another thread costs what copying some hundred KiB does.
const SHARED_BYTES: u64 = 1 << 20;

/// Why a transfer ends before its time, or without all that was asked.
pub type StopReason = (Status, String);

/// Keys of a store that were staged together, and are committed as soon as all of them are copied.
struct StorePart {
    keys: Arc<[usize]>,
    /// Bytes that are not copied yet.
    left: u64,
}

/// The state that every phase but the last has.
#[derive(Default)]
pub struct Steps {
    /// Steps under way: the submission, pieces being copied, arrivals being taken in, parts being committed.
    busy: usize,
    /// Bytes copied so far.
    pub copied: u64,
    /// When the first piece was cut.
    pub began: Option<Instant>,
    /// Why the first piece that failed did.
    pub failure: Option<Error>,
    /// Why a store was given no more memory, or the first prefetch of a load that fell short did.
    pub shortage: Option<StopReason>,
    /// How the end is reported, once.
    pub notify: Notify,
}

/// The state of a transfer that copies.
struct Copying {
    steps: Steps,
    /// Where the objects are that are there.
    places: Vec<Option<ObjectPlace>>,
    batches: Vec<KeyBatch>,
    /// The parts of a store that is committed part by part, since L1 has not memory for all of it at once.
    parts: Option<Vec<StorePart>>,
    /// Prefetches that have ended and are not taken in yet.
    arrived: Vec<PrefetchArrival>,
    /// Prefetches that have not ended, and the remainder of a store that waits for memory.
    expected: usize,
    /// Bytes that are there and in no piece yet.
    uncut: u64,
}

enum TransferPhase {
    Copying(Copying),
    Stopping(Steps, StopReason),
    /// One thread commits what was copied and ends the transfer's session.
    Settling(Steps, Option<StopReason>),
    Done {
        answer: JobResult,
        stopped: bool,
    },
}

/// The part of a transfer that changes.
pub struct Progress {
    /// The status of each key; PENDING until known.
    statuses: Vec<Status>,
    /// How many blocks each object has, where that is known.
    there: Vec<u32>,
    /// Bytes of each layer still to be copied.
    left: Vec<u64>,
    /// Bytes of each layer that a device with streams has not queued yet.
    unqueued: Vec<u64>,
    /// The last event that a device with streams has recorded for each layer.
    marks: Vec<Option<Arc<dyn StreamEvent>>>,
    /// A block that is asked for cannot be had.
    short: bool,
    /// The caller has released the transfer.
    released: bool,
    phase: TransferPhase,
}

impl Progress {
    /// Copying, with the submission under way.
    pub fn new(targets: &Targets, notify: Notify) -> Progress {
        let (count, left) = (targets.keys.len(), targets.layer_bytes());
        Progress {
            statuses: vec![KVKEEP_PENDING; count],
            there: vec![u32::MAX; count],
            unqueued: left.clone(),
            marks: vec![None; left.len()],
            left,
            short: false,
            released: false,
            phase: TransferPhase::Copying(Copying {
                steps: Steps { busy: 1, notify, ..Steps::default() },
                places: vec![None; count],
                batches: Vec::new(),
                parts: None,
                arrived: Vec::new(),
                expected: 0,
                uncut: 0,
            }),
        }
    }

    fn copying(&mut self) -> Option<&mut Copying> {
        match &mut self.phase {
            TransferPhase::Copying(copying) => Some(copying),
            _ => None,
        }
    }

    fn steps(&mut self) -> Option<&mut Steps> {
        match &mut self.phase {
            TransferPhase::Copying(Copying { steps, .. })
            | TransferPhase::Stopping(steps, _)
            | TransferPhase::Settling(steps, _) => Some(steps),
            TransferPhase::Done { .. } => None,
        }
    }

    fn is_stopped(&self) -> bool {
        match &self.phase {
            TransferPhase::Copying(_) => false,
            TransferPhase::Stopping(..) => true,
            TransferPhase::Settling(_, stopped) => stopped.is_some(),
            TransferPhase::Done { stopped, .. } => *stopped,
        }
    }

    /// Whether it still takes keys and arrivals.
    pub fn is_copying(&self) -> bool {
        matches!(self.phase, TransferPhase::Copying(_))
    }

    /// Its answer, once it is done.
    pub fn answer(&self) -> Option<&JobResult> {
        match &self.phase {
            TransferPhase::Done { answer, .. } => Some(answer),
            _ => None,
        }
    }

    /// Whether its caller has released it.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// The caller releases it, in any phase.
    pub fn release(&mut self) {
        self.released = true;
    }

    /// The status of each key so far.
    pub fn statuses(&self) -> &[Status] {
        &self.statuses
    }

    /// The event that a stream waits for before it uses a layer; none where all of the layer is copied.
    pub fn mark_of(&self, layer: usize) -> Option<Arc<dyn StreamEvent>> {
        self.marks[layer].clone().filter(|_| self.left[layer] > 0)
    }

    /// OK, or PARTIAL where less than was asked for is there.
    fn so_far(&self) -> Status {
        if self.short { KVKEEP_PARTIAL } else { KVKEEP_OK }
    }

    /// The status of a layer that a device with streams has queued in full; else as [`layer_done`](Progress::layer_done).
    pub fn layer_queued(&self, layer: usize) -> Option<Status> {
        let queued = !self.is_stopped() && self.unqueued[layer] == 0;
        if queued { Some(self.so_far()) } else { self.layer_done(layer) }
    }

    /// The status of a layer of which nothing is left to copy.
    pub fn layer_done(&self, layer: usize) -> Option<Status> {
        let answer = self.answer();
        let failed = answer.and_then(|answer| Status::from_number(answer.status)).filter(|&status| (status as i32) < 0);
        if failed.is_some() || self.is_stopped() {
            return failed;
        }
        (self.left[layer] == 0 || answer.is_some()).then(|| self.so_far())
    }

    /// The status of each block of a key.
    pub fn block_statuses<'a>(&'a self, targets: &'a Targets, key: usize) -> impl Iterator<Item = Status> + 'a {
        let status = self.statuses[key];
        let there = self.there[key] as usize;
        targets.blocks_of(key).iter().enumerate().map(move |(block, &id)| match status {
            _ if id < 0 => KVKEEP_OK,
            KVKEEP_OK if block >= there => crate::error::KVKEEP_ERR_NOT_FOUND,
            status => status,
        })
    }

    /// The submission of a store: its remainder waits for memory, so that it is committed part by part.
    pub fn expect_memory(&mut self) {
        if let Some(copying) = self.copying() {
            (copying.parts, copying.expected) = (Some(Vec::new()), 1);
        }
    }

    /// The submission of a load: so many prefetches will end.
    pub fn expect_prefetches(&mut self, count: usize) {
        if let Some(copying) = self.copying() {
            copying.expected = count;
        }
    }

    /// The submission of a load: one of the expected prefetches was refused with `status`, so that its keys fail.
    pub fn prefetch_refused(&mut self, targets: &Targets, keys: &[usize], status: Status) {
        if let Some(copying) = self.copying() {
            copying.expected -= 1;
        }
        keys.iter().for_each(|&key| self.fail(targets, key, status));
    }

    /// Takes in keys whose objects are where the views have them, or are not to be had. Called by the submission, and by a device's
    /// thread for arrivals.
    pub fn take_in(&mut self, targets: &Targets, cache: &dyn Cache, keys: &[usize], views: &[View]) {
        let mut ready = Vec::new();
        for (&key, view) in keys.iter().zip(views) {
            match targets.place(cache, key, view) {
                Ok(place) => {
                    self.short |= self.strike(targets, key, place.blocks);
                    self.there[key] = place.blocks;
                    if let Some(copying) = self.copying() {
                        copying.uncut += targets.bytes_of(key, place.blocks);
                        copying.places[key] = Some(place);
                        ready.push(key);
                    }
                }
                Err(status) => self.fail(targets, key, status),
            }
        }
        if ready.is_empty() {
            return;
        }
        let bytes = ready.iter().map(|&key| targets.bytes_of(key, self.there[key])).sum();
        if let Some(copying) = self.copying() {
            let keys: Arc<[usize]> = ready.into();
            if let Some(parts) = &mut copying.parts {
                parts.push(StorePart { keys: keys.clone(), left: bytes });
            }
            copying.batches.push(KeyBatch::new(keys));
        }
    }

    /// As [`take_in`](Progress::take_in), for keys of a store. One that another has stored already is as good as copied. Called by the
    /// submission and by the thread of large stores.
    pub fn take_stored(&mut self, targets: &Targets, cache: &dyn Cache, keys: &[usize], views: &[View]) {
        let (mut staged, mut staged_views) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        for (&key, view) in keys.iter().zip(views) {
            if view.status == KVKEEP_ERR_EXISTS as i32 {
                self.fail(targets, key, KVKEEP_OK);
            } else {
                staged.push(key);
                staged_views.push(*view);
            }
        }
        self.take_in(targets, cache, &staged, &staged_views);
    }

    /// Nothing of a key is copied, because of `status`; OK where nothing need be.
    pub fn fail(&mut self, targets: &Targets, key: usize, status: Status) {
        self.statuses[key] = status;
        self.short |= status != KVKEEP_OK;
        self.strike(targets, key, 0);
    }

    /// Takes the blocks of a key from number `there` on off the bytes that are left. Whether any of them was asked for.
    fn strike(&mut self, targets: &Targets, key: usize, there: u32) -> bool {
        let gone = blocks_in(&targets.blocks_of(key)[there as usize..]);
        if gone > 0
            && let Some(group) = targets.pool.layout.groups.get(&targets.keys[key].group)
        {
            for (layer, (left, unqueued)) in self.left.iter_mut().zip(&mut self.unqueued).enumerate() {
                *left -= group.layer_bytes(layer) * gone;
                *unqueued -= group.layer_bytes(layer) * gone;
            }
        }
        gone > 0
    }

    /// A prefetch has ended. Called by its observer, from a thread of the cache.
    pub fn prefetch_ended(&mut self, arrival: PrefetchArrival) {
        if let Some(copying) = self.copying() {
            if !arrival.why.is_empty() {
                copying.steps.shortage.get_or_insert((arrival.absent, arrival.why.clone()));
            }
            copying.expected -= 1;
            copying.arrived.push(arrival);
        }
    }

    /// The submission: memory was refused for the reason given.
    pub fn refused(&mut self, why: StopReason) {
        if let Some(steps) = self.steps() {
            steps.shortage = Some(why);
        }
    }

    /// The thread of large stores stages nothing more: `left` fail for the reason given, if there is one.
    pub fn staged_all(&mut self, targets: &Targets, left: &[usize], why: Option<StopReason>) {
        if let Some(copying) = self.copying() {
            copying.expected -= 1;
        }
        if let Some((status, why)) = why {
            left.iter().for_each(|&key| self.fail(targets, key, status));
            self.refused((status, why));
        }
    }

    /// A device's thread takes arrivals in hand, if there are any: a step that [`step_ended`](Progress::step_ended) ends.
    pub fn begin_arrivals(&mut self) -> Option<Vec<PrefetchArrival>> {
        let copying = self.copying().filter(|copying| !copying.arrived.is_empty())?;
        copying.steps.busy += 1;
        Some(std::mem::take(&mut copying.arrived))
    }

    /// A step has ended: the submission, the arrivals of a device's thread, or the commit of a part. True if it was the last one.
    pub fn step_ended(&mut self) -> bool {
        self.steps().is_some_and(|steps| {
            steps.busy -= 1;
            steps.busy == 0
        })
    }

    /// Whether keys wait to be cut into pieces.
    pub fn has_batches(&self) -> bool {
        matches!(&self.phase, TransferPhase::Copying(copying) if !copying.batches.is_empty())
    }

    /// Copying becomes stopping: a cancel, an abort, a close. False in any other phase, where it is too late.
    pub fn stop(&mut self, status: Status, why: &str) -> bool {
        let Some(copying) = self.copying() else { return false };
        let steps = std::mem::take(&mut copying.steps);
        self.phase = TransferPhase::Stopping(steps, (status, why.to_owned()));
        true
    }

    /// A device's thread asks for the next piece: a step that [`landed`](Progress::landed) ends. `total`: bytes of the transfer.
    pub fn cut(&mut self, targets: &Targets, way: Way, total: u64, fragments: &mut Vec<Fragment>) -> Option<CopyPiece> {
        let Copying { steps, batches, places, uncut, .. } = self.copying()?;
        let source = BatchSource {
            layout: &targets.pool.layout,
            promise: &targets.pool.promise,
            group_of: &|key| targets.keys[key].group,
            blocks: &targets.blocks,
            places,
        };
        while let Some(batch) = batches.first_mut() {
            let Some(cut) = batch.cut(&source, fragments) else {
                batches.remove(0);
                continue;
            };
            steps.busy += 1;
            *uncut -= cut.bytes;
            steps.began.get_or_insert_with(Instant::now);
            let (cold, more) = (total >= COLD_BYTES, *uncut >= SHARED_BYTES);
            let CutPiece { layer, bytes, keys, arena } = cut;
            return Some(CopyPiece { way, layer, bytes, keys, arena, cold, more });
        }
        None
    }

    /// A device has queued a piece. True if that was the last one of its layer.
    pub fn queued(&mut self, piece: &CopyPiece, event: Arc<dyn StreamEvent>) -> bool {
        self.unqueued[piece.layer] -= piece.bytes;
        self.marks[piece.layer] = Some(event);
        self.unqueued[piece.layer] == 0
    }

    /// A piece has landed, well or not: its step ends, unless it was the last of a part, whose keys are given to be committed as
    /// another step. Called by a device's thread.
    pub fn landed(&mut self, targets: &Targets, piece: &CopyPiece, result: Result<()>) -> LandedPiece {
        self.left[piece.layer] -= piece.bytes;
        match result {
            Ok(()) => {
                if let Some(steps) = self.steps() {
                    steps.copied += piece.bytes;
                }
            }
            Err(error) => {
                for &key in piece.keys.keys() {
                    if self.statuses[key] == KVKEEP_PENDING && targets.is_in_layer(key, self.there[key], piece.layer) {
                        self.statuses[key] = error.status;
                    }
                }
                self.short = true;
                if let Some(steps) = self.steps() {
                    steps.failure.get_or_insert(error);
                }
            }
        }
        let layer_done = self.left[piece.layer] == 0;
        match self.part_landed(piece) {
            Some(part) => LandedPiece { layer_done, part: Some(part), last: false },
            None => LandedPiece { layer_done, part: None, last: self.step_ended() },
        }
    }

    /// The keys of the piece's part, if it was the last piece of that.
    fn part_landed(&mut self, piece: &CopyPiece) -> Option<Arc<[usize]>> {
        let parts = self.copying()?.parts.as_mut()?;
        let at = parts.iter().position(|part| piece.keys.is_of(&part.keys))?;
        parts[at].left -= piece.bytes;
        (parts[at].left == 0).then(|| parts.swap_remove(at).keys)
    }

    /// The keys of a part that were copied, and those that were not. None once stopped.
    pub fn split_part(&self, keys: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
        self.is_copying().then(|| keys.iter().partition(|&&key| self.statuses[key] == KVKEEP_PENDING))
    }

    /// The keys of a part were committed, or refused with their statuses.
    pub fn part_committed(&mut self, keys: &[usize], statuses: impl Iterator<Item = Status>) {
        for (&key, status) in keys.iter().zip(statuses) {
            self.statuses[key] = status;
            self.short |= status != KVKEEP_OK;
        }
    }

    /// Copying or stopping becomes settling, if no step is under way and nothing is left to do. Gives what became of each key so far,
    /// and why it was stopped, to the thread that settles it.
    pub fn begin_settling(&mut self) -> Option<(Vec<Status>, Option<StopReason>)> {
        let (steps, stopped) = match &mut self.phase {
            TransferPhase::Copying(copying)
                if copying.steps.busy == 0
                    && copying.batches.is_empty()
                    && copying.arrived.is_empty()
                    && copying.expected == 0 =>
            {
                (std::mem::take(&mut copying.steps), None)
            }
            TransferPhase::Stopping(steps, why) if steps.busy == 0 => (std::mem::take(steps), Some(why.clone())),
            _ => return None,
        };
        self.phase = TransferPhase::Settling(steps, stopped.clone());
        Some((self.statuses.clone(), stopped))
    }

    /// Any phase before the last becomes done, with the answer that `make` gives. Gives the answer and how to report it; None if it was
    /// done already.
    pub fn finish(
        &mut self,
        statuses: Vec<Status>,
        make: impl FnOnce(&Progress, &Steps) -> JobResult,
    ) -> Option<(JobResult, Notify)> {
        let stopped = self.is_stopped();
        let steps = std::mem::take(self.steps()?);
        self.short |= statuses.iter().any(|&status| status != KVKEEP_OK);
        self.statuses = statuses;
        let answer = make(self, &steps);
        self.phase = TransferPhase::Done { answer, stopped };
        self.marks.fill(None);
        Some((answer, steps.notify))
    }

    /// Whether a block that is asked for cannot be had.
    pub fn is_short(&self) -> bool {
        self.short
    }
}

/// The consequences of a landed piece.
pub struct LandedPiece {
    /// Nothing of its layer is left.
    pub layer_done: bool,
    /// The keys of a part that is copied: the caller commits them and then ends the step.
    pub part: Option<Arc<[usize]>>,
    /// No step is under way any more.
    pub last: bool,
}
