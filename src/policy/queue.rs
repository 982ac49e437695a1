//! Orders of ids: doubly linked lists, whose links lie in one table for all queues of a policy.

use crate::arena::prefetch_to_change;
use crate::chunked::Chunked;

/// Most queues of a policy.
const QUEUES_MAX: u32 = 8;
/// The first links join the ends of the lists, two for each queue; those of the ids come after.
const ENDS: u32 = 2 * QUEUES_MAX;

/// In place of a neighbour: no queue knows the id.
const ABSENT: u32 = u32::MAX;
/// In place of a neighbour: the id was offered as a victim, and not decided yet.
const ASIDE: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// Where every id stands, for all queues of one policy.
pub(super) struct QueueLinks(Chunked<Link, 2048>);

impl QueueLinks {
    pub(super) fn new() -> QueueLinks {
        let mut links = QueueLinks(Chunked::new());
        links.0.reach(ENDS - 1, || Link { before: ABSENT, after: ABSENT });
        (0..ENDS).for_each(|end| links.0[end] = Link { before: end, after: end });
        links
    }

    /// Makes a link for `id`.
    pub(super) fn reach(&mut self, id: u32) {
        self.0.reach(id + ENDS, || Link { before: ABSENT, after: ABSENT });
    }

    /// Has the memory fetched that an id's move changes first.
    pub(super) fn prefetch(&self, id: u32) {
        if let Some(link) = self.0.get(id + ENDS) {
            prefetch_to_change(link);
        }
    }

    /// Has the memory fetched that an id's move changes next, after [`prefetch`](QueueLinks::prefetch).
    pub(super) fn prefetch_neighbours(&self, id: u32) {
        if let Some(&Link { before, after }) = self.0.get(id + ENDS)
            && before < ASIDE
        {
            prefetch_to_change(&self.0[before]);
            prefetch_to_change(&self.0[after]);
        }
    }

    fn state(&self, id: u32) -> u32 {
        self.0.get(id + ENDS).map_or(ABSENT, |link| link.before)
    }

    pub(super) fn knows(&self, id: u32) -> bool {
        self.state(id) != ABSENT
    }

    pub(super) fn is_aside(&self, id: u32) -> bool {
        self.state(id) == ASIDE
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    /// Puts an id last in the list of these ends.
    fn append(&mut self, id: u32, ends: u32) {
        let at = id + ENDS;
        let last = self.0[ends].before;
        self.0[at] = Link { before: last, after: ends };
        self.0[last].after = at;
        self.0[ends].before = at;
    }

    /// Takes an id out of the list that it stands in.
    fn take_out(&mut self, id: u32, state: u32) {
        let Link { before, after } = self.0[id + ENDS];
        self.0[before].after = after;
        self.0[after].before = before;
        self.0[id + ENDS].before = state;
    }

    fn first(&self, ends: u32) -> Option<u32> {
        self.0[ends].after.checked_sub(ENDS)
    }
}

/// One order of ids, first to go in front.
pub(super) struct LinkedQueue {
    /// The ends of the list, and of that of the ids that were set aside and come first again.
    order: u32,
    returned: u32,
    len: usize,
}

impl LinkedQueue {
    /// The queue of this number, of which a policy has one.
    pub(super) fn new(number: u32) -> LinkedQueue {
        debug_assert!(number < QUEUES_MAX);
        LinkedQueue { order: 2 * number, returned: 2 * number + 1, len: 0 }
    }

    /// Ids that stand in the queue.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Puts an id that stands in no queue at the end.
    pub(super) fn push(&mut self, links: &mut QueueLinks, id: u32) {
        self.len += 1;
        links.append(id, self.order);
    }

    /// Moves an id to the end that stands in this queue or was set aside from it. Does nothing for an id that no queue knows.
    #[inline]
    pub(super) fn renew(&mut self, links: &mut QueueLinks, id: u32) {
        match links.state(id) {
            ABSENT => return,
            ASIDE => self.len += 1,
            _ => links.take_out(id, ASIDE),
        }
        links.append(id, self.order);
    }

    /// Takes an id out that stands in this queue or was set aside from it. The id is unknown to every queue then.
    pub(super) fn remove(&mut self, links: &mut QueueLinks, id: u32) {
        if links.is_aside(id) {
            links.0[id + ENDS].before = ABSENT;
        } else {
            self.len -= 1;
            links.take_out(id, ABSENT);
        }
    }

    /// The id to go first.
    pub(super) fn first(&self, links: &QueueLinks) -> Option<u32> {
        links.first(self.returned).or_else(|| links.first(self.order))
    }

    /// The first id, set aside: it keeps its state and stands nowhere.
    pub(super) fn set_aside(&mut self, links: &mut QueueLinks) -> Option<u32> {
        let id = self.first(links)?;
        self.len -= 1;
        links.take_out(id, ASIDE);
        Some(id)
    }

    /// Puts an id that was set aside in front, behind those put there before.
    pub(super) fn put_back(&mut self, links: &mut QueueLinks, id: u32) {
        self.len += 1;
        links.append(id, self.returned);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn drain(queue: &mut LinkedQueue, links: &mut QueueLinks) -> Vec<u32> {
        std::iter::from_fn(|| queue.set_aside(links)).collect()
    }

    #[test]
    fn it_keeps_the_order_of_a_plain_list() {
        let (mut links, mut queue) = (QueueLinks::new(), LinkedQueue::new(3));
        let mut model = VecDeque::new();
        let mut seed = 7u64;
        links.reach(4000);
        for round in 0..60_000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = (seed >> 33) as u32 % 700;
            if !links.knows(id) {
                queue.push(&mut links, id);
            } else {
                model.retain(|&other| other != id);
                if round % 5 == 0 {
                    queue.remove(&mut links, id);
                    continue;
                }
                queue.renew(&mut links, id);
            }
            model.push_back(id);
            if round % 7 == 0 {
                let first = queue.set_aside(&mut links).unwrap();
                assert_eq!(Some(first), model.pop_front());
                queue.remove(&mut links, first);
            }
            assert_eq!(queue.len(), model.len());
        }
        assert_eq!(drain(&mut queue, &mut links), Vec::from(model));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_was_put_back_into_another_queue_since_is_that_queue_s() {
        let (mut links, mut one, mut other) = (QueueLinks::new(), LinkedQueue::new(0), LinkedQueue::new(1));
        links.reach(2);
        (0..2).for_each(|id| one.push(&mut links, id));
        assert_eq!(one.set_aside(&mut links), Some(0));
        one.put_back(&mut links, 0);
        one.remove(&mut links, 0);
        other.push(&mut links, 0);
        assert_eq!(other.set_aside(&mut links), Some(0));
        other.put_back(&mut links, 0);
        assert_eq!(drain(&mut one, &mut links), [1]);
        assert_eq!(drain(&mut other, &mut links), [0]);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let (mut links, mut queue) = (QueueLinks::new(), LinkedQueue::new(0));
        links.reach(10);
        (0..4).for_each(|id| queue.push(&mut links, id));
        assert_eq!(queue.set_aside(&mut links), Some(0));
        assert_eq!(queue.set_aside(&mut links), Some(1));
        queue.put_back(&mut links, 0);
        queue.put_back(&mut links, 1);
        queue.renew(&mut links, 0);
        assert_eq!(drain(&mut queue, &mut links), [1, 2, 3, 0]);
    }
}
