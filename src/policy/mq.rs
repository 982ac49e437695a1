//! MQ (Zhou, Philbin, Li, USENIX 2001): one LRU queue per power of two of uses, so that objects used often
//! outlive those used lately; an object not used for a lifetime sinks by one queue; a memory keeps the counts of evicted objects.
//!
//! The lifetime follows the workload, not the cache: it is a multiple of the distance at which objects are typically used
//! again, seen in the queues and in the memory.

use super::eviction_policy::{EvictionPolicy, Meta, Removal};
use super::ghost::{Ghost, short};
use super::queue::{LinkedQueue, QueueLinks};
use crate::chunked::Chunked;

const QUEUES: usize = 8;
/// A lifetime in typical distances. Measured on chat traces, where it holds from a cache of 1 % of the blocks to 50 %.
const LIFETIME_FACTOR: u32 = 4;
/// How far back evicted objects are remembered, in uses for each resident: under 80 bytes for each of as many residents as
/// there ever were at once.
const GHOST_FACTOR: usize = 5;
/// One distance moves the typical one by a part in this many.
const TYPICAL_STEPS: u32 = 64;

#[derive(Clone, Copy, Default)]
struct MqObject {
    tag: u32,
    /// Time of the last use.
    since: u32,
    /// Uses before this residence, counting its insertion.
    before: u8,
    /// Uses before this residence and in it.
    uses: u8,
    queue: u8,
}

/// The policy: eight LRU queues and a memory.
pub struct Mq {
    states: Chunked<MqObject>,
    links: QueueLinks,
    queues: [LinkedQueue; QUEUES],
    ghost: Ghost,
    residents: usize,
    /// Uses so far, wrapping.
    now: u32,
    /// The median of the distances, in uses, at which objects were used again lately.
    typical: u32,
}

fn queue_of(uses: u8) -> u8 {
    uses.max(1).ilog2() as u8
}

impl Mq {
    /// A policy that knows no object yet.
    pub fn new() -> Mq {
        Mq {
            states: Chunked::new(),
            links: QueueLinks::new(),
            queues: std::array::from_fn(|number| LinkedQueue::new(number as u32)),
            ghost: Ghost::new(),
            residents: 0,
            now: 0,
            typical: 0,
        }
    }

    /// Follows the median of distances: half of them pull it up, half down.
    fn observe(&mut self, distance: u32) {
        let step = self.typical / TYPICAL_STEPS + 1;
        if distance > self.typical {
            self.typical = self.typical.saturating_add(step);
        } else {
            self.typical = self.typical.saturating_sub(step);
        }
    }

    /// Lets objects not used for a lifetime sink by one queue, for two lifetimes by two.
    fn sink(&mut self) {
        if self.typical == 0 {
            self.typical = u32::try_from(self.residents).unwrap_or(u32::MAX);
        }
        let lifetime = self.typical.saturating_mul(LIFETIME_FACTOR);
        for from in 1..QUEUES {
            while let Some(id) = self.queues[from].first(&self.links) {
                let state = &mut self.states[id];
                let sunk = queue_of(state.uses) - from as u8;
                if self.now.wrapping_sub(state.since) <= lifetime.saturating_mul(1 + u32::from(sunk)) {
                    break;
                }
                state.queue = from as u8 - 1;
                self.queues[from].remove(&mut self.links, id);
                self.queues[from - 1].push(&mut self.links, id);
            }
        }
    }
}

impl Default for Mq {
    fn default() -> Mq {
        Mq::new()
    }
}

impl EvictionPolicy for Mq {
    fn name(&self) -> &'static str {
        "mq"
    }

    fn insert(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta) {
        self.links.reach(id);
        self.states.reach(id, MqObject::default);
        self.now = self.now.wrapping_add(1);
        self.residents += 1;
        let tag = short(meta(id).tag);
        let uses = match self.ghost.recall(tag, self.now) {
            Some((uses, age)) => {
                self.observe(age);
                uses.saturating_add(1)
            }
            None => 1,
        };
        let queue = queue_of(uses);
        self.states[id] = MqObject { tag, since: self.now, before: uses, uses, queue };
        self.queues[usize::from(queue)].push(&mut self.links, id);
    }

    fn touch(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta) {
        if !self.links.knows(id) {
            return;
        }
        let state = &mut self.states[id];
        let uses = state.before.saturating_add(meta(id).uses.min(255) as u8);
        let old = usize::from(state.queue);
        let mut distance = None;
        // A touch without a new read, as at the end of a session, is no use: it renews the place only.
        if uses > state.uses {
            self.now = self.now.wrapping_add(1);
            distance = Some(self.now.wrapping_sub(state.since));
            state.uses = uses;
        }
        state.since = self.now;
        state.queue = queue_of(state.uses);
        let new = usize::from(state.queue);
        if let Some(distance) = distance {
            self.observe(distance);
        }
        if new == old {
            self.queues[old].renew(&mut self.links, id);
        } else {
            self.queues[old].remove(&mut self.links, id);
            self.queues[new].push(&mut self.links, id);
        }
    }

    fn remove(&mut self, id: u32, why: Removal) {
        if !self.links.knows(id) {
            return;
        }
        let MqObject { tag, uses, queue, since, .. } = self.states[id];
        self.queues[usize::from(queue)].remove(&mut self.links, id);
        if why == Removal::Evicted {
            self.ghost.set_span(self.residents * GHOST_FACTOR);
            self.ghost.remember(tag, uses, since, self.now);
        }
        self.residents -= 1;
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        self.sink();
        for queue in &mut self.queues {
            while let Some(id) = queue.set_aside(&mut self.links) {
                if usable(id) {
                    return Some(id);
                }
            }
        }
        None
    }

    fn release(&mut self, id: u32) {
        if self.links.is_aside(id) {
            self.queues[usize::from(self.states[id].queue)].put_back(&mut self.links, id);
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Mq>() + self.states.memory_bytes() + self.links.memory_bytes() + self.ghost.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::contract::{Step::*, run};
    use super::*;

    #[test]
    fn what_was_read_outlives_what_was_only_stored() {
        run(&mut Mq::new(), &[Insert(0), Insert(1), Insert(2), Read(0, 1), Victim(1), Victim(2), Victim(0), Dry]);
    }

    #[test]
    fn touches_without_a_read_only_renew() {
        run(&mut Mq::new(), &[Insert(0), Insert(1), Touch(0), Touch(0), Victim(1), Victim(0), Dry]);
    }

    #[test]
    fn among_equals_the_least_recent_goes_first() {
        let steps =
            [Insert(0), Insert(1), Insert(2), Read(2, 1), Read(1, 1), Read(0, 1), Victim(2), Victim(1), Victim(0)];
        run(&mut Mq::new(), &steps);
    }

    #[test]
    fn the_count_survives_an_eviction() {
        run(&mut Mq::new(), &[Insert(0), Evict(0), Insert(0), Insert(1), Insert(2), Victim(1), Victim(2), Victim(0)]);
        run(&mut Mq::new(), &[Insert(0), Delete(0), Insert(0), Insert(1), Insert(2), Victim(0), Victim(1), Victim(2)]);
    }

    #[test]
    fn p9_its_memory_follows_the_residents_and_not_what_passed_through() {
        const RESIDENTS: u32 = 10_000;
        let mut policy = Mq::new();
        for passing in 0..400_000 {
            let id = passing % RESIDENTS;
            if passing >= RESIDENTS {
                policy.remove(id, Removal::Evicted);
            }
            policy.insert(id, &|_| Meta { tag: u64::from(passing), ..Meta::default() });
        }
        let ghost = policy.ghost.memory_bytes();
        assert!(ghost > 0 && ghost < 80 * RESIDENTS as usize, "{ghost} bytes of evicted ones");
        assert!(policy.memory_bytes() < 250 * RESIDENTS as usize, "{} bytes", policy.memory_bytes());
    }

    #[test]
    fn what_is_not_used_for_a_lifetime_sinks() {
        let mut policy = Mq::new();
        run(&mut policy, &[Insert(0), Read(0, 1), Insert(1), Victim(1), Release(1)]);
        let lifetime = LIFETIME_FACTOR * policy.typical;
        // Uses go on, of objects that then leave.
        (10..9 + lifetime).for_each(|id| run(&mut policy, &[Insert(id), Delete(id)]));
        run(&mut policy, &[Touch(1), Victim(1), Release(1), Touch(1)]);
        run(&mut policy, &[Insert(10), Delete(10), Insert(2), Victim(1), Release(1), Touch(1), Victim(2), Victim(0)]);
    }
}
