//! Events of objects, tier by tier: a bounded log that any number of readers follow, each at its own pace.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};
use crate::key::{Key, ObjectKey, SpaceTag};

/// Most events that are kept for readers.
pub const KVKEEP_EVENTS_MAX: usize = 1 << 16;

/// A change of one object in one tier.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// Its number, from 1 on. Numbers rise by one; where they skip some, events were lost.
    pub sequence: u64,
    /// When it was recorded, in microseconds since 1970.
    pub time_us: u64,
    /// The object's space.
    pub space: u64,
    /// Number of the backend, 0 for L1.
    pub backend: u64,
    /// Length of the object in bytes.
    pub size: u64,
    /// The object's key.
    pub key: Key,
    /// A kvkeep_event_kind.
    pub kind: u32,
    /// 0 for L1, else the place of the backend, as in `tier_keys` of a result.
    pub tier: u32,
    /// Always 0.
    pub reserved: [u64; 4],
}

const _: () = assert!(size_of::<Event>() == 120);

/// Events copied under one lock, so that a reader does not hold up the threads that record.
const SLICE: usize = 256;

/// The change of an object in one tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// The tier has the object from now on.
    Stored = 1,
    /// The tier has the object no more.
    Removed = 2,
}

/// The log. Before its first reader comes it only counts, and keeps nothing.
#[derive(Default)]
pub struct Events {
    /// Number of the newest event.
    newest: AtomicU64,
    /// Events of L1 before any were kept.
    unheard: AtomicU64,
    /// Whether events are kept: from the first read on.
    kept: AtomicBool,
    /// The newest, in order of their numbers.
    log: Mutex<VecDeque<Event>>,
}

impl Events {
    /// Records the change of an object in L1. Called under L1's lock, so that the events of L1 are in its order.
    #[inline]
    pub fn record_l1(&self, kind: EventKind, object: impl FnOnce() -> (SpaceTag, Key, u64)) {
        if self.kept.load(Ordering::Acquire) {
            let (space, key, size) = object();
            self.push(Event { kind: kind as u32, space: space.number(), key, size, ..EMPTY });
        } else {
            // L1's lock makes these two one step, at a fraction of the cost of an atomic one.
            self.unheard.store(self.unheard.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Records the change of an object in the backend `number`, which stands at `place` among the tiers.
    pub fn record_backend(&self, kind: EventKind, place: usize, number: u64, object: &ObjectKey, size: u64) {
        let (kind, tier, space) = (kind as u32, place as u32, object.space.number());
        self.push(Event { kind, tier, backend: number, space, key: object.key, size, ..EMPTY });
    }

    fn push(&self, event: Event) {
        let mut log = self.log.lock();
        let sequence = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.kept.load(Ordering::Relaxed) {
            return;
        }
        let time_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        if log.len() == KVKEEP_EVENTS_MAX {
            log.pop_front();
        }
        log.push_back(Event { sequence, time_us, ..event });
    }

    /// Whether events are kept, and not only counted.
    pub fn are_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// Keeps the events that are recorded from now on. Called under L1's lock.
    pub fn keep(&self) -> Result<()> {
        let mut log = self.log.lock();
        if !self.kept.load(Ordering::Relaxed) {
            let bytes = KVKEEP_EVENTS_MAX * size_of::<Event>();
            log.try_reserve_exact(KVKEEP_EVENTS_MAX)
                .map_err(|_| Error::no_memory(bytes, "the events that are kept"))?;
            self.newest.fetch_add(self.unheard.load(Ordering::Relaxed), Ordering::Relaxed);
            self.kept.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Number of the newest event, 0 before the first.
    pub fn newest(&self) -> u64 {
        let unheard = if self.kept.load(Ordering::Acquire) { 0 } else { self.unheard.load(Ordering::Relaxed) };
        self.newest.load(Ordering::Relaxed) + unheard
    }

    /// Copies events from number `next` on (from the oldest kept for 0), sets `next` to the number after the last one
    /// given, and says how many were given. Lost events are passed over.
    pub fn drain(&self, next: &mut u64, events: &mut [Event]) -> Result<usize> {
        let mut given = 0;
        for slice in events.chunks_mut(SLICE) {
            let log = self.log.lock();
            let after = self.newest() + 1;
            if *next > after {
                return Err(Error::invalid(format!(
                    "next_sequence is {next}, but the newest event has the number {}: begin with 0 after the cache was opened again",
                    after - 1
                )));
            }
            let first = log.partition_point(|event| event.sequence < *next);
            let found = log.range(first..);
            let count = found.len().min(slice.len());
            for (place, event) in slice.iter_mut().zip(found) {
                *place = *event;
            }
            given += count;
            *next = match count {
                0 => after,
                _ => slice[count - 1].sequence + 1,
            };
            if count < slice.len() {
                break;
            }
        }
        Ok(given)
    }
}

/// An event of nothing.
pub const EMPTY: Event = Event {
    sequence: 0,
    time_us: 0,
    space: 0,
    backend: 0,
    size: 0,
    key: Key { hash: [0; 32], rank: 0, group: 0 },
    kind: 0,
    tier: 0,
    reserved: [0; 4],
};

#[cfg(test)]
mod tests {
    use super::*;

    fn store(events: &Events, count: u32) {
        for rank in 0..count {
            events.record_l1(EventKind::Stored, || (SpaceTag([1; 16]), Key { hash: [0; 32], rank, group: 0 }, 1));
        }
    }

    fn drain(events: &Events, next: &mut u64, most: usize) -> Vec<u64> {
        events.keep().unwrap();
        let mut some = vec![EMPTY; most];
        let count = events.drain(next, &mut some).unwrap();
        some[..count].iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn what_nobody_reads_is_counted_and_not_kept() {
        let events = Events::default();
        store(&events, 5);
        assert_eq!(events.log.lock().capacity(), 0);
        let mut next = 0;
        assert!(drain(&events, &mut next, 9).is_empty());
        assert_eq!(next, 6);
        store(&events, 2);
        assert_eq!(drain(&events, &mut next, 9), [6, 7]);
    }

    #[test]
    fn each_reader_has_a_place_of_its_own() {
        let events = Events::default();
        let (mut one, mut other) = (0, 0);
        drain(&events, &mut one, 1);
        store(&events, 1000);
        assert_eq!(drain(&events, &mut one, 600), (1..=600).collect::<Vec<u64>>());
        assert_eq!(drain(&events, &mut one, 600), (601..=1000).collect::<Vec<u64>>());
        assert_eq!((drain(&events, &mut one, 600), one), (vec![], 1001));
        assert_eq!(drain(&events, &mut other, 2), [1, 2]);
        other = 999;
        assert_eq!(drain(&events, &mut other, 9), [999, 1000]);
        assert_eq!(events.drain(&mut 1002, &mut [EMPTY]).unwrap_err().status, crate::error::KVKEEP_ERR_INVALID);
    }

    #[test]
    fn a_gap_is_seen_by_the_number_of_the_first() {
        let events = Events::default();
        let mut next = 0;
        drain(&events, &mut next, 1);
        store(&events, KVKEEP_EVENTS_MAX as u32 + 10);
        let all = drain(&events, &mut next, 2 * KVKEEP_EVENTS_MAX);
        assert_eq!((all[0], all.len()), (11, KVKEEP_EVENTS_MAX));
        assert_eq!(next, KVKEEP_EVENTS_MAX as u64 + 11);
    }

    #[test]
    fn an_event_of_a_backend_says_which_and_when() {
        let events = Events::default();
        events.keep().unwrap();
        let object = ObjectKey { space: SpaceTag([1; 16]), key: EMPTY.key };
        events.record_backend(EventKind::Removed, 2, 9, &object, 5);
        let mut some = [EMPTY; 2];
        assert_eq!(events.drain(&mut 0, &mut some).unwrap(), 1);
        let event = some[0];
        assert_eq!((event.space, event.tier, event.backend, event.kind), (object.space.number(), 2, 9, 2));
        assert!(event.time_us > 0);
    }
}
