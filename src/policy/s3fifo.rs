//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi, SOSP 2023): a small queue for new objects, a main one for those used
//! again, and a memory of those that left the small one.

use super::eviction_policy::{EvictionPolicy, Meta, Removal};
use super::ghost::{Ghost, short};
use super::queue::{LinkedQueue, QueueLinks};
use crate::chunked::Chunked;

/// The small queue's share of the residents is one in this many.
const SMALL_SHARE: usize = 10;
/// Uses counted at most, so that an object is forgotten in as many rounds.
const MOST_USES: u8 = 3;
/// Uses that carry an object from the small queue to the main one.
const PROMOTED: u8 = 2;

#[derive(Clone, Copy, Default)]
struct S3FifoObject {
    tag: u32,
    /// `Meta::uses` as last seen: a touch counts only if a read raised it.
    seen: u32,
    uses: u8,
    main: bool,
}

/// Two queues in order of arrival.
pub struct S3Fifo {
    states: Chunked<S3FifoObject>,
    links: QueueLinks,
    small: LinkedQueue,
    main: LinkedQueue,
    ghost: Ghost,
    residents: usize,
    /// Objects remembered so far, wrapping.
    remembered: u32,
}

impl S3Fifo {
    /// A policy that knows no object yet.
    pub fn new() -> S3Fifo {
        S3Fifo {
            states: Chunked::new(),
            links: QueueLinks::new(),
            small: LinkedQueue::new(0),
            main: LinkedQueue::new(1),
            ghost: Ghost::new(),
            residents: 0,
            remembered: 0,
        }
    }
}

impl Default for S3Fifo {
    fn default() -> S3Fifo {
        S3Fifo::new()
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn insert(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta) {
        let meta = meta(id);
        self.links.reach(id);
        self.states.reach(id, S3FifoObject::default);
        let tag = short(meta.tag);
        let main = self.ghost.recall(tag, self.remembered).is_some();
        self.states[id] = S3FifoObject { tag, seen: meta.uses, uses: 0, main };
        self.residents += 1;
        let queue = if main { &mut self.main } else { &mut self.small };
        queue.push(&mut self.links, id);
    }

    fn touch(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta) {
        if !self.links.knows(id) {
            return;
        }
        let uses = meta(id).uses;
        let state = &mut self.states[id];
        let new = uses.saturating_sub(state.seen).min(u32::from(MOST_USES)) as u8;
        state.uses = (state.uses + new).min(MOST_USES);
        state.seen = uses;
        if self.links.is_aside(id) {
            let queue = if state.main { &mut self.main } else { &mut self.small };
            queue.push(&mut self.links, id);
        }
    }

    fn remove(&mut self, id: u32, why: Removal) {
        if !self.links.knows(id) {
            return;
        }
        let queue = if self.states[id].main { &mut self.main } else { &mut self.small };
        queue.remove(&mut self.links, id);
        let S3FifoObject { tag, main, .. } = self.states[id];
        if why == Removal::Evicted && !main {
            self.remembered = self.remembered.wrapping_add(1);
            self.ghost.set_span(self.residents - self.residents / SMALL_SHARE);
            self.ghost.remember(tag, 0, self.remembered, self.remembered);
        }
        self.residents -= 1;
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        loop {
            let small = self.small.len() * SMALL_SHARE >= self.residents || self.main.len() == 0;
            let id =
                if small { self.small.set_aside(&mut self.links)? } else { self.main.set_aside(&mut self.links)? };
            let state = &mut self.states[id];
            if small && state.uses >= PROMOTED {
                state.uses = 0;
                state.main = true;
            } else if !small && state.uses > 0 {
                state.uses -= 1;
            } else if usable(id) {
                return Some(id);
            } else {
                continue;
            }
            self.main.push(&mut self.links, id);
        }
    }

    fn release(&mut self, id: u32) {
        if self.links.is_aside(id) {
            let queue = if self.states[id].main { &mut self.main } else { &mut self.small };
            queue.put_back(&mut self.links, id);
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<S3Fifo>() + self.states.memory_bytes() + self.links.memory_bytes() + self.ghost.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::contract::{Step::*, run};
    use super::*;

    #[test]
    fn what_was_never_used_leaves_in_order_of_arrival() {
        run(&mut S3Fifo::new(), &[Insert(0), Insert(1), Touch(0), Victim(0), Evict(0), Victim(1), Evict(1), Dry]);
    }

    #[test]
    fn two_uses_carry_an_object_to_the_main_queue() {
        let steps = [Insert(0), Insert(1), Insert(2), Read(0, 2), Read(1, 1), Victim(1), Evict(1), Victim(2), Evict(2)];
        let mut policy = S3Fifo::new();
        run(&mut policy, &steps);
        run(&mut policy, &[Victim(0), Dry]);
    }

    #[test]
    fn touches_without_a_read_are_no_uses() {
        run(&mut S3Fifo::new(), &[Insert(0), Insert(1), Touch(0), Touch(0), Touch(0), Victim(0)]);
    }

    #[test]
    fn what_comes_back_soon_goes_to_the_main_queue() {
        let mut steps: Vec<_> = (0..20).map(Insert).collect();
        steps.extend([Victim(0), Evict(0), Insert(0)]);
        steps.extend((1..20).flat_map(|id| [Victim(id), Evict(id)]));
        steps.push(Victim(0));
        run(&mut S3Fifo::new(), &steps);
    }

    #[test]
    fn the_main_queue_gives_one_more_round_per_use() {
        let mut policy = S3Fifo::new();
        run(&mut policy, &[Insert(0), Insert(1), Read(0, 2), Read(1, 2), Read(0, 9)]);
        run(&mut policy, &[Victim(0), Release(0), Read(1, 3), Victim(0), Victim(1), Dry]);
    }
}
