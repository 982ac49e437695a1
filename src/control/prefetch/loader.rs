//! Loading from L2 into L1: bounded, by priority, each absent object once however many jobs want it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::job::{Job, KeySource, NotLoaded};
use super::job_table::JobTable;
use super::load_queue::LoadQueue;
use super::no_room::NoRoom;
use super::phases::LoadPhase;
use crate::arena::Buffer;
use crate::control::backends::BackendSlot;
use crate::control::deadline::{Deadlines, Ticket};
use crate::control::throughput::UnderWay;
use crate::error::{
    Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT,
    KVKEEP_ERR_UNSUPPORTED, Result,
};
use crate::key::{Key, ObjectKey};
use crate::l1::slot::Ref;
use crate::l1::{L1, LoadReader};
use crate::l2::object_header::Header;
use crate::l2::{LoadRequest, LoadSink};
use crate::log::{Log, LogLevel};
use crate::meters::Meters;
use crate::shape::ShapeTag;

/// Keys issued at a time, so that a long job does not keep others from the lock.
const BATCH: usize = 256;

/// Most objects on their way at once: a backend's queue is bounded by number, and writes go to it too.
pub(in crate::control) const LOADS_MAX: usize = 1 << 14;

/// Queued loads are issued again when one in so many of the bytes, or objects, allowed on their way is free.
const REFILL_SHARE: u64 = 4;

/// The jobs that wait for an object on its way, and the key's place in each.
type Readers = Vec<(Arc<Job>, u32)>;

/// An object on its way.
struct PendingLoad {
    readers: Readers,
    /// The object was deleted since: its bytes are not committed when they arrive.
    deleted: bool,
    /// No backend has it any more.
    lost: bool,
}

/// Loads objects for jobs.
pub struct Loader {
    l1: Arc<L1>,
    deadlines: Arc<Deadlines>,
    meters: Arc<Meters>,
    log: Log,
    checksum: bool,
    bytes_max: u64,
    bytes: AtomicU64,
    /// Objects that `bytes` are of.
    pending_count: AtomicUsize,
    pending: Mutex<HashMap<ObjectKey, PendingLoad>>,
    /// How many loads ended with a commit.
    committed: AtomicU64,
    queue: Mutex<LoadQueue>,
    no_room: NoRoom,
    /// The jobs that it loads for, and the bell of the control thread.
    table: Arc<JobTable>,
}

struct Item {
    object: ObjectKey,
    layout: [u8; 16],
    name: Ref,
    bytes: u64,
}

/// Items for one backend, with their buffers and places.
type BackendBatch = (Arc<BackendSlot>, Vec<Item>, Vec<(Buffer, u32)>);

/// An object that was read and verified against its header.
struct Verified<'a> {
    shape: ShapeTag,
    slot: &'a BackendSlot,
    took: Duration,
}

struct LoadBatch {
    loader: Arc<Loader>,
    slot: Arc<BackendSlot>,
    items: Vec<Item>,
    tickets: OnceCell<Vec<Arc<Ticket>>>,
    began: Instant,
    /// Items answered in time, and the bytes of those that were right.
    answered: AtomicUsize,
    read_bytes: AtomicU64,
    _under_way: UnderWay,
}

impl Loader {
    /// A loader for the jobs of `table`, with at most `bytes_max` bytes on their way at once.
    pub fn new(
        table: Arc<JobTable>,
        l1: Arc<L1>,
        deadlines: Arc<Deadlines>,
        meters: Arc<Meters>,
        log: Log,
        checksum: bool,
        bytes_max: u64,
    ) -> Arc<Loader> {
        Arc::new(Loader {
            l1,
            deadlines,
            meters,
            log,
            checksum,
            bytes_max,
            bytes: AtomicU64::new(0),
            pending_count: AtomicUsize::new(0),
            pending: Mutex::default(),
            committed: AtomicU64::new(0),
            queue: Mutex::default(),
            no_room: NoRoom::default(),
            table,
        })
    }

    /// The jobs that it loads for.
    pub fn table(&self) -> &Arc<JobTable> {
        &self.table
    }

    /// Queues a job that has keys to load. False if it waits for loads on their way: when enough of them end, the control thread
    /// is woken.
    pub fn enqueue(&self, job: &Arc<Job>) -> bool {
        self.queue.lock().push(job);
        // Either this thread sees the bytes freed meanwhile, or the thread that frees them sees the job.
        fence(Ordering::SeqCst);
        self.open()
    }

    /// Whether no job is queued.
    #[cfg(test)]
    pub(in crate::control) fn idle(&self) -> bool {
        self.queue.lock().is_empty()
    }

    /// Whether a queued job may be issued now.
    fn open(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < self.bytes_max && self.pending_count.load(Ordering::Acquire) < LOADS_MAX
    }

    /// Issues queued loads as far as the bound allows.
    pub fn issue(self: &Arc<Loader>) {
        while self.open() {
            let next = self.queue.lock().first();
            let Some(job) = next else { return };
            self.issue_some(&job);
        }
    }

    /// Takes a job out of the queue. Called under the lock of its state, so that one that comes back with more to load stays.
    fn dequeue(&self, job: &Job) {
        self.queue.lock().remove(job);
    }

    /// Issues a batch of a job's loads.
    fn issue_some(self: &Arc<Loader>, job: &Arc<Job>) {
        let mut state = job.state.lock();
        let Some(load) = state.load_mut() else { return self.dequeue(job) };
        let batch = Job::issue(load, self.choose(load));
        if load.all_issued() {
            self.dequeue(job);
        }
        let search = &load.search;
        let mut failed: Vec<(u32, NotLoaded)> = Vec::new();
        let mut batches: Vec<BackendBatch> = Vec::new();
        let mut fresh = Vec::new();
        {
            let mut pending = self.pending.lock();
            for index in batch {
                match pending.get_mut(&job.object(index as usize)) {
                    Some(pending_load) => pending_load.readers.push((job.clone(), index)),
                    None => fresh.push(index),
                }
            }
        }
        // Another job may have loaded them, or a session written them, since the lookup.
        let keys: Vec<_> = fresh.iter().map(|&index| job.keys[index as usize]).collect();
        let mut there = vec![false; keys.len()];
        if let Err(error) = self.l1.reserve_found(job.session, &keys, job.shares(), &mut there, None) {
            failed.extend(fresh.drain(..).map(|index| (index, NotLoaded::from_anywhere(error.clone()))));
        }
        let landed: Vec<u32> = fresh.iter().zip(&there).filter(|(_, there)| **there).map(|(index, _)| *index).collect();
        fresh.retain(|index| !landed.contains(index));

        let wanted = fresh.iter().map(|&i| (&job.keys[i as usize], search.sizes[i as usize], i));
        let staged = self.l1.stage_loads(job.space.index, wanted, job.request.temporary);
        let mut no_room = None;
        for (&index, staged) in fresh.iter().zip(staged) {
            let (place, bytes) = (search.found[index as usize], search.sizes[index as usize]);
            let (name, buffer) = match staged {
                Ok(staged) => staged,
                Err(status) => {
                    let why = no_room.get_or_insert_with(|| self.no_room.explain(&self.l1, job.session, status));
                    failed.push((index, NotLoaded::from_anywhere(why.clone())));
                    continue;
                }
            };
            let object = job.object(index as usize);
            let mut pending = self.pending.lock();
            if let Some(other) = pending.get_mut(&object) {
                // Another job began it between the two looks.
                other.readers.push((job.clone(), index));
                drop(pending);
                self.l1.drop_load(name);
                continue;
            }
            // Of a batch the first object asks whether the backend gets loads: the batch may be its probe. Not before it is sure to be
            // sent, since a probe that is not sent decides nothing and keeps others away.
            let is_chosen = |slot: &&Arc<BackendSlot>| batches.iter().any(|(other, ..)| other.number == slot.number);
            let may_load = |slot: &&Arc<BackendSlot>| slot.may_have(&job.space.tag) && slot.read_breaker.admit();
            let Some(slot) = search.slot(place).filter(|slot| is_chosen(slot) || may_load(slot)).cloned() else {
                drop(pending);
                self.l1.drop_load(name);
                drop(buffer);
                let why = Error::new(KVKEEP_ERR_IO, "the backend is fenced, failing or removed, or forgets the space");
                failed.push((index, NotLoaded::from(place.into(), why)));
                continue;
            };
            pending.insert(object, PendingLoad { readers: vec![(job.clone(), index)], deleted: false, lost: false });
            drop(pending);
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
            self.pending_count.fetch_add(1, Ordering::AcqRel);
            let item = Item { object, layout: job.space.layout, name, bytes };
            match batches.iter_mut().find(|(other, ..)| other.number == slot.number) {
                Some((_, items, buffers)) => {
                    buffers.push((buffer, items.len() as u32));
                    items.push(item);
                }
                None => {
                    slot.begin_handing();
                    batches.push((slot, vec![item], vec![(buffer, 0)]));
                }
            }
        }
        drop(state);
        for (slot, items, buffers) in batches {
            self.send(slot.clone(), items, buffers);
            slot.end_handing();
        }
        for index in landed {
            self.report(job, index, Ok(KeySource::There));
        }
        for (index, why) in failed {
            self.report(job, index, Err(why));
        }
    }

    /// Which objects are on their way.
    pub(in crate::control) fn loading(&self, objects: &[ObjectKey]) -> Vec<bool> {
        let pending = self.pending.lock();
        objects.iter().map(|object| pending.contains_key(object)).collect()
    }

    /// Has loads of deleted objects commit nothing.
    pub(in crate::control) fn drop_deleted(&self, objects: &[ObjectKey]) {
        self.mark(objects, |pending_load| pending_load.deleted = true);
    }

    /// Has objects on their way count as not stored when they land: no backend has them any more.
    pub(in crate::control) fn lose(&self, objects: &[ObjectKey]) {
        self.mark(objects, |pending_load| pending_load.lost = true);
    }

    fn mark(&self, objects: &[ObjectKey], mark: impl Fn(&mut PendingLoad)) {
        let mut pending = self.pending.lock();
        objects.iter().for_each(|object| pending.get_mut(object).into_iter().for_each(&mark));
    }

    /// How many loads have committed their object since the cache was opened.
    pub(in crate::control) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// How many of the next planned keys may be issued now: at least one.
    fn choose(&self, load: &LoadPhase) -> usize {
        let mut free = self.bytes_max.saturating_sub(self.bytes.load(Ordering::Acquire));
        let mut count = 0;
        for &index in load.planned().iter().take(BATCH) {
            let size = load.search.sizes[index as usize];
            if size > free && count > 0 {
                break;
            }
            free = free.saturating_sub(size);
            count += 1;
        }
        count
    }

    fn send(self: &Arc<Loader>, slot: Arc<BackendSlot>, items: Vec<Item>, buffers: Vec<(Buffer, u32)>) {
        let batch = Arc::new(LoadBatch {
            loader: self.clone(),
            slot: slot.clone(),
            items,
            tickets: OnceCell::new(),
            began: Instant::now(),
            answered: AtomicUsize::new(0),
            read_bytes: AtomicU64::new(0),
            _under_way: slot.reads.begin(),
        });
        let on_late = (0..batch.items.len()).map(|i| {
            // Strong, so that the deadline holds even if the backend loses a request; the answer or the deadline drops it.
            let batch = batch.clone();
            Box::new(move || batch.late(i)) as Box<dyn FnOnce() + Send>
        });
        let tickets = self.deadlines.begin(&slot, on_late);
        let _ = batch.tickets.set(tickets);
        let deadline = self.deadlines.deadline(&slot);
        let sink: Arc<dyn LoadSink> = batch.clone();
        let loads = buffers
            .into_iter()
            .map(|(buffer, index)| {
                let key = batch.items[index as usize].object;
                LoadRequest { key, buffer, checksum: self.checksum, deadline, sink: sink.clone(), index }
            })
            .collect();
        slot.backend.load(loads);
    }

    /// Ends the load of an object from the backend at `place`: each waiting job gets the object, or the reason why not.
    fn land(&self, item: &Item, place: usize, result: Result<Verified<'_>>) {
        // Held until the object is committed: a deletion sees the pending load, or the object.
        let mut pending = self.pending.lock();
        let Some(PendingLoad { readers, deleted, lost }) = pending.remove(&item.object) else { return };
        let gone = |why| Err(NotLoaded::from_anywhere(Error::new(KVKEEP_ERR_NOT_FOUND, why)));
        let deleted = deleted.then(|| gone("it was deleted while it was loaded"));
        let result = deleted.unwrap_or_else(|| result.map_err(|why| NotLoaded::from(place, why)));
        match result {
            Ok(verified) => {
                let shares: Vec<LoadReader> = readers.iter().map(|(job, _)| job.reader()).collect();
                let given = self.l1.commit_load(item.name, verified.shape, &shares, lost);
                self.committed.fetch_add(1, Ordering::AcqRel);
                drop(pending);
                let Some(given) = given else {
                    let why = NotLoaded::from(place, self.misshapen(item, verified.slot));
                    for (job, index) in readers {
                        self.report(&job, index, Err(why.clone()));
                    }
                    return;
                };
                self.l1.misses().stored(&item.object, place);
                self.meters.loads.add(1);
                self.meters.loaded_bytes.add(item.bytes);
                self.meters.load_latency.add(verified.took);
                verified.slot.reads.moved(item.bytes, verified.took);
                verified.slot.copies.loaded(item.object, verified.slot.number);
                let mut bytes = item.bytes;
                for ((job, index), given) in readers.into_iter().zip(given) {
                    let ended =
                        || Err(NotLoaded::from_anywhere(Error::new(KVKEEP_ERR_CANCELLED, "its session has ended")));
                    let outcome = if given { Ok(KeySource::Loaded(bytes)) } else { ended() };
                    // The bytes were loaded once, however many jobs wait for them.
                    if self.report(&job, index, outcome) && given {
                        bytes = 0;
                    }
                }
            }
            Err(why) => {
                drop(pending);
                self.l1.drop_load(item.name);
                for (job, index) in readers {
                    self.report(&job, index, Err(why.clone()));
                }
            }
        }
    }

    /// Notes that a backend's object was stored from pages of another layout. The object stays there for the cache that stored
    /// it, until this cache stores the key itself.
    fn misshapen(&self, item: &Item, slot: &BackendSlot) -> Error {
        self.meters.load_failures.add(1);
        slot.note_misshapen(item.object);
        let Key { rank, group, .. } = item.object.key;
        let why = format!(
            "backend {} has objects of rank {rank}, group {group} that were stored from pages of another layout than this \
             space's pools: they are misses; say so in the layout of kvkeep_space_options, so that it is another space",
            slot.number
        );
        self.log.often("objects of another layout", LogLevel::Warn, || why);
        Error::new(
            KVKEEP_ERR_IO,
            format!("objects of backend {} are of another layout: say so in kvkeep_space_options", slot.number),
        )
    }

    /// Gives a job the outcome of one of its keys. False if the job is over.
    fn report(&self, job: &Arc<Job>, index: u32, outcome: std::result::Result<KeySource, NotLoaded>) -> bool {
        job.landed(index as usize, outcome, &*self.table)
    }

    /// Frees the part of the bounds that a load took. The control thread is woken once a share of a bound is free, not for each
    /// object: it would issue as little as became free, and preempt the thread that wakes it.
    fn freed(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        let pending_count = self.pending_count.fetch_sub(1, Ordering::SeqCst);
        let enough = self.bytes_max - self.bytes_max.div_ceil(REFILL_SHARE);
        let few = LOADS_MAX - LOADS_MAX / REFILL_SHARE as usize;
        if (before > enough && before - bytes <= enough) || pending_count == few + 1 {
            self.table.wake();
        }
    }
}

impl LoadBatch {
    /// Measures the backend by the first and the last answer of the batch.
    fn measure(&self, bytes: u64, is_right: bool) {
        let right = if is_right { bytes } else { 0 };
        let read = self.read_bytes.fetch_add(right, Ordering::AcqRel) + right;
        let answered = self.answered.fetch_add(1, Ordering::AcqRel) + 1;
        if read > 0 && (answered == 1 || answered == self.items.len()) {
            self.slot.load_cost.note(read, self.began.elapsed());
        }
    }

    fn late(&self, index: usize) {
        self.loader.meters.backend_timeouts.add(1);
        let item = &self.items[index];
        self.loader.log.often("load late", LogLevel::Error, || {
            format!(
                "backend {} did not answer a load of {} in time: it is fenced until it does",
                self.slot.number, item.object.key
            )
        });
        let error = Error::new(KVKEEP_ERR_TIMEOUT, "a backend did not answer in time");
        self.slot.note_read(Some(&error));
        // The backend keeps the buffer that it may still write to; its bytes are not counted against other loads.
        self.loader.land(item, self.slot.place, Err(error));
        self.loader.freed(item.bytes);
    }
}

impl LoadSink for LoadBatch {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        let item = &self.items[index as usize];
        let meters = &self.loader.meters;
        let in_time = self.tickets.get().is_none_or(|tickets| tickets[index as usize].answered());
        if !in_time {
            return;
        }
        self.slot.note_read(result.as_ref().err());
        let verified = result.and_then(|header| {
            let verified = header.verify(&item.object, Some(&item.layout), buffer.bytes(), self.loader.checksum);
            verified.map(|()| header.shape()).map_err(|error| {
                let (slot, key) = (&self.slot, item.object.key);
                Error {
                    message: format!("{}: backend {} ({}), {key}", error.message, slot.number, slot.backend.name()),
                    ..error
                }
            })
        });
        let outcome = match verified {
            Ok(shape) => Ok(Verified { shape, slot: &self.slot, took: self.began.elapsed() }),
            Err(error) => {
                match error.status {
                    KVKEEP_ERR_CORRUPT => {
                        meters.corruptions.add(1);
                        self.loader.l1.misses().quarantined(&item.object, self.slot.place);
                        self.slot.backend.quarantine(item.object);
                    }
                    // Without its key, or without encryption: it is replaced when it is stored anew.
                    KVKEEP_ERR_UNSUPPORTED => {
                        meters.load_failures.add(1);
                        self.slot.note_misshapen(item.object);
                    }
                    _ => meters.load_failures.add(1),
                }
                self.loader.log.often("load failed", LogLevel::Error, || {
                    format!("loading {} from backend {}: {error}", item.object.key, self.slot.number)
                });
                Err(error)
            }
        };
        self.measure(item.bytes, outcome.is_ok());
        // Let go first, so that a job that is done leaves nothing under a transfer.
        drop(buffer);
        self.loader.land(item, self.slot.place, outcome);
        self.loader.freed(item.bytes);
    }
}
