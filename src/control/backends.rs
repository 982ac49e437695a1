//! The backends of a cache, in order, and whether each may be asked now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};

use super::forget_space::Bars;
use super::tier_sync::Losses;
use super::write_counters::Writes;
use crate::abi::KVKEEP_TIERS_MAX;
use crate::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result};
use crate::events::{EventKind, Events};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Backend, Change, Found, Health};
use crate::threads;

/// One backend of a cache.
pub struct Tier {
    /// Its number.
    pub number: u64,
    /// Its place among the tiers of a result: 1 for the first.
    pub place: usize,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// What became of writes to it.
    pub writes: Writes,
    /// Of the objects it evicted, those that the list of backends counts.
    evicted_kept: AtomicU64,
    /// Requests that passed their deadline unanswered. While there are any, the backend is fenced.
    late: AtomicU64,
    removed: AtomicBool,
    /// Spaces that it is not looked up for.
    pub bars: Bars,
    /// Batches of loads that were chosen for it and are not handed to it yet.
    handing: AtomicUsize,
    /// Objects that it has in another shape than this cache's pools: what this cache stores under their keys replaces them.
    misshapen: Mutex<HashSet<ObjectKey>>,
}

/// Most of these that are remembered. Others are found again when they are loaded.
const MISSHAPEN_MAX: usize = 1 << 16;

impl Tier {
    /// Whether new requests may go to it.
    pub fn usable(&self) -> bool {
        self.late.load(Ordering::Acquire) == 0 && !self.removed.load(Ordering::Acquire)
    }

    /// Whether it may be asked for objects of a space.
    pub fn may_have(&self, space: &SpaceTag) -> bool {
        self.usable() && !self.bars.stop(space)
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
            (Health::Good | Health::Noted(_), 0) => self.bars.trouble(),
            (Health::Good | Health::Noted(_), late) => {
                Some(format!("fenced: {late} requests passed their deadline unanswered"))
            }
        }
    }

    /// What the backend's index says of keys. No pin is kept.
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

    /// What an operator should know of it although it is used, if anything.
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
pub type TierList = Arc<Vec<Arc<Tier>>>;

/// All backends of a cache.
pub struct Tiers {
    list: RwLock<TierList>,
    next: AtomicU64,
    events: Arc<Events>,
    losses: Arc<Losses>,
    /// Objects that backends evicted which are closed.
    evicted: AtomicU64,
}

impl Tiers {
    /// None yet; what becomes of objects in them is told to `events`.
    pub fn new(events: Arc<Events>) -> Tiers {
        let (next, evicted) = (AtomicU64::new(0), AtomicU64::new(0));
        Tiers { list: RwLock::default(), next, events, losses: Arc::default(), evicted }
    }

    /// What vanished from them.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The backends now.
    pub fn list(&self) -> TierList {
        self.list.read().clone()
    }

    /// Adds one below the others.
    pub fn add(&self, backend: Arc<dyn Backend>) -> Result<u64> {
        let mut list = self.list.write();
        // Above all others, so that places rise in the order in which backends are asked, as long as there are such places.
        let above = list.iter().map(|tier| tier.place + 1).max().unwrap_or(1);
        let free = (above..KVKEEP_TIERS_MAX)
            .chain(1..KVKEEP_TIERS_MAX)
            .find(|place| list.iter().all(|tier| tier.place != *place));
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
        let tier = Tier {
            number,
            place,
            backend,
            writes: Writes::default(),
            evicted_kept: AtomicU64::new(0),
            late: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            bars: Bars::default(),
            handing: AtomicUsize::new(0),
            misshapen: Mutex::default(),
        };
        let mut longer: Vec<Arc<Tier>> = list.iter().cloned().collect();
        longer.push(Arc::new(tier));
        *list = Arc::new(longer);
        Ok(number)
    }

    /// Takes one out: who looks at the list from now on does not see it.
    pub fn remove(&self, number: u64) -> Result<Arc<Tier>> {
        let mut list = self.list.write();
        let Some(tier) = list.iter().find(|tier| tier.number == number).cloned() else {
            return Err(Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("backend {number} is not open: use the number that kvkeep_add_backend gave"),
            ));
        };
        *list = Arc::new(list.iter().filter(|other| other.number != number).cloned().collect());
        self.keep_count(&tier);
        Ok(tier)
    }

    /// Objects that backends have evicted, those included that were removed.
    pub fn evicted(&self) -> u64 {
        let list = self.list.read();
        let of_list: u64 = list.iter().map(|tier| tier.backend.usage().evicted).sum();
        of_list + self.evicted.load(Ordering::Relaxed)
    }

    /// Counts what a backend has evicted since it was last counted, from when it is not in the list any more.
    pub fn keep_count(&self, tier: &Tier) {
        let evicted = tier.backend.usage().evicted;
        let before = tier.evicted_kept.swap(evicted, Ordering::Relaxed);
        self.evicted.fetch_add(evicted.saturating_sub(before), Ordering::Relaxed);
    }

    /// Closes all, and gives the failures.
    pub fn close(&self, timeout: Duration) -> Vec<Error> {
        let list = std::mem::take(&mut *self.list.write());
        list.iter()
            .filter_map(|tier| {
                let error = tier.close(timeout).err();
                self.keep_count(tier);
                error
            })
            .collect()
    }
}
