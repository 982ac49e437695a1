//! Least recently used first, as a doubly linked list: what the append-only queue of `lru` is compared with.

use kvkeep::arena::prefetch_to_change;
use kvkeep::policy::{EvictionPolicy, Meta, Removal};

/// In place of a neighbour: the policy does not know the id.
const ABSENT: u32 = u32::MAX;
/// In place of a neighbour: the id was offered as a victim, and not decided yet.
const ASIDE: u32 = u32::MAX - 1;

/// The neighbours of an id; links are numbered from 1, since number 0 joins the ends.
#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

pub struct LinkedLru {
    links: Vec<Link>,
}

impl LinkedLru {
    pub fn new() -> LinkedLru {
        LinkedLru { links: vec![Link { before: 0, after: 0 }] }
    }

    fn state(&self, id: u32) -> u32 {
        self.links.get(id as usize + 1).map_or(ABSENT, |link| link.before)
    }

    fn set(&mut self, id: u32, state: u32) {
        self.links[id as usize + 1].before = state;
    }

    fn link(&mut self, id: u32, before: u32, after: u32) {
        self.links[id as usize + 1] = Link { before, after };
        self.links[before as usize].after = id + 1;
        self.links[after as usize].before = id + 1;
    }

    fn unlink(&mut self, id: u32) {
        let Link { before, after } = self.links[id as usize + 1];
        self.links[before as usize].after = after;
        self.links[after as usize].before = before;
    }

    fn append(&mut self, id: u32) {
        self.link(id, self.links[0].before, 0);
    }

    fn renew(&mut self, id: u32) {
        match self.state(id) {
            ABSENT => return,
            ASIDE => {}
            _ => self.unlink(id),
        }
        self.append(id);
    }
}

impl EvictionPolicy for LinkedLru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, id: u32, _meta: &dyn Fn(u32) -> Meta) {
        if self.links.len() <= id as usize + 1 {
            self.links.resize(id as usize + 2, Link { before: ABSENT, after: 0 });
        }
        self.append(id);
    }

    fn touch(&mut self, id: u32, _meta: &dyn Fn(u32) -> Meta) {
        self.renew(id);
    }

    fn touch_all(&mut self, ids: &[u32], _meta: &dyn Fn(u32) -> Meta) {
        ids.iter().for_each(|&id| prefetch_to_change(&self.links[id as usize + 1]));
        for &id in ids {
            let Link { before, after } = self.links[id as usize + 1];
            [before, after].iter().filter_map(|&at| self.links.get(at as usize)).for_each(prefetch_to_change);
        }
        ids.iter().for_each(|&id| self.renew(id));
    }

    fn remove(&mut self, id: u32, _why: Removal) {
        if self.state(id) < ASIDE {
            self.unlink(id);
        }
        if self.state(id) != ABSENT {
            self.set(id, ABSENT);
        }
    }

    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32> {
        loop {
            let id = self.links[0].after.checked_sub(1)?;
            self.unlink(id);
            self.set(id, ASIDE);
            if usable(id) {
                return Some(id);
            }
        }
    }

    fn release(&mut self, id: u32) {
        if self.state(id) == ASIDE {
            self.link(id, 0, self.links[0].after);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }
}
