//! The backends of a cache, in order, and whether each may be asked now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};

use super::forgotten::ForgottenSpaces;
use super::losses::Losses;
use super::throughput::Throughput;
use super::write_counters::WriteCounters;
use crate::abi::KVKEEP_TIERS_MAX;
use crate::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result};
use crate::events::{EventKind, Events};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Backend, Change, Found, Health};
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
    pub forgotten: ForgottenSpaces,
    /// Batches of loads that were chosen for it and are not handed to it yet.
    handing: AtomicUsize,
    /// Keys under which it has an object of another shape than this cache's pools. An object that this cache stores under such a
    /// key replaces it.
    misshapen: Mutex<HashSet<ObjectKey>>,
}

/// Most keys of such objects that are remembered. Others are noted again when they are loaded.
const MISSHAPEN_MAX: usize = 1 << 16;

impl BackendSlot {
    /// Whether new requests may go to it.
    pub fn usable(&self) -> bool {
        self.late.load(Ordering::Acquire) == 0 && !self.removed.load(Ordering::Acquire)
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

    /// Why it is not used now, if so.
    pub fn trouble(&self) -> Option<String> {
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

    /// It gave an object that has another shape.
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

/// A snapshot of the backends.
pub type BackendList = Arc<Vec<Arc<BackendSlot>>>;

/// All backends of a cache.
pub struct Backends {
    list: RwLock<BackendList>,
    next: AtomicU64,
    events: Arc<Events>,
    losses: Arc<Losses>,
    /// Evictions of backends that were removed.
    evicted: AtomicU64,
}

impl Backends {
    /// An empty list. Backends record in `events` the objects that appear in them and vanish from them.
    pub fn new(events: Arc<Events>) -> Backends {
        let (next, evicted) = (AtomicU64::new(0), AtomicU64::new(0));
        Backends { list: RwLock::default(), next, events, losses: Arc::default(), evicted }
    }

    /// The objects that vanished from them.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// A snapshot of the backends, in the order in which they are asked.
    pub fn list(&self) -> BackendList {
        self.list.read().clone()
    }

    /// Adds a backend below the others, with its URL for people. Returns its number.
    pub fn add(&self, backend: Arc<dyn Backend>, url: String) -> Result<u64> {
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
        let (events, losses) = (self.events.clone(), self.losses.clone());
        backend.set_observer(Arc::new(move |change, key, size| {
            let kind = match change {
                Change::Appeared => EventKind::Stored,
                Change::Vanished => EventKind::Removed,
            };
            events.record_backend(kind, place, number, key, size);
            if change == Change::Vanished {
                losses.note(key);
            }
        }));
        let slot = BackendSlot {
            number,
            place,
            backend,
            url,
            reads: Arc::default(),
            stores: Arc::default(),
            writes: WriteCounters::default(),
            evicted_kept: AtomicU64::new(0),
            late: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            forgotten: ForgottenSpaces::default(),
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
