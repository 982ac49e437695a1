//! Least recently used first, exactly.

use super::eviction_policy::{EvictionPolicy, Meta, Removal};
use super::queue::{LinkedQueue, QueueLinks};

/// Objects touched together, whose memory is fetched at the same time.
const GROUP: usize = 64;

/// One queue; a touch moves to its end.
pub struct Lru {
    links: QueueLinks,
    queue: LinkedQueue,
}

impl Lru {
    /// A policy that knows no object yet.
    pub fn new() -> Lru {
        Lru { links: QueueLinks::new(), queue: LinkedQueue::new(0) }
    }
}

impl Default for Lru {
    fn default() -> Lru {
        Lru::new()
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, id: u32, _meta: &dyn Fn(u32) -> Meta) {
        self.links.reach(id);
        self.queue.push(&mut self.links, id);
    }

    fn touch(&mut self, id: u32, _meta: &dyn Fn(u32) -> Meta) {
        self.queue.renew(&mut self.links, id);
    }

    fn touch_all(&mut self, ids: &[u32], _meta: &dyn Fn(u32) -> Meta) {
        for ids in ids.chunks(GROUP) {
            ids.iter().for_each(|&id| self.links.prefetch(id));
            ids.iter().for_each(|&id| self.links.prefetch_neighbours(id));
            ids.iter().for_each(|&id| self.queue.renew(&mut self.links, id));
        }
    }

    fn remove(&mut self, id: u32, _why: Removal) {
        if self.links.knows(id) {
            self.queue.remove(&mut self.links, id);
        }
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        while let Some(id) = self.queue.set_aside(&mut self.links) {
            if usable(id) {
                return Some(id);
            }
        }
        None
    }

    fn release(&mut self, id: u32) {
        if self.links.is_aside(id) {
            self.queue.put_back(&mut self.links, id);
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Lru>() + self.links.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::contract::{Step::*, run};
    use super::*;

    #[test]
    fn the_order_is_that_of_use() {
        let mut lru = Lru::new();
        run(
            &mut lru,
            &[Insert(0), Insert(1), Insert(2), Touch(0), Victim(1), Evict(1), Victim(2), Evict(2), Victim(0)],
        );
    }

    #[test]
    fn a_prefix_touched_last_to_first_dies_from_its_tail() {
        let steps =
            [Insert(0), Insert(1), Insert(2), Touch(2), Touch(1), Touch(0), Victim(2), Victim(1), Victim(0), Dry];
        run(&mut Lru::new(), &steps);
    }

    #[test]
    fn memory_stays_in_proportion_to_what_is_resident() {
        let mut lru = Lru::new();
        let count = 200_000;
        (0..count).for_each(|id| lru.insert(id, &|_| Meta::default()));
        for round in 0..20u64 {
            (0..count).for_each(|id| lru.touch((u64::from(id) * 7919 + round) as u32 % count, &|_| Meta::default()));
            assert!(lru.memory_bytes() <= 24 * count as usize, "round {round}: {} bytes", lru.memory_bytes());
        }
    }
}
