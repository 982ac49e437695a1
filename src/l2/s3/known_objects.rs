//! The objects that are known without asking the server: present, absent a moment ago, or under deletion.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::bucket_client::Asked;
use super::generations::Generations;
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Change, Found, Observer, Usage};

/// Most keys that are remembered as absent.
const ABSENT_MAX: usize = 1 << 16;

/// A moment in the memory of a bucket, at which the server is asked: changes that this process makes later make the answer old.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moment {
    /// Deletions that have begun.
    deletions: u64,
    /// Stores that have ended.
    stores: u64,
}

/// The memory of one bucket.
pub struct KnownObjects {
    /// Bytes of payload of objects that are there.
    present: Generations<u64>,
    /// Until when a key is taken for absent.
    absent: Generations<Instant>,
    absent_for: Duration,
    /// What is not known present is absent: the prefix was listed, and others do not store there.
    complete: bool,
    /// Deletions under way, by key: lookups do not find it.
    deleting: HashMap<ObjectKey, u32>,
    /// Stores under way, by key: a deletion waits for them.
    storing: HashMap<ObjectKey, u32>,
    moment: Moment,
    pins: u64,
    observer: Option<Observer>,
}

fn count_down(counts: &mut HashMap<ObjectKey, u32>, key: &ObjectKey) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl KnownObjects {
    /// Remembers up to `most` present objects, and each absent one for a time.
    pub fn new(most: usize, absent_for: Duration) -> KnownObjects {
        KnownObjects {
            present: Generations::new(most, |bytes| *bytes),
            absent: Generations::new(ABSENT_MAX, |_| 0),
            absent_for,
            complete: false,
            deleting: HashMap::new(),
            storing: HashMap::new(),
            moment: Moment::default(),
            pins: 0,
            observer: None,
        }
    }

    /// Replaces the observer of changes.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    /// All objects are known from now on, if nothing was deleted since the listing began at `asked`.
    pub fn is_complete(&mut self, asked: Moment) {
        self.complete = self.moment.deletions == asked.deletions;
    }

    /// What is known of an object, without a pin.
    pub fn peek(&mut self, key: &ObjectKey, now: Instant) -> Found {
        if self.deleting.contains_key(key) {
            return Found::Absent;
        }
        let all_known = self.complete && !self.present.has_dropped();
        match self.present.get(key) {
            Some(bytes) => Found::Present(bytes),
            None if all_known || self.absent.get(key).is_some_and(|until| now < until) => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// What is known of an object. A present one is pinned.
    pub fn look_up(&mut self, key: &ObjectKey, now: Instant) -> Found {
        let found = self.peek(key, now);
        self.pins += u64::from(matches!(found, Found::Present(_)));
        found
    }

    /// As `look_up`, of an object for which the service was asked.
    pub fn conclude(&mut self, key: &ObjectKey, now: Instant, answer: Asked) -> Found {
        match (self.look_up(key, now), answer) {
            (Found::Unknown, Asked::Payload(bytes)) => {
                self.pins += 1;
                Found::Present(bytes)
            }
            (Found::Unknown, Asked::Missing | Asked::Foreign) => Found::Absent,
            (known, _) => known,
        }
    }

    /// Gives pins back.
    pub fn unpin(&mut self, count: u64) {
        self.pins = self.pins.saturating_sub(count);
    }

    /// Whether an object is under deletion.
    pub fn is_deleting(&self, key: &ObjectKey) -> bool {
        self.deleting.contains_key(key)
    }

    /// This moment, at which the server is asked.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    /// An object is there, as the server said that was asked at `asked`. An answer from before a deletion tells nothing.
    pub fn appeared(&mut self, key: ObjectKey, bytes: u64, asked: Moment) {
        if self.deleting.contains_key(&key) || self.moment.deletions != asked.deletions {
            return;
        }
        self.absent.remove(&key);
        if self.present.insert(key, bytes).is_none() {
            self.notify(Change::Appeared, &key, bytes);
        }
    }

    /// An object is not there, as the server said that was asked at `asked`. An answer from before a store tells nothing.
    pub fn missing(&mut self, key: ObjectKey, asked: Moment) {
        if self.moment.stores != asked.stores && self.present.get(&key).is_some() {
            return;
        }
        self.vanish(&key);
        if !self.absent_for.is_zero() && !self.storing.contains_key(&key) {
            self.absent.insert(key, Instant::now() + self.absent_for);
        }
    }

    /// Nothing is known of an object any more.
    pub fn forget(&mut self, key: &ObjectKey) {
        self.vanish(key);
    }

    fn vanish(&mut self, key: &ObjectKey) -> bool {
        let Some(bytes) = self.present.remove(key) else { return false };
        self.notify(Change::Vanished, key, bytes);
        true
    }

    /// Hides objects until `end_delete`. Gives how many of them were known.
    pub fn begin_delete(&mut self, keys: &[ObjectKey]) -> u64 {
        self.moment.deletions += 1;
        let mut known = 0;
        for key in keys {
            known += u64::from(self.vanish(key));
            *self.deleting.entry(*key).or_default() += 1;
        }
        known
    }

    /// Their deletion is over.
    pub fn end_delete(&mut self, keys: &[ObjectKey]) {
        keys.iter().for_each(|key| count_down(&mut self.deleting, key));
    }

    /// Begins a store. False if the object is under deletion: wait.
    pub fn begin_store(&mut self, key: ObjectKey) -> bool {
        let may = !self.deleting.contains_key(&key);
        if may {
            *self.storing.entry(key).or_default() += 1;
        }
        may
    }

    /// Ends a store. `written` gives the bytes of an object that is there now.
    pub fn end_store(&mut self, key: ObjectKey, written: Option<u64>) {
        count_down(&mut self.storing, &key);
        if let Some(bytes) = written {
            self.moment.stores += 1;
            self.appeared(key, bytes, self.moment);
        }
    }

    /// Whether one of the keys is being stored.
    pub fn is_storing(&self, keys: &[ObjectKey]) -> bool {
        !self.storing.is_empty() && keys.iter().any(|key| self.storing.contains_key(key))
    }

    /// The known objects of a space, or of all.
    pub fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        let wanted = self.present.iter().filter(|(key, _)| space.is_none_or(|space| space == key.space));
        wanted.map(|(key, bytes)| (*key, *bytes)).collect()
    }

    /// Counts and bytes of the known objects, each with `overhead` bytes.
    pub fn usage(&self, overhead: u64) -> Usage {
        let (objects, bytes) = self.present.size();
        Usage { objects, bytes: bytes + objects * overhead, pins: self.pins, ..Usage::default() }
    }

    fn notify(&self, change: Change, key: &ObjectKey, bytes: u64) {
        if let Some(observer) = &self.observer {
            observer(change, key, bytes);
        }
    }
}
