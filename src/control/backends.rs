//! The backends of a cache, in order, and whether each may be asked now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};

use super::breaker::{Breaker, BreakerTurn};
use super::copies::{Copies, CopyTarget};
use super::forgotten::ForgottenSpaces;
use super::load_cost::{LoadCost, LoadEstimate};
use super::losses::Losses;
use super::store_pressure::StorePressure;
use super::throughput::Throughput;
use super::write_counters::WriteCounters;
use crate::abi::KVKEEP_TIERS_MAX;
use crate::error::{
    Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_IO, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND,
    KVKEEP_ERR_TIMEOUT, Result,
};
use crate::events::{EventKind, Events};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::common_options::{CommonOptions, WriteChoice};
use crate::l2::registry::OpenBackend;
use crate::l2::{Backend, Change, Found, Health};
use crate::log::{Log, LogLevel};
use crate::meters::Count;
use crate::misses::MissedKeys;
use crate::threads;

/// One backend of a cache, and whether it may be asked now.
pub struct BackendSlot {
    /// The number that `add` gave, never used again.
    pub number: u64,
    /// The place among the tiers of a result: 1 for the first.
    pub place: usize,
    /// The plug-in that stores objects.
    pub backend: Arc<dyn Backend>,
    /// The URL that it was opened by, without secrets.
    pub url: String,
    /// How the cache treats it.
    pub options: CommonOptions,
    /// Whether its lookups and loads fail in a row.
    pub read_breaker: Breaker,
    /// Whether its writes fail in a row: these may fail alone, as on a full disk.
    pub write_breaker: Breaker,
    /// Whether its writes take too long.
    pub pressure: StorePressure,
    /// Objects to be copied from one backend to another.
    pub copies: Arc<Copies>,
    log: Log,
    /// Keys that it was looked up for, and those that it had.
    pub lookups: LookupCounters,
    /// The time that loads from it take.
    pub load_cost: LoadCost,
    /// Throughput of its reads.
    pub reads: Arc<Throughput>,
    /// Throughput of its writes.
    pub stores: Arc<Throughput>,
    /// Counters of writes to it by their end.
    pub writes: WriteCounters,
    /// The part of its evictions that [`Backends::evicted`] counts already.
    evicted_kept: AtomicU64,
    /// Requests that passed their deadline unanswered. While there are any, the backend is fenced.
    late: AtomicU64,
    removed: AtomicBool,
    /// Spaces that it is to forget, for which it is not looked up.
    pub forgotten: Arc<ForgottenSpaces>,
    /// Batches of loads that were chosen for it and are not handed to it yet.
    handing: AtomicUsize,
    /// Keys under which it has an object of another shape than this cache's pools, or one that this cache cannot decrypt. An object
    /// that this cache stores under such a key replaces it.
    misshapen: Mutex<HashSet<ObjectKey>>,
}

/// Writes from which the time of loads is guessed while there was none.
const STORES_MIN: u64 = 16;

/// The keys that lookups asked one backend for. A key that is asked for again counts again.
#[derive(Default)]
pub struct LookupCounters {
    /// Keys that it answered.
    pub asked: Count,
    /// Keys that it had.
    pub found: Count,
}

impl LookupCounters {
    /// Adds the answers of a lookup.
    pub fn add(&self, found: &[Found]) {
        let count = |is: fn(&Found) -> bool| found.iter().filter(|found| is(found)).count() as u64;
        self.asked.add(count(|found| *found != Found::Unknown));
        self.found.add(count(|found| matches!(found, Found::Present(_))));
    }
}

/// Most keys of such objects that are remembered. Others are noted again when they are loaded.
const MISSHAPEN_MAX: usize = 1 << 16;

impl BackendSlot {
    /// Whether it may be sent requests as far as deadlines go.
    pub fn is_reachable(&self) -> bool {
        self.late.load(Ordering::Acquire) == 0 && !self.removed.load(Ordering::Acquire)
    }

    /// Whether lookups and loads may go to it.
    pub fn usable(&self) -> bool {
        self.is_reachable() && self.read_breaker.is_ready()
    }

    /// Whether writes may go to it.
    pub fn writable(&self) -> bool {
        self.is_reachable() && self.write_breaker.is_ready()
    }

    /// Notes how a lookup or load ended.
    pub fn note_read(&self, error: Option<&Error>) {
        self.note_answer(&self.read_breaker, "lookups and loads", error);
    }

    /// Notes how a write ended.
    pub fn note_write(&self, error: Option<&Error>) {
        self.note_answer(&self.write_breaker, "writes", error);
    }

    fn note_answer(&self, breaker: &Breaker, what: &str, error: Option<&Error>) {
        let failure = error.filter(|error| is_failure(error));
        let turn = failure.map_or_else(|| breaker.succeeded(), |error| breaker.failed(&error.message));
        let (number, name) = (self.number, self.backend.name());
        match (turn, failure) {
            (Some(BreakerTurn::Opened(errors, pause)), Some(error)) => self.log.write(LogLevel::Error, || {
                format!(
                    "backend {number} ({name}) failed {errors} {what} in a row: {error}; it gets no more for {pause:?}, then one \
                     that decides"
                )
            }),
            (Some(BreakerTurn::Closed), _) => self
                .log
                .write(LogLevel::Info, || format!("backend {number} ({name}) answers {what} again, and gets them all")),
            _ => {}
        }
    }

    /// Why requests are not sent to it, or only one that decides, if so.
    pub fn breaker_trouble(&self) -> Option<String> {
        let of = |breaker: &Breaker, what: &str| {
            let (errors, failure) = breaker.trouble()?;
            Some(format!("gets no {what} until a probe succeeds, after {errors} failures in a row: {failure}"))
        };
        of(&self.read_breaker, "lookups and loads").or_else(|| of(&self.write_breaker, "writes"))
    }

    /// Whether every object that is written is written to it.
    pub fn gets_all(&self) -> bool {
        self.options.write == WriteChoice::On
    }

    /// Whether a copy that is to go to `target` is to go to it.
    pub fn is_target(&self, target: CopyTarget) -> bool {
        match target {
            CopyTarget::One(number) => self.number == number,
            CopyTarget::AllBut(number) => self.options.promote && self.number != number,
        }
    }

    /// Whether it may be asked for objects of a space.
    pub fn may_have(&self, space: &SpaceTag) -> bool {
        self.usable() && !self.forgotten.covers(space)
    }

    /// A request passed its deadline.
    pub fn fence(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
    }

    /// A request that had passed its deadline was answered.
    pub fn unfence(&self) {
        self.late.fetch_sub(1, Ordering::AcqRel);
    }

    /// Requests that passed their deadline unanswered.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Acquire)
    }

    /// The time that a load from it takes; by its writes, where it was not loaded from yet.
    pub fn load_estimate(&self) -> Option<LoadEstimate> {
        self.load_cost.estimate().or_else(|| {
            let stores = self.stores.get();
            (stores.bytes > 0 && stores.objects >= STORES_MIN).then(|| LoadEstimate {
                latency_us: stores.latency_us as f64 / stores.objects as f64,
                us_per_byte: stores.busy_us as f64 / stores.bytes as f64,
            })
        })
    }

    /// Microseconds that `bytes` from it count for when tiers are compared; 0 where nothing was measured, so that it is tried.
    pub fn cost_us(&self, bytes: u64, now: Instant) -> f64 {
        let weight = self.load_cost.freshness(now).unwrap_or(1.0);
        self.load_estimate().map_or(0.0, |estimate| estimate.us(bytes) * weight)
    }

    /// The mean size of the objects that it moved.
    pub fn object_bytes(&self) -> Option<u64> {
        let (reads, stores) = (self.reads.get(), self.stores.get());
        (reads.bytes + stores.bytes).checked_div(reads.objects + stores.objects)
    }

    /// How long it may take to answer a request, if it has a bound of its own.
    pub fn deadline(&self) -> Option<Duration> {
        self.options.deadline
    }

    /// Why it is not used now, if so.
    pub fn trouble(&self) -> Option<String> {
        if let Some(why) = self.breaker_trouble() {
            return Some(why);
        }
        match (self.backend.health(), self.late()) {
            (Health::Bad(why), _) => Some(why),
            (Health::Good | Health::Noted(_), 0) => self.forgotten.trouble(),
            (Health::Good | Health::Noted(_), late) => {
                Some(format!("fenced: {late} requests passed their deadline unanswered"))
            }
        }
    }

    /// Looks keys up in the backend's index, and takes no pin.
    pub fn peek(&self, keys: &[ObjectKey]) -> Vec<Found> {
        let mut found = vec![Found::Unknown; keys.len()];
        self.backend.lookup_cached(keys, &mut found);
        let present = keys.iter().zip(&found).filter(|(_, found)| matches!(found, Found::Present(_)));
        let pinned: Vec<ObjectKey> = present.map(|(key, _)| *key).collect();
        if !pinned.is_empty() {
            self.backend.unpin(&pinned);
        }
        found
    }

    /// A note for operators about a backend that is used, if there is one.
    pub fn note(&self) -> Option<String> {
        match self.backend.health() {
            Health::Noted(note) => Some(note),
            Health::Good | Health::Bad(_) => None,
        }
    }

    /// A batch of loads is chosen for it, under the lock of the job that they are of.
    pub fn begin_handing(&self) {
        self.handing.fetch_add(1, Ordering::AcqRel);
    }

    /// It has the batch.
    pub fn end_handing(&self) {
        self.handing.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether loads are chosen for it that it has not been asked for.
    pub fn is_handed(&self) -> bool {
        self.handing.load(Ordering::Acquire) > 0
    }

    /// It gave an object that is of no use to this cache.
    pub fn note_misshapen(&self, key: ObjectKey) {
        let mut misshapen = self.misshapen.lock();
        if misshapen.len() >= MISSHAPEN_MAX {
            misshapen.clear();
        }
        misshapen.insert(key);
    }

    /// Whether it has an object under this key that is to be replaced. True once.
    pub fn take_misshapen(&self, key: &ObjectKey) -> bool {
        self.misshapen.lock().remove(key)
    }

    /// Refuses new requests, and closes the backend.
    pub fn retire(&self, timeout: Duration) -> Result<()> {
        self.removed.store(true, Ordering::Release);
        self.close(timeout)
    }

    /// Closes the backend, on a thread of its own because it may hang.
    fn close(&self, timeout: Duration) -> Result<()> {
        let backend = self.backend.clone();
        let (done, closed) = mpsc::channel();
        let closer = threads::spawn("kvkeep-close", move || {
            backend.close();
            let _ = done.send(());
        });
        match closer {
            Ok(_) if closed.recv_timeout(timeout).is_ok() => Ok(()),
            _ => Err(Error::new(
                KVKEEP_ERR_TIMEOUT,
                format!(
                    "backend {} ({}) did not close in {timeout:?}: it is left fenced",
                    self.number,
                    self.backend.name()
                ),
            )),
        }
    }
}

/// Whether an error says that the backend does not work, and not only that it does not have or take one object.
fn is_failure(error: &Error) -> bool {
    matches!(error.status, KVKEEP_ERR_IO | KVKEEP_ERR_TIMEOUT | KVKEEP_ERR_DISCONNECTED | KVKEEP_ERR_INTERNAL)
}

/// A snapshot of the backends.
pub type BackendList = Arc<Vec<Arc<BackendSlot>>>;

/// All backends of a cache.
pub struct Backends {
    list: RwLock<BackendList>,
    next: AtomicU64,
    events: Arc<Events>,
    misses: Arc<MissedKeys>,
    log: Log,
    losses: Arc<Losses>,
    copies: Arc<Copies>,
    /// Evictions of backends that were removed.
    evicted: AtomicU64,
}

impl Backends {
    /// An empty list. Backends record in `events` and `misses` the objects that appear in them and vanish from them.
    pub fn new(events: Arc<Events>, misses: Arc<MissedKeys>, log: Log) -> Backends {
        Backends {
            list: RwLock::default(),
            next: AtomicU64::new(0),
            events,
            misses,
            log,
            losses: Arc::default(),
            copies: Arc::default(),
            evicted: AtomicU64::new(0),
        }
    }

    /// The objects that vanished from them.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The objects that are to be copied into one of them.
    pub fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Whether committed objects are to be written to one of them.
    pub fn any_gets_all(&self) -> bool {
        self.list().iter().any(|slot| slot.gets_all())
    }

    /// The numbers of those that are written to after uses, and after how many.
    pub fn after_uses(&self) -> Vec<(u64, u32)> {
        let of = |slot: &Arc<BackendSlot>| match slot.options.write {
            WriteChoice::AfterUses(least) => Some((slot.number, least)),
            WriteChoice::On | WriteChoice::Off => None,
        };
        self.list().iter().filter_map(of).collect()
    }

    /// A snapshot of the backends, in the order in which they are asked.
    pub fn list(&self) -> BackendList {
        self.list.read().clone()
    }

    /// Adds a backend below the others. Returns its number.
    pub fn add(&self, opened: OpenBackend) -> Result<u64> {
        let OpenBackend { backend, url, options } = opened;
        let mut list = self.list.write();
        // Above all others, so that places rise in the order in which backends are asked, as long as there are such places.
        let above = list.iter().map(|slot| slot.place + 1).max().unwrap_or(1);
        let free = (above..KVKEEP_TIERS_MAX)
            .chain(1..KVKEEP_TIERS_MAX)
            .find(|place| list.iter().all(|slot| slot.place != *place));
        let Some(place) = free else {
            drop(list);
            backend.close();
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} backends are open already: remove one first", KVKEEP_TIERS_MAX - 1),
            ));
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (events, misses, losses) = (self.events.clone(), self.misses.clone(), self.losses.clone());
        let forgotten = Arc::<ForgottenSpaces>::default();
        let forgets = forgotten.clone();
        backend.set_observer(Arc::new(move |change, key, size| match change {
            Change::Appeared => {
                events.record_backend(EventKind::Stored, place, number, key, size);
                misses.stored(key, place);
            }
            Change::Vanished => {
                events.record_backend(EventKind::Removed, place, number, key, size);
                misses.vanished(key, place, forgets.covers(&key.space));
                losses.note(key);
            }
        }));
        let slot = BackendSlot {
            number,
            place,
            backend,
            url,
            read_breaker: Breaker::new(options.breaker_errors, options.breaker_pause),
            write_breaker: Breaker::new(options.breaker_errors, options.breaker_pause),
            pressure: StorePressure::new(options.store_latency_max),
            copies: self.copies.clone(),
            options,
            log: self.log.clone(),
            lookups: LookupCounters::default(),
            load_cost: LoadCost::default(),
            reads: Arc::default(),
            stores: Arc::default(),
            writes: WriteCounters::default(),
            evicted_kept: AtomicU64::new(0),
            late: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            forgotten,
            handing: AtomicUsize::new(0),
            misshapen: Mutex::default(),
        };
        let mut longer: Vec<Arc<BackendSlot>> = list.iter().cloned().collect();
        longer.push(Arc::new(slot));
        *list = Arc::new(longer);
        Ok(number)
    }

    /// Takes a backend out of the list. Snapshots taken before still have it.
    pub fn remove(&self, number: u64) -> Result<Arc<BackendSlot>> {
        let mut list = self.list.write();
        let Some(slot) = list.iter().find(|slot| slot.number == number).cloned() else {
            return Err(Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("backend {number} is not open: use the number that kvkeep_add_backend gave"),
            ));
        };
        *list = Arc::new(list.iter().filter(|other| other.number != number).cloned().collect());
        self.keep_count(&slot);
        Ok(slot)
    }

    /// Objects that backends have evicted, removed backends included.
    pub fn evicted(&self) -> u64 {
        let list = self.list.read();
        let of_list: u64 = list.iter().map(|slot| slot.backend.usage().evicted).sum();
        of_list + self.evicted.load(Ordering::Relaxed)
    }

    /// Counts the evictions of a backend that is no longer in the list, since they were last counted.
    pub fn keep_count(&self, slot: &BackendSlot) {
        let evicted = slot.backend.usage().evicted;
        let before = slot.evicted_kept.swap(evicted, Ordering::Relaxed);
        self.evicted.fetch_add(evicted.saturating_sub(before), Ordering::Relaxed);
    }

    /// Closes all backends. Returns the failures.
    pub fn close(&self, timeout: Duration) -> Vec<Error> {
        let list = std::mem::take(&mut *self.list.write());
        list.iter()
            .filter_map(|slot| {
                let error = slot.close(timeout).err();
                self.keep_count(slot);
                error
            })
            .collect()
    }
}
