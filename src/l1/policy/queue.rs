//! Order without links: an append-only queue in which only the newest entry of an id counts.
//!
//! Moving an id to the end writes one entry at the end and the id's place, and touches no neighbour. Entries left
//! behind are recognised by their place and skipped; when they outweigh the live ones, a sweep that moves along with
//! the appends packs the live ones together, so that no single call pays for all.

use std::collections::VecDeque;

use crate::l1::chunked::Chunked;

/// Entries of a segment, the unit in which queues take and give back memory.
const SEGMENT: u32 = 512;
/// Entries swept for each one appended while a sweep is on.
const SWEEP_PACE: u32 = 4;

/// No queue knows the id.
const ABSENT: u32 = u32::MAX;
/// Offered as a victim, and not decided yet.
const ASIDE: u32 = u32::MAX - 1;
/// Waits in `returned` of its queue.
const RETURNED: u32 = u32::MAX - 2;

/// Where every id stands, and the memory of all queues of one policy.
pub(super) struct Places {
    place: Chunked<u32>,
    slots: Chunked<u32>,
    segments: u32,
    spare: Vec<u32>,
}

impl Places {
    pub(super) fn new() -> Places {
        Places { place: Chunked::new(), slots: Chunked::new(), segments: 0, spare: Vec::new() }
    }

    /// Makes room for `id`.
    pub(super) fn reach(&mut self, id: u32) {
        self.place.reach(id, ABSENT);
    }

    pub(super) fn knows(&self, id: u32) -> bool {
        self.place.get(id).is_some_and(|&place| place != ABSENT)
    }

    pub(super) fn is_aside(&self, id: u32) -> bool {
        self.place.get(id) == Some(&ASIDE)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.place.memory_bytes() + self.slots.memory_bytes() + self.spare.capacity() * size_of::<u32>()
    }

    fn segment(&mut self) -> u32 {
        self.spare.pop().unwrap_or_else(|| {
            let segment = self.segments;
            self.segments += 1;
            self.slots.reach(segment * SEGMENT + SEGMENT - 1, 0);
            segment
        })
    }
}

/// Segments read at the front and written at the back.
#[derive(Default)]
struct Run {
    segments: VecDeque<u32>,
    head: u32,
    /// The next slot to write, at a multiple of [`SEGMENT`] when a new segment is needed.
    tail: u32,
}

impl Run {
    /// Writes an entry and gives its slot, and whether a segment was begun for it.
    #[inline]
    fn push(&mut self, places: &mut Places, id: u32) -> (u32, bool) {
        let full = self.tail.is_multiple_of(SEGMENT);
        if full {
            let segment = places.segment();
            if self.segments.is_empty() {
                self.head = segment * SEGMENT;
            }
            self.segments.push_back(segment);
            self.tail = segment * SEGMENT;
        }
        let slot = self.tail;
        places.slots[slot] = id;
        // Past the last slot of a segment this is a multiple of it, which `push` reads as full.
        self.tail += 1;
        (slot, full)
    }

    fn first(&self, places: &Places) -> Option<(u32, u32)> {
        (!self.segments.is_empty()).then(|| (places.slots[self.head], self.head))
    }

    /// Passes over the first entry.
    fn skip(&mut self, places: &mut Places) {
        self.head += 1;
        if self.head == self.tail && self.segments.len() == 1 {
            places.spare.extend(self.segments.pop_front());
            self.tail = 0;
        } else if self.head.is_multiple_of(SEGMENT) {
            places.spare.extend(self.segments.pop_front());
            self.head = self.segments.front().map_or(0, |segment| segment * SEGMENT);
        }
    }
}

/// One order of ids, first to go in front.
#[derive(Default)]
pub(super) struct Queue {
    /// Ids that were set aside and come first again.
    returned: VecDeque<u32>,
    /// What the sweep has packed, what it packed the time before, and what was appended since.
    packed: Run,
    before: Run,
    recent: Run,
    entries: usize,
    live: usize,
    sweeping: bool,
}

impl Queue {
    /// Ids that stand in the queue.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Puts an id that stands in no queue at the end.
    pub(super) fn push(&mut self, places: &mut Places, id: u32) {
        self.live += 1;
        self.append(places, id);
    }

    /// Moves an id that stands in this queue to the end.
    #[inline]
    pub(super) fn renew(&mut self, places: &mut Places, id: u32) {
        if places.place[id] == ASIDE {
            self.live += 1;
        }
        self.append(places, id);
    }

    #[inline]
    fn append(&mut self, places: &mut Places, id: u32) {
        let (slot, began) = self.recent.push(places, id);
        places.place[id] = slot;
        self.entries += 1;
        if began {
            self.sweep(places);
        }
    }

    /// Takes an id out, wherever it stands. The id is unknown to every queue then.
    pub(super) fn remove(&mut self, places: &mut Places, id: u32) {
        if places.place[id] < ASIDE {
            self.live -= 1;
        }
        places.place[id] = ABSENT;
    }

    /// The first id.
    pub(super) fn first(&mut self, places: &mut Places) -> Option<u32> {
        while let Some(&id) = self.returned.front() {
            if places.place[id] == RETURNED {
                return Some(id);
            }
            self.returned.pop_front();
        }
        for run in [&mut self.packed, &mut self.before, &mut self.recent] {
            while let Some((id, slot)) = run.first(places) {
                if places.place[id] == slot {
                    return Some(id);
                }
                run.skip(places);
                self.entries -= 1;
            }
        }
        None
    }

    /// The first id, set aside: it keeps its state and stands nowhere.
    pub(super) fn set_aside(&mut self, places: &mut Places) -> Option<u32> {
        let id = self.first(places)?;
        self.live -= 1;
        places.place[id] = ASIDE;
        Some(id)
    }

    /// Puts an id that was set aside in front.
    pub(super) fn put_back(&mut self, places: &mut Places, id: u32) {
        self.live += 1;
        places.place[id] = RETURNED;
        self.returned.push_back(id);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let runs = [&self.packed, &self.before, &self.recent];
        let words = self.returned.capacity() + runs.iter().map(|run| run.segments.capacity()).sum::<usize>();
        words * size_of::<u32>()
    }

    /// Once per segment appended: packs a few segments' live entries, when too many are stale.
    fn sweep(&mut self, places: &mut Places) {
        if !self.sweeping {
            if self.entries <= 3 * self.live + 2 * SEGMENT as usize {
                return;
            }
            self.sweeping = true;
            std::mem::swap(&mut self.packed, &mut self.before);
        }
        for _ in 0..SWEEP_PACE * SEGMENT {
            // The segment being written stays: a sweep has its end there.
            let whole = self.recent.segments.len() > 1;
            let run = if self.before.segments.is_empty() && whole { &mut self.recent } else { &mut self.before };
            let Some((id, slot)) = run.first(places) else {
                self.sweeping = false;
                return;
            };
            run.skip(places);
            self.entries -= 1;
            if places.place[id] == slot {
                let (slot, _) = self.packed.push(places, id);
                places.place[id] = slot;
                self.entries += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut Queue, places: &mut Places) -> Vec<u32> {
        std::iter::from_fn(|| queue.set_aside(places)).collect()
    }

    #[test]
    fn it_keeps_the_order_of_a_plain_list_through_sweeps() {
        let (mut places, mut queue) = (Places::new(), Queue::default());
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
            assert!(queue.entries <= 4 * 700 + 4 * SEGMENT as usize);
        }
        assert_eq!(drain(&mut queue, &mut places), Vec::from(model));
        assert!(places.memory_bytes() < 80_000);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let (mut places, mut queue) = (Places::new(), Queue::default());
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
