//! Loading from L2 into L1: bounded, by priority, each absent object once however many jobs want it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::job::{Arrival, Job};
use super::job_table::JobTable;
use super::phases::{LoadPhase, Phase};
use crate::arena::Buffer;
use crate::control::backends::Tier;
use crate::control::deadline::{Ticket, Watch};
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::{Key, ObjectKey};
use crate::l1::slot::Ref;
use crate::l1::{L1, Landed};
use crate::l2::object_header::Header;
use crate::l2::{LoadRequest, LoadSink};
use crate::log::{Log, LogLevel};
use crate::meters::Meters;
use crate::shape::ShapeTag;

/// Keys issued at a time, so that a long job does not keep others from the lock.
const BATCH: usize = 256;

/// Most objects on their way at once: a backend's queue is bounded by number, and writes go to it too.
pub(in crate::control) const FLIGHTS_MAX: usize = 1 << 14;

/// Queued loads are issued again when one in so many of the bytes, or objects, allowed on their way is free.
const REFILL_SHARE: u64 = 4;

/// Who waits for an object on its way: jobs, and the key's place in each.
type Readers = Vec<(Arc<Job>, u32)>;

/// An object on its way.
struct Flight {
    readers: Readers,
    /// It was deleted since: what arrives is not committed.
    deleted: bool,
    /// No backend has it any more.
    lost: bool,
}

/// Jobs wait here for their turn: highest priority first, then in order of arrival.
type Turn = (i32, Reverse<u64>);

#[derive(Default)]
struct Queue {
    turns: BinaryHeap<(Turn, u64)>,
    jobs: HashMap<u64, Arc<Job>>,
}

/// Loads objects for jobs.
pub struct Loader {
    l1: Arc<L1>,
    watch: Arc<Watch>,
    meters: Arc<Meters>,
    log: Log,
    checksum: bool,
    bytes_max: u64,
    bytes: AtomicU64,
    /// Objects that `bytes` are of.
    flying: AtomicUsize,
    flights: Mutex<HashMap<ObjectKey, Flight>>,
    /// Loads that ended with a commit.
    committed: AtomicU64,
    queue: Mutex<Queue>,
    /// The jobs that are told what landed, and the bell of the control thread.
    table: Arc<JobTable>,
}

struct Item {
    object: ObjectKey,
    layout: [u8; 16],
    name: Ref,
    bytes: u64,
}

/// Items for one backend, with their buffers and places.
type Outgoing = (Arc<Tier>, Vec<Item>, Vec<(Buffer, u32)>);

/// An object that was read, and is what its seal says.
struct Verified<'a> {
    shape: ShapeTag,
    tier: &'a Tier,
    took: Duration,
}

struct Batch {
    loader: Arc<Loader>,
    tier: Arc<Tier>,
    items: Vec<Item>,
    tickets: OnceCell<Vec<Arc<Ticket>>>,
    began: Instant,
}

impl Loader {
    /// A loader for the jobs of `table`, with at most `bytes_max` bytes on their way at once.
    pub fn new(
        table: Arc<JobTable>,
        l1: Arc<L1>,
        watch: Arc<Watch>,
        meters: Arc<Meters>,
        log: Log,
        checksum: bool,
        bytes_max: u64,
    ) -> Arc<Loader> {
        Arc::new(Loader {
            l1,
            watch,
            meters,
            log,
            checksum,
            bytes_max,
            bytes: AtomicU64::new(0),
            flying: AtomicUsize::new(0),
            flights: Mutex::default(),
            committed: AtomicU64::new(0),
            queue: Mutex::default(),
            table,
        })
    }

    /// The jobs that it loads for.
    pub fn table(&self) -> &Arc<JobTable> {
        &self.table
    }

    /// Queues a job that has keys to load. False if it waits for loads on their way: when enough of them end, the control thread is
    /// told.
    pub fn enqueue(&self, job: &Arc<Job>) -> bool {
        {
            let mut queue = self.queue.lock();
            queue.turns.push(((job.request.priority, Reverse(job.id)), job.id));
            queue.jobs.insert(job.id, job.clone());
        }
        // Either the bytes freed meanwhile are seen here, or whoever frees them sees the job.
        fence(Ordering::SeqCst);
        self.open()
    }

    /// Whether no job waits for its turn.
    #[cfg(test)]
    pub(in crate::control) fn idle(&self) -> bool {
        self.queue.lock().jobs.is_empty()
    }

    /// Whether a queued job may be issued now.
    fn open(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < self.bytes_max && self.flying.load(Ordering::Acquire) < FLIGHTS_MAX
    }

    /// Issues queued loads as far as the bound allows.
    pub fn issue(self: &Arc<Loader>) {
        while self.open() {
            let next = {
                let queue = self.queue.lock();
                queue.turns.peek().and_then(|(_, id)| queue.jobs.get(id).cloned())
            };
            let Some(job) = next else { return };
            if self.issue_some(&job) {
                let mut queue = self.queue.lock();
                queue.jobs.remove(&job.id);
                queue.turns.retain(|(_, id)| *id != job.id);
            }
        }
    }

    /// Issues a batch of a job's loads. True if none is left.
    fn issue_some(self: &Arc<Loader>, job: &Arc<Job>) -> bool {
        let mut state = job.state.lock();
        let Phase::Load(load) = &mut state.phase else { return true };
        let batch = Job::issue(load, self.choose(load));
        let (last, search) = (load.all_issued(), &load.search);
        let mut failed: Vec<(u32, String)> = Vec::new();
        let mut batches: Vec<Outgoing> = Vec::new();

        let mut fresh = Vec::new();
        {
            let mut flights = self.flights.lock();
            for index in batch {
                match flights.get_mut(&job.object(index as usize)) {
                    Some(flight) => flight.readers.push((job.clone(), index)),
                    None => fresh.push(index),
                }
            }
        }
        // Somebody else may have loaded or written them since the lookup.
        let keys: Vec<_> = fresh.iter().map(|&index| job.keys[index as usize]).collect();
        let mut there = vec![false; keys.len()];
        if let Err(error) = self.l1.reserve_found(job.session, &keys, job.shares(), &mut there) {
            failed.extend(fresh.drain(..).map(|index| (index, error.message.clone())));
        }
        let landed: Vec<u32> = fresh.iter().zip(&there).filter(|(_, there)| **there).map(|(index, _)| *index).collect();
        fresh.retain(|index| !landed.contains(index));

        let wanted = fresh.iter().map(|&i| (&job.keys[i as usize], search.sizes[i as usize], i));
        let staged = self.l1.stage_loads(job.space.index, wanted, job.request.temporary);
        for (&index, staged) in fresh.iter().zip(staged) {
            let (place, bytes) = (search.found[index as usize], search.sizes[index as usize]);
            let tier = search.tier(place).filter(|tier| tier.may_have(&job.space.tag)).cloned();
            let (name, buffer, tier) = match (staged, tier) {
                (Ok((name, buffer)), Some(tier)) => (name, buffer, tier),
                (Ok((name, buffer)), None) => {
                    self.l1.drop_load(name);
                    drop(buffer);
                    failed.push((index, "the backend is fenced or removed, or forgets the space".to_owned()));
                    continue;
                }
                (Err(status), _) => {
                    failed.push((index, format!("L1 has no room for what was found ({status:?})")));
                    continue;
                }
            };
            let object = job.object(index as usize);
            let mut flights = self.flights.lock();
            if let Some(other) = flights.get_mut(&object) {
                // Another job began it between the two looks.
                other.readers.push((job.clone(), index));
                drop(flights);
                self.l1.drop_load(name);
                continue;
            }
            flights.insert(object, Flight { readers: vec![(job.clone(), index)], deleted: false, lost: false });
            drop(flights);
            self.bytes.fetch_add(bytes, Ordering::AcqRel);
            self.flying.fetch_add(1, Ordering::AcqRel);
            let item = Item { object, layout: job.space.layout, name, bytes };
            match batches.iter_mut().find(|(other, ..)| other.number == tier.number) {
                Some((_, items, buffers)) => {
                    buffers.push((buffer, items.len() as u32));
                    items.push(item);
                }
                None => {
                    tier.begin_handing();
                    batches.push((tier, vec![item], vec![(buffer, 0)]));
                }
            }
        }
        drop(state);
        for (tier, items, buffers) in batches {
            self.send(tier.clone(), items, buffers);
            tier.end_handing();
        }
        for index in landed {
            self.report(job, index, Ok(Arrival::There));
        }
        for (index, why) in failed {
            self.report(job, index, Err(why));
        }
        last
    }

    /// Which objects are on their way.
    pub(in crate::control) fn loading(&self, objects: &[ObjectKey]) -> Vec<bool> {
        let flights = self.flights.lock();
        objects.iter().map(|object| flights.contains_key(object)).collect()
    }

    /// Has loads of deleted objects commit nothing.
    pub(in crate::control) fn drop_deleted(&self, objects: &[ObjectKey]) {
        let mut flights = self.flights.lock();
        for object in objects {
            if let Some(flight) = flights.get_mut(object) {
                flight.deleted = true;
            }
        }
    }

    /// No backend has these objects any more: those on their way are not taken for stored when they land.
    pub(in crate::control) fn lose(&self, objects: &[ObjectKey]) {
        let mut flights = self.flights.lock();
        for object in objects {
            if let Some(flight) = flights.get_mut(object) {
                flight.lost = true;
            }
        }
    }

    /// How many loads have committed their object since the cache was opened.
    pub(in crate::control) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// How many of the next planned keys may be issued now: at least one.
    fn choose(&self, load: &LoadPhase) -> usize {
        let mut room = self.bytes_max.saturating_sub(self.bytes.load(Ordering::Acquire));
        let mut count = 0;
        for &index in load.planned().iter().take(BATCH) {
            let size = load.search.sizes[index as usize];
            if size > room && count > 0 {
                break;
            }
            room = room.saturating_sub(size);
            count += 1;
        }
        count
    }

    fn send(self: &Arc<Loader>, tier: Arc<Tier>, items: Vec<Item>, buffers: Vec<(Buffer, u32)>) {
        let batch = Arc::new(Batch {
            loader: self.clone(),
            tier: tier.clone(),
            items,
            tickets: OnceCell::new(),
            began: Instant::now(),
        });
        let on_late = (0..batch.items.len()).map(|i| {
            // Strong, so that the deadline holds even if the backend loses a request; the answer or the deadline lets go.
            let batch = batch.clone();
            Box::new(move || batch.late(i)) as Box<dyn FnOnce() + Send>
        });
        let tickets = self.watch.begin(&tier, on_late);
        let _ = batch.tickets.set(tickets);
        let deadline = self.watch.deadline();
        let sink: Arc<dyn LoadSink> = batch.clone();
        let loads = buffers
            .into_iter()
            .map(|(buffer, index)| {
                let key = batch.items[index as usize].object;
                LoadRequest { key, buffer, checksum: self.checksum, deadline, sink: sink.clone(), index }
            })
            .collect();
        tier.backend.load(loads);
    }

    /// Ends a flight: whoever waits gets the object, or is told why not.
    fn land(&self, item: &Item, result: std::result::Result<Verified<'_>, String>) {
        // Held until the object is committed: a deletion sees the flight, or the object.
        let mut flights = self.flights.lock();
        let Some(Flight { readers, deleted, lost }) = flights.remove(&item.object) else { return };
        let result = if deleted { Err("it was deleted while it was loaded".to_owned()) } else { result };
        match result {
            Ok(verified) => {
                let shares: Vec<Landed> = readers.iter().map(|(job, _)| job.reader()).collect();
                let given = self.l1.commit_load(item.name, verified.shape, &shares, lost);
                self.committed.fetch_add(1, Ordering::AcqRel);
                drop(flights);
                let Some(given) = given else {
                    let why = self.misshapen(item, verified.tier);
                    for (job, index) in readers {
                        self.report(&job, index, Err(why.clone()));
                    }
                    return;
                };
                self.meters.loads.add(1);
                self.meters.loaded_bytes.add(item.bytes);
                self.meters.load_latency.add(verified.took);
                let mut bytes = item.bytes;
                for ((job, index), given) in readers.into_iter().zip(given) {
                    let outcome =
                        if given { Ok(Arrival::Loaded(bytes)) } else { Err("its session has ended".to_owned()) };
                    // The bytes were loaded once, whoever else waits for them.
                    if self.report(&job, index, outcome) && given {
                        bytes = 0;
                    }
                }
            }
            Err(why) => {
                drop(flights);
                self.l1.drop_load(item.name);
                for (job, index) in readers {
                    self.report(&job, index, Err(why.clone()));
                }
            }
        }
    }

    /// What a backend gave was stored from pages that look different. It stays there, for whoever stored it, until this cache
    /// stores the key itself.
    fn misshapen(&self, item: &Item, tier: &Tier) -> String {
        self.meters.load_failures.add(1);
        tier.note_misshapen(item.object);
        let Key { rank, group, .. } = item.object.key;
        let why = format!(
            "backend {} has objects of rank {rank}, group {group} that were stored from pages of another layout than this \
             space's pools: they are misses; say so in the layout of kvkeep_space_options, so that it is another space",
            tier.number
        );
        self.log.often("objects of another layout", LogLevel::Warn, || why.clone());
        why
    }

    /// Tells a job what became of one of its keys. False if it is over.
    fn report(&self, job: &Arc<Job>, index: u32, outcome: std::result::Result<Arrival, String>) -> bool {
        job.landed(index as usize, outcome, &*self.table)
    }

    /// A load ended. The control thread is told once a share of a bound is free, not of each object: it would issue as little
    /// as became free, and push aside whoever wakes it.
    fn freed(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        let flying = self.flying.fetch_sub(1, Ordering::SeqCst);
        let enough = self.bytes_max - self.bytes_max.div_ceil(REFILL_SHARE);
        let few = FLIGHTS_MAX - FLIGHTS_MAX / REFILL_SHARE as usize;
        if (before > enough && before - bytes <= enough) || flying == few + 1 {
            self.table.wake();
        }
    }
}

impl Batch {
    fn late(&self, index: usize) {
        self.loader.meters.backend_timeouts.add(1);
        let item = &self.items[index];
        self.loader.log.often("load late", LogLevel::Error, || {
            format!(
                "backend {} did not answer a load of {} in time: it is fenced until it does",
                self.tier.number, item.object.key
            )
        });
        // What the backend may still write stays its own; the bytes in flight are not counted against other loads.
        self.loader.land(item, Err(Error::new(KVKEEP_ERR_TIMEOUT, "a backend did not answer in time").message));
        self.loader.freed(item.bytes);
    }
}

impl LoadSink for Batch {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        let item = &self.items[index as usize];
        let meters = &self.loader.meters;
        let in_time = self.tickets.get().is_none_or(|tickets| tickets[index as usize].answered());
        if !in_time {
            return;
        }
        let verified = result.and_then(|header| {
            let verified = header.verify(&item.object, Some(&item.layout), buffer.bytes(), self.loader.checksum);
            verified.map(|()| header.shape()).map_err(|error| {
                let (tier, key) = (&self.tier, item.object.key);
                Error {
                    message: format!("{}: backend {} ({}), {key}", error.message, tier.number, tier.backend.name()),
                    ..error
                }
            })
        });
        let outcome = match verified {
            Ok(shape) => Ok(Verified { shape, tier: &self.tier, took: self.began.elapsed() }),
            Err(error) => {
                if error.status == KVKEEP_ERR_CORRUPT {
                    meters.corruptions.add(1);
                    self.tier.backend.quarantine(item.object);
                } else {
                    meters.load_failures.add(1);
                }
                self.loader.log.often("load failed", LogLevel::Error, || {
                    format!("loading {} from backend {}: {error}", item.object.key, self.tier.number)
                });
                Err(error.message)
            }
        };
        // Let go first, so that a job that is done leaves nothing under a transfer.
        drop(buffer);
        self.loader.land(item, outcome);
        self.loader.freed(item.bytes);
    }
}
