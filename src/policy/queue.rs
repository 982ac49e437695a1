//! Order without links: an append-only queue in which only the newest entry of an id counts.
//!
//! Moving an id to the end writes one entry at the end and the id's place, and touches no neighbour. Entries left
//! behind are recognised by their place and skipped; when they outweigh the live ones, a sweep that moves along with
//! the appends packs the live ones together, so that no single call pays for all.

use std::collections::VecDeque;

use crate::arena::prefetch_to_change;
use crate::chunked::Chunked;

/// Entries of a segment, the unit in which queues take and give back memory.
const SEGMENT: usize = 512;
/// Segments swept for each one appended while a sweep is on.
const SWEEP_PACE: usize = 4;
/// Entries that a sweep looks ahead, to have their memory fetched.
const AHEAD: usize = 16;
/// A sweep begins when there are this many entries to a live one.
const STALE_FACTOR: usize = 2;

/// No queue knows the id.
const ABSENT: u32 = u32::MAX;
/// Offered as a victim, and not decided yet.
const ASIDE: u32 = u32::MAX - 1;
/// From here on, places are tickets: the id waits in `returned` of the queue that has its ticket. An id may have been put back into
/// another queue since.
const TICKETS: u32 = 1 << 31;

/// Where every id stands, and the memory of all queues of one policy.
pub(super) struct QueuePlaces {
    place: Chunked<u32, 4096>,
    tickets: u32,
    segments: u32,
    spare: Vec<QueueSegment>,
}

/// A stretch of entries; entry `n` has the place `base + n`.
#[derive(Default)]
struct QueueSegment {
    base: u32,
    ids: Box<[u32]>,
}

impl QueuePlaces {
    pub(super) fn new() -> QueuePlaces {
        QueuePlaces { place: Chunked::new(), tickets: 0, segments: 0, spare: Vec::new() }
    }

    /// Makes a place for `id`.
    pub(super) fn reach(&mut self, id: u32) {
        self.place.reach(id, || ABSENT);
    }

    /// Has the memory fetched that an id's move changes.
    pub(super) fn prefetch(&self, id: u32) {
        if let Some(place) = self.place.get(id) {
            prefetch_to_change(place);
        }
    }

    fn get(&self, id: u32) -> u32 {
        self.place.get(id).copied().unwrap_or(ABSENT)
    }

    fn set(&mut self, id: u32, place: u32) {
        self.place[id] = place;
    }

    pub(super) fn knows(&self, id: u32) -> bool {
        self.get(id) != ABSENT
    }

    pub(super) fn is_aside(&self, id: u32) -> bool {
        self.get(id) == ASIDE
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.place.memory_bytes()
            + self.segments as usize * SEGMENT * size_of::<u32>()
            + self.spare.capacity() * size_of::<QueueSegment>()
    }

    fn ticket(&mut self) -> u32 {
        let ticket = TICKETS + self.tickets;
        self.tickets = (self.tickets + 1) % (ASIDE - TICKETS);
        ticket
    }

    fn segment(&mut self) -> QueueSegment {
        self.spare.pop().unwrap_or_else(|| {
            let base = self.segments * SEGMENT as u32;
            self.segments += 1;
            QueueSegment { base, ids: vec![0; SEGMENT].into_boxed_slice() }
        })
    }
}

/// Segments read at the front and written at the back.
#[derive(Default)]
struct Run {
    full: VecDeque<QueueSegment>,
    /// The last segment, written up to `fill`.
    last: QueueSegment,
    fill: usize,
    /// How many entries of the first segment were read.
    head: usize,
}

impl Run {
    /// Begins a segment when the last one is full. True if it did.
    #[inline]
    fn begin_if_full(&mut self, places: &mut QueuePlaces) -> bool {
        let full = self.fill == self.last.ids.len();
        if full {
            self.begin(places);
        }
        full
    }

    #[cold]
    fn begin(&mut self, places: &mut QueuePlaces) {
        let full = std::mem::replace(&mut self.last, places.segment());
        if !full.ids.is_empty() {
            self.full.push_back(full);
        }
        self.fill = 0;
    }

    fn first(&self) -> Option<(u32, u32)> {
        let (segment, length) = match self.full.front() {
            Some(segment) => (segment, SEGMENT),
            None => (&self.last, self.fill),
        };
        (self.head < length).then(|| (segment.ids[self.head], segment.base + self.head as u32))
    }

    /// Passes over the first entry.
    fn skip(&mut self, places: &mut QueuePlaces) {
        self.head += 1;
        if self.full.is_empty() {
            if self.head == self.fill {
                (self.head, self.fill) = (0, 0);
            }
        } else if self.head == SEGMENT {
            places.spare.extend(self.full.pop_front());
            self.head = 0;
        }
    }

    /// Takes the first segment whole: it, and its entries not read yet. The last one too if `even_last`.
    fn take(&mut self, even_last: bool) -> Option<(QueueSegment, std::ops::Range<usize>)> {
        let head = std::mem::take(&mut self.head);
        if let Some(segment) = self.full.pop_front() {
            return Some((segment, head..SEGMENT));
        }
        if even_last && self.fill > 0 {
            let fill = std::mem::take(&mut self.fill);
            return Some((std::mem::take(&mut self.last), head..fill));
        }
        self.head = head;
        None
    }
}

/// One order of ids, first to go in front.
#[derive(Default)]
pub(super) struct AppendQueue {
    /// Ids that were set aside and come first again, each with its ticket.
    returned: VecDeque<(u32, u32)>,
    /// The entries that the sweep has packed, those it packed the time before, and those appended since.
    packed: Run,
    before: Run,
    recent: Run,
    entries: usize,
    live: usize,
    sweeping: bool,
}

impl AppendQueue {
    /// Ids that stand in the queue.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Puts an id that stands in no queue at the end.
    pub(super) fn push(&mut self, places: &mut QueuePlaces, id: u32) {
        self.live += 1;
        self.append(places, id);
    }

    /// Moves an id to the end that stands in this queue or was set aside from it; false for an id that no queue knows.
    #[inline]
    pub(super) fn renew(&mut self, places: &mut QueuePlaces, id: u32) -> bool {
        let place = places.get(id);
        if place >= ASIDE {
            if place == ABSENT {
                return false;
            }
            self.live += 1;
        }
        self.append(places, id);
        true
    }

    #[inline]
    fn append(&mut self, places: &mut QueuePlaces, id: u32) {
        let began = self.recent.begin_if_full(places);
        self.recent.last.ids[self.recent.fill] = id;
        places.set(id, self.recent.last.base + self.recent.fill as u32);
        self.recent.fill += 1;
        self.entries += 1;
        if began {
            self.sweep(places);
        }
    }

    /// Takes an id out, wherever it stands. The id is unknown to every queue then.
    pub(super) fn remove(&mut self, places: &mut QueuePlaces, id: u32) {
        if places.get(id) < ASIDE {
            self.live -= 1;
        }
        places.set(id, ABSENT);
    }

    /// The id to go first. Skips entries left behind.
    pub(super) fn first(&mut self, places: &mut QueuePlaces) -> Option<u32> {
        while let Some(&(id, ticket)) = self.returned.front() {
            if places.get(id) == ticket {
                return Some(id);
            }
            self.returned.pop_front();
        }
        for run in [&mut self.packed, &mut self.before, &mut self.recent] {
            while let Some((id, slot)) = run.first() {
                if places.get(id) == slot {
                    return Some(id);
                }
                run.skip(places);
                self.entries -= 1;
            }
        }
        None
    }

    /// The first id, set aside: it keeps its state and stands nowhere.
    pub(super) fn set_aside(&mut self, places: &mut QueuePlaces) -> Option<u32> {
        let id = self.first(places)?;
        self.live -= 1;
        places.set(id, ASIDE);
        Some(id)
    }

    /// Puts an id that was set aside in front.
    pub(super) fn put_back(&mut self, places: &mut QueuePlaces, id: u32) {
        self.live += 1;
        let ticket = places.ticket();
        places.set(id, ticket);
        self.returned.push_back((id, ticket));
    }

    /// Memory held, in bytes, without that which [`QueuePlaces`] counts.
    pub(super) fn memory_bytes(&self) -> usize {
        let runs = [&self.packed, &self.before, &self.recent];
        self.returned.capacity() * size_of::<(u32, u32)>()
            + runs.iter().map(|run| run.full.capacity()).sum::<usize>() * size_of::<QueueSegment>()
    }

    /// Once per segment appended: packs the live entries of a few segments, when too many are stale.
    #[cold]
    fn sweep(&mut self, places: &mut QueuePlaces) {
        if !self.sweeping {
            if self.entries <= STALE_FACTOR * self.live + 2 * SEGMENT {
                return;
            }
            self.sweeping = true;
            std::mem::swap(&mut self.packed, &mut self.before);
        }
        for _ in 0..SWEEP_PACE {
            // The segment being written stays: the sweep has its end there.
            let Some((segment, unread)) = self.before.take(true).or_else(|| self.recent.take(false)) else {
                self.sweeping = false;
                return;
            };
            self.entries -= unread.len();
            for at in unread {
                self.packed.begin_if_full(places);
                let id = segment.ids[at];
                if let Some(&later) = segment.ids.get(at + AHEAD) {
                    places.prefetch(later);
                }
                // Whether an entry lives is a coin toss to a branch predictor, so it is written either way and kept
                // by counting it.
                let place = &mut places.place[id];
                let lives = *place == segment.base + at as u32;
                let fill = self.packed.fill;
                self.packed.last.ids[fill] = id;
                *place = if lives { self.packed.last.base + fill as u32 } else { *place };
                self.packed.fill += usize::from(lives);
                self.entries += usize::from(lives);
            }
            places.spare.push(segment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut AppendQueue, places: &mut QueuePlaces) -> Vec<u32> {
        std::iter::from_fn(|| queue.set_aside(places)).collect()
    }

    #[test]
    fn it_keeps_the_order_of_a_plain_list_through_sweeps() {
        let (mut places, mut queue) = (QueuePlaces::new(), AppendQueue::default());
        let mut model = VecDeque::new();
        let mut seed = 7u64;
        places.reach(4000);
        for round in 0..60_000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = (seed >> 33) as u32 % 700;
            if !places.knows(id) {
                queue.push(&mut places, id);
            } else {
                model.retain(|&other| other != id);
                if round % 5 == 0 {
                    queue.remove(&mut places, id);
                    continue;
                }
                queue.renew(&mut places, id);
            }
            model.push_back(id);
            if round % 7 == 0 {
                let first = queue.set_aside(&mut places).unwrap();
                assert_eq!(Some(first), model.pop_front());
                queue.remove(&mut places, first);
            }
            assert_eq!(queue.len(), model.len());
            assert!(queue.entries <= 4 * 700 + 4 * SEGMENT);
        }
        assert_eq!(drain(&mut queue, &mut places), Vec::from(model));
        assert!(places.memory_bytes() < 80_000);
    }

    #[test]
    fn what_was_put_back_into_another_queue_since_is_that_queue_s() {
        let (mut places, mut one, mut other) = (QueuePlaces::new(), AppendQueue::default(), AppendQueue::default());
        places.reach(2);
        (0..2).for_each(|id| one.push(&mut places, id));
        assert_eq!(one.set_aside(&mut places), Some(0));
        one.put_back(&mut places, 0);
        one.remove(&mut places, 0);
        other.push(&mut places, 0);
        assert_eq!(other.set_aside(&mut places), Some(0));
        other.put_back(&mut places, 0);
        assert_eq!(drain(&mut one, &mut places), [1]);
        assert_eq!(drain(&mut other, &mut places), [0]);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let (mut places, mut queue) = (QueuePlaces::new(), AppendQueue::default());
        places.reach(10);
        (0..4).for_each(|id| queue.push(&mut places, id));
        assert_eq!(queue.set_aside(&mut places), Some(0));
        assert_eq!(queue.set_aside(&mut places), Some(1));
        queue.put_back(&mut places, 0);
        queue.put_back(&mut places, 1);
        queue.renew(&mut places, 0);
        assert_eq!(drain(&mut queue, &mut places), [1, 2, 3, 0]);
    }
}
