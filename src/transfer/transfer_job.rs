//! One transfer: a store or a load, from its acceptance to its one completion.
//!
//! Its memory in L1 is held by a session of its own (P2). What arrives from below is noted by observers and taken in by the
//! device's threads, which also end it: nothing here runs under a lock of the cache's, and nobody's callback is waited for.

mod parts;
mod settle;

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use self::parts::Part;
use super::copy::{Fragment, Way};
use super::device::{Event, Piece, Point, Work};
use super::page_pool::Pool;
use super::pieces::{Batch, Cut, Place, Source};
use super::registry::Transfers;
use crate::abi::{JobResult, View};
use crate::cache::Cache;
use crate::config::{JobObserver, Notify};
use crate::error::{
    Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_INVALID, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD,
    KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result, Status,
};
use crate::key::Key;

/// From so many bytes on a transfer goes past the caches: with its two sides it is larger than a core's own.
const COLD_BYTES: u64 = 2 << 20;
/// Waking another thread costs what copying some hundred KiB does.
const SHARED_BYTES: u64 = 1 << 20;

/// A prefetch of some of its keys that has ended.
struct Arrival {
    keys: Vec<usize>,
    /// What becomes of those that it did not bring.
    absent: Status,
}

/// What changes while it lives.
pub struct Progress {
    /// What became of each key; PENDING until known.
    pub statuses: Vec<Status>,
    /// Where the objects are that are there, until it ends.
    places: Vec<Option<Place>>,
    /// How many blocks each object has, where that is known.
    there: Vec<u32>,
    batches: Vec<Batch>,
    /// Whether what is copied is committed part by part.
    pub streams: bool,
    parts: Vec<Part>,
    /// Why a store was given no more memory.
    shortage: Option<(Status, String)>,
    arrived: Vec<Arrival>,
    /// Prefetches that have not ended, and rests of a store that wait for memory.
    pub expected: usize,
    /// Steps under way: the submission, pieces being copied, arrivals being taken in.
    busy: usize,
    /// Bytes of each layer still to be copied.
    pub left: Vec<u64>,
    /// Bytes of each layer that a device with streams has not queued yet.
    unqueued: Vec<u64>,
    /// Where the last that it has queued of each layer is in its order.
    pub marks: Vec<Option<Arc<dyn Event>>>,
    /// Whether a block that is asked for cannot be had.
    short: bool,
    moved: u64,
    /// Bytes that are there and in no piece yet.
    uncut: u64,
    began: Option<Instant>,
    stopped: Option<(Status, String)>,
    /// Why the first piece that failed did.
    failure: Option<Error>,
    ending: bool,
    /// How to tell; taken by the completion, so that there is one.
    notify: Option<Notify>,
    /// Its answer, once it is done.
    pub answer: Option<JobResult>,
    /// Forgotten by its caller.
    pub released: bool,
}

/// A transfer.
pub struct Transfer {
    /// Its number.
    pub id: u64,
    /// The session it is for.
    pub session: u64,
    /// The session that holds its memory.
    pub copy: u64,
    /// The pool it goes to or comes from.
    pub pool: Arc<Pool>,
    way: Way,
    keys: Vec<Key>,
    /// So many for each key as a chunk has blocks; negative ones are passed over.
    blocks: Vec<i32>,
    return_shares: bool,
    /// Behind which point of the caller's stream, until it ends.
    point: Mutex<Point>,
    submitted: Instant,
    bytes: u64,
    table: Weak<Transfers>,
    /// What changes.
    pub progress: Mutex<Progress>,
    /// Told when a layer or all of it is done.
    pub changed: Condvar,
    me: Weak<Transfer>,
}

/// What a transfer is made from.
pub struct Plan {
    /// Its number.
    pub id: u64,
    /// Its pool.
    pub pool: Arc<Pool>,
    /// The session it is for.
    pub session: u64,
    /// The session that holds its memory.
    pub copy: u64,
    /// Which way it goes.
    pub way: Way,
    /// Its keys.
    pub keys: Vec<Key>,
    /// Its blocks.
    pub blocks: Vec<i32>,
    /// Return the session's own shares at the end.
    pub return_shares: bool,
    /// Behind which point of the caller's stream.
    pub point: Point,
    /// How its end is reported.
    pub notify: Notify,
    /// When it was submitted.
    pub submitted: Instant,
}

fn blocks_in(blocks: &[i32]) -> u64 {
    blocks.iter().filter(|&&id| id >= 0).count() as u64
}

impl Transfer {
    /// Nothing is there yet, and it does not end before it is `submitted`.
    pub fn new(plan: Plan, table: Weak<Transfers>) -> Arc<Transfer> {
        let layout = &plan.pool.layout;
        let mut left = vec![0; layout.layers.len()];
        for (key, blocks) in plan.keys.iter().zip(plan.blocks.chunks(layout.blocks_per_chunk as usize)) {
            let Some(group) = layout.groups.get(&key.group) else { continue };
            for (layer, left) in left.iter_mut().enumerate() {
                *left += group.layer_bytes(layer) * blocks_in(blocks);
            }
        }
        let count = plan.keys.len();
        let progress = Progress {
            statuses: vec![KVKEEP_PENDING; count],
            places: vec![None; count],
            there: vec![u32::MAX; count],
            batches: Vec::new(),
            streams: false,
            parts: Vec::new(),
            shortage: None,
            arrived: Vec::new(),
            expected: 0,
            busy: 1,
            left: left.clone(),
            unqueued: left.clone(),
            marks: vec![None; left.len()],
            short: false,
            moved: 0,
            uncut: 0,
            began: None,
            stopped: None,
            failure: None,
            ending: false,
            notify: Some(plan.notify),
            answer: None,
            released: false,
        };
        Arc::new_cyclic(|me| Transfer {
            id: plan.id,
            session: plan.session,
            copy: plan.copy,
            pool: plan.pool,
            way: plan.way,
            keys: plan.keys,
            blocks: plan.blocks,
            return_shares: plan.return_shares,
            point: Mutex::new(plan.point),
            submitted: plan.submitted,
            bytes: left.iter().sum(),
            table,
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            me: me.clone(),
        })
    }

    fn blocks_of(&self, key: usize) -> &[i32] {
        let per_chunk = self.pool.layout.blocks_per_chunk as usize;
        &self.blocks[key * per_chunk..][..per_chunk]
    }

    /// How much of the first `there` blocks of a key is asked for.
    fn bytes_of(&self, key: usize, there: u32) -> u64 {
        let group = self.pool.layout.groups.get(&self.keys[key].group);
        group.map_or(0, |group| group.block_bytes) * blocks_in(&self.blocks_of(key)[..there as usize])
    }

    /// Whether some of a key that is there is copied in a layer.
    fn is_in_layer(&self, progress: &Progress, key: usize, layer: usize) -> bool {
        let group = self.pool.layout.groups.get(&self.keys[key].group);
        group.is_some_and(|group| group.layer_bytes(layer) > 0) && self.bytes_of(key, progress.there[key]) > 0
    }

    /// Lets the device know that there is something to do.
    pub fn start(self: &Arc<Self>) {
        let point = self.point.lock().clone();
        self.pool.device.start(self.clone(), point);
    }

    /// All is known that its submission finds out.
    pub fn submitted(self: &Arc<Self>) {
        self.progress.lock().busy -= 1;
        self.start();
    }

    /// Takes in what is known of some keys: their objects are where the views say, or are not to be had.
    pub fn take_in(&self, cache: &dyn Cache, progress: &mut Progress, keys: &[usize], views: &[View]) {
        let mut ready = Vec::new();
        for (&key, view) in keys.iter().zip(views) {
            match self.place(cache, key, view) {
                Ok(place) => {
                    progress.short |= self.strike(progress, key, place.blocks);
                    progress.there[key] = place.blocks;
                    progress.uncut += self.bytes_of(key, place.blocks);
                    progress.places[key] = Some(place);
                    ready.push(key);
                }
                Err(status) => self.fail(progress, key, status),
            }
        }
        if !ready.is_empty() {
            let keys: Arc<[usize]> = ready.into();
            if progress.streams {
                let bytes = keys.iter().map(|&key| self.bytes_of(key, progress.there[key])).sum();
                progress.parts.push(Part::new(keys.clone(), bytes));
            }
            progress.batches.push(Batch::new(keys));
        }
    }

    fn place(&self, cache: &dyn Cache, key: usize, view: &View) -> std::result::Result<Place, Status> {
        let status = Status::from_number(view.status).unwrap_or(KVKEEP_ERR_INTERNAL);
        if status != KVKEEP_OK {
            return Err(status);
        }
        let layout = &self.pool.layout;
        let per_block = layout.groups.get(&self.keys[key].group).map_or(0, |group| group.block_bytes);
        let whole = per_block != 0 && view.size.is_multiple_of(per_block);
        let blocks = if whole { view.size / per_block } else { 0 };
        if blocks == 0 || blocks > u64::from(layout.blocks_per_chunk) {
            // Stored by somebody whose pages look different.
            return Err(KVKEEP_ERR_INVALID);
        }
        let arena = cache.arena_of(view).ok_or(KVKEEP_ERR_INTERNAL)?;
        Ok(Place { arena, data: view.data.expose_provenance() as u64, blocks: blocks as u32 })
    }

    /// Takes the blocks of a key from number `there` on off what is left to copy. Whether any of them was asked for.
    fn strike(&self, progress: &mut Progress, key: usize, there: u32) -> bool {
        let gone = blocks_in(&self.blocks_of(key)[there as usize..]);
        if gone > 0
            && let Some(group) = self.pool.layout.groups.get(&self.keys[key].group)
        {
            let Progress { left, unqueued, .. } = progress;
            for (layer, (left, unqueued)) in left.iter_mut().zip(unqueued).enumerate() {
                *left -= group.layer_bytes(layer) * gone;
                *unqueued -= group.layer_bytes(layer) * gone;
            }
        }
        gone > 0
    }

    /// Nothing of a key is copied, because `status`; OK where nothing need be.
    pub fn fail(&self, progress: &mut Progress, key: usize, status: Status) {
        progress.statuses[key] = status;
        progress.short |= status != KVKEEP_OK;
        self.strike(progress, key, 0);
    }

    /// Stops what has not started. It completes when what is in flight has landed.
    pub fn stop(self: &Arc<Self>, status: Status, why: &str) {
        let mut progress = self.progress.lock();
        if progress.stopped.is_none() && !progress.ending {
            progress.stopped = Some((status, why.to_owned()));
            progress.batches.clear();
            drop(progress);
            self.start();
        }
    }

    fn arrivals(&self, cache: &dyn Cache, arrived: &[Arrival]) {
        let places: Vec<usize> = arrived.iter().flat_map(|arrival| &arrival.keys).copied().collect();
        let keys: Vec<Key> = places.iter().map(|&key| self.keys[key]).collect();
        let mut views = vec![View::none(KVKEEP_ERR_NOT_FOUND); keys.len()];
        if let Err(error) = cache.get_views(self.copy, &keys, &mut views) {
            views.fill(View::none(error.status));
        }
        let absent = arrived.iter().flat_map(|arrival| arrival.keys.iter().map(|_| arrival.absent));
        for (view, absent) in views.iter_mut().zip(absent) {
            if view.status == KVKEEP_ERR_NOT_HELD as i32 {
                view.status = absent as i32;
            }
        }
        self.take_in(cache, &mut self.progress.lock(), &places, &views);
        self.changed.notify_all();
    }

    /// What became of each block of a key.
    pub fn block_statuses<'a>(&'a self, progress: &'a Progress, key: usize) -> impl Iterator<Item = Status> + 'a {
        let status = progress.statuses[key];
        let there = progress.there[key] as usize;
        self.blocks_of(key).iter().enumerate().map(move |(block, &id)| match status {
            _ if id < 0 => KVKEEP_OK,
            KVKEEP_OK if block >= there => KVKEEP_ERR_NOT_FOUND,
            status => status,
        })
    }

    /// Number of its keys.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Whether a device with streams has queued what there is of a layer, or as for `layer_done`.
    pub fn layer_queued(&self, progress: &Progress, layer: usize) -> Option<Status> {
        let queued = progress.stopped.is_none() && progress.unqueued[layer] == 0;
        if queued { Some(so_far(progress)) } else { self.layer_done(progress, layer) }
    }

    /// Whether nothing of a layer is left to copy, and if so whether all that was asked was there.
    pub fn layer_done(&self, progress: &Progress, layer: usize) -> Option<Status> {
        let failed =
            progress.answer.and_then(|answer| Status::from_number(answer.status)).filter(|&status| (status as i32) < 0);
        if failed.is_some() || progress.stopped.is_some() {
            return failed;
        }
        (progress.left[layer] == 0 || progress.answer.is_some()).then(|| so_far(progress))
    }
}

fn so_far(progress: &Progress) -> Status {
    if progress.short { KVKEEP_PARTIAL } else { KVKEEP_OK }
}

impl Work for Transfer {
    fn way(&self) -> Way {
        self.way
    }

    fn next(&self, fragments: &mut Vec<Fragment>) -> Option<Piece> {
        let mut progress = self.progress.lock();
        if !progress.arrived.is_empty() && progress.stopped.is_none() {
            let arrived = std::mem::take(&mut progress.arrived);
            progress.busy += 1;
            drop(progress);
            if let Some(table) = self.table.upgrade() {
                self.arrivals(table.cache(), &arrived);
            }
            progress = self.progress.lock();
            progress.busy -= 1;
            if !progress.batches.is_empty()
                && let Some(me) = self.me.upgrade()
            {
                // Another thread that found nothing meanwhile has taken it off the device's list.
                me.start();
            }
        }
        if progress.stopped.is_some() {
            progress.batches.clear();
        }
        let Progress { batches, places, .. } = &mut *progress;
        let source = Source {
            layout: &self.pool.layout,
            promise: &self.pool.promise,
            group_of: &|key| self.keys[key].group,
            blocks: &self.blocks,
            places,
        };
        while let Some(batch) = batches.first_mut() {
            let Some(cut) = batch.cut(&source, fragments) else {
                batches.remove(0);
                continue;
            };
            progress.busy += 1;
            progress.uncut -= cut.bytes;
            progress.began.get_or_insert_with(Instant::now);
            let (cold, more) = (self.bytes >= COLD_BYTES, progress.uncut >= SHARED_BYTES);
            let Cut { layer, bytes, keys, arena } = cut;
            return Some(Piece { way: self.way, layer, bytes, keys, arena, cold, more });
        }
        drop(progress);
        self.end_if_over();
        None
    }

    fn queued(&self, piece: &Piece, event: Arc<dyn Event>) {
        let mut progress = self.progress.lock();
        progress.unqueued[piece.layer] -= piece.bytes;
        progress.marks[piece.layer] = Some(event);
        if progress.unqueued[piece.layer] == 0 {
            self.changed.notify_all();
        }
    }

    fn landed(&self, piece: Piece, result: Result<()>) {
        let mut progress = self.progress.lock();
        progress.busy -= 1;
        progress.left[piece.layer] -= piece.bytes;
        match result {
            Ok(()) => progress.moved += piece.bytes,
            Err(error) => {
                for &key in piece.keys.keys() {
                    if progress.statuses[key] == KVKEEP_PENDING && self.is_in_layer(&progress, key, piece.layer) {
                        progress.statuses[key] = error.status;
                    }
                }
                progress.short = true;
                progress.failure.get_or_insert(error);
            }
        }
        if progress.left[piece.layer] == 0 {
            self.changed.notify_all();
        }
        if let Some(keys) = progress.part_landed(&piece) {
            progress.busy += 1;
            drop(progress);
            self.commit_part(&keys);
            progress = self.progress.lock();
            progress.busy -= 1;
        }
        let last = progress.busy == 0;
        drop(progress);
        if last {
            self.end_if_over();
        }
    }

    fn broken(&self) {
        let Some(table) = self.table.upgrade() else { return };
        table.cache().poison();
        if self.progress.lock().answer.is_none() {
            let why = (KVKEEP_ERR_INTERNAL, "a bug in kvkeep was caught while copying".to_owned());
            self.conclude(&table, vec![KVKEEP_ERR_INTERNAL; self.keys.len()], Some(why));
        }
    }
}

/// Follows a prefetch of some of a load's keys.
pub struct Follower {
    /// The load.
    pub transfer: Arc<Transfer>,
    /// Places of the keys.
    pub keys: Vec<usize>,
}

impl JobObserver for Follower {
    fn done(&self, result: &JobResult, _held: &[bool]) {
        let absent = match Status::from_number(result.status).unwrap_or(KVKEEP_ERR_INTERNAL) {
            KVKEEP_OK if result.failed_keys > 0 => KVKEEP_ERR_IO,
            KVKEEP_OK => KVKEEP_ERR_NOT_FOUND,
            status => status,
        };
        {
            let mut progress = self.transfer.progress.lock();
            progress.expected -= 1;
            progress.arrived.push(Arrival { keys: self.keys.clone(), absent });
        }
        self.transfer.start();
    }
}

/// The error of a wait that took too long.
pub fn not_done(id: u64, what: &str) -> Error {
    Error::new(
        crate::error::KVKEEP_ERR_TIMEOUT,
        format!("{what} of transfer {id} is not done yet: wait longer or cancel it"),
    )
}
