//! What must hold after each step, and when all is given back.

use super::*;
use crate::events::{Event, EventKind};
use crate::l1::inspect;
use crate::l1::slot::{BUSY, DETACHED, LEAVING, LISTED, STAGING, TEMPORARY};

impl World {
    /// Every book of L1 agrees with what it counts, and with the model.
    pub(in crate::l1::tests::model) fn audit(&self) {
        self.l1.with(|state| {
            let mut spans = Vec::new();
            let (mut shares, mut locked, mut used, mut ready, mut detached, mut staged, mut leaving) =
                (0, 0, 0, 0, 0, 0, 0);
            let mut by_session: HashMap<u32, u64> = HashMap::new();
            let mut by_space = vec![(0, 0); state.spaces.len()];
            let mut by_pool = vec![0; state.pools.len()];
            for (id, slot) in state.slots.live() {
                let offset = state.alloc.offset(slot.start);
                spans.push((offset, offset + slot.size()));
                let (holder, mut of_slot) = slot.holder();
                if of_slot > 0 {
                    *by_session.entry(holder).or_default() += u64::from(of_slot);
                }
                for (session, count) in state.holders.iter(&state.slots, id) {
                    assert!(count > 0);
                    of_slot += count;
                    *by_session.entry(session).or_default() += u64::from(count);
                }
                assert_eq!(of_slot, state.slots.shares(id));
                assert_eq!(slot.is(BUSY), state.slots.transfers(id) > 0);
                assert_eq!(slot.is(LISTED), state.holders.iter(&state.slots, id).next().is_some());
                shares += u64::from(of_slot);
                used += state.alloc.size_of(state.slots.cold(id).node);
                let space = state.slots.space(id);
                let of_space = &mut by_space[space as usize];
                of_space.0 += slot.size();
                of_space.1 += u64::from(slot.is_findable());
                locked += if slot.locked() { slot.size() } else { 0 };
                leaving += if slot.is(LEAVING) { slot.size() } else { 0 };
                staged += u64::from(slot.is(STAGING));
                detached += u64::from(slot.is(DETACHED));
                if slot.is_findable() {
                    ready += 1;
                    by_pool[state.spaces[space as usize].pool] += slot.size();
                    assert_eq!(state.find(space, state.slots.key(id)), Some(id));
                }
                assert!(!slot.is(DETACHED) || slot.locked(), "a detached object that nothing uses was not freed");
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "P2: two live objects overlap");
            let gauges = inspect::gauges(state);
            assert_eq!((gauges.shares, gauges.locked_bytes, gauges.used_bytes), (shares, locked, used));
            assert_eq!((gauges.objects, gauges.staged, state.detached), (ready, staged, detached));
            assert_eq!(state.leaving_bytes, leaving);
            assert!(state.spaces.iter().map(|space| (space.used, space.ready)).eq(by_space));
            assert!(state.pools.iter().map(|pool| pool.bytes).eq(by_pool));
            for (index, session) in state.sessions.live() {
                assert_eq!(session.shares, by_session.remove(&index).unwrap_or(0));
            }
            assert!(by_session.is_empty(), "P3: shares of a session that has ended");
            assert_eq!(ready as usize, self.ready.len());
            assert_eq!(state.sessions.len(), self.sessions.len());
        });
        let held: u64 = self.sessions.values().flat_map(|holder| holder.held.values()).map(|&c| u64::from(c)).sum();
        let staged: usize = self.sessions.values().map(|holder| holder.staged.len()).sum();
        let gauges = self.l1.gauges().1;
        assert_eq!((gauges.shares, gauges.staged as usize), (held, staged + self.loads.len()));
        for (session, holder) in &self.sessions {
            for (&inc, &count) in &holder.held {
                assert_eq!(self.real_shares(*session, inc), count);
                let Inc { name, stamp, temporary, .. } = self.incs[inc].1;
                let (data, size, temporary_there) = self.l1.with(|state| {
                    let slot = state.slots.find(name).unwrap();
                    (state.arena.at(state.alloc.offset(slot.start)), slot.size(), slot.is(TEMPORARY))
                });
                assert!(self.bears(data, size, stamp), "P2: a held object changed");
                assert_eq!(temporary, temporary_there);
            }
            for staged in holder.staged.values() {
                assert!(self.bears(staged.data, staged.size, staged.stamp), "P2: a staging buffer changed");
            }
        }
        for (_, buffer, stamp) in &self.buffers {
            assert!(self.bears(buffer.as_ptr(), buffer.len() as u64, *stamp), "P2: a buffer under transfer changed");
        }
    }

    /// Everything that was recorded, played back, leaves what is ready.
    fn audit_events(&self) {
        const NONE: Event = Event {
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
        let mut events = vec![NONE; 4096];
        let count = self.l1.events().drain(&mut 0, &mut events).unwrap();
        let mut there = HashMap::new();
        for (i, event) in events[..count].iter().enumerate() {
            assert_eq!((event.sequence, event.tier, event.backend), (i as u64 + 1, 0, 0));
            let space = self.spaces.iter().position(|&space| space == event.space).unwrap();
            let at = (space, event.key.hash[0]);
            if event.kind == EventKind::Stored as u32 {
                assert_eq!(there.insert(at, event.size), None, "stored twice");
            } else {
                assert_eq!(there.remove(&at), Some(event.size), "removed, and was not there");
            }
        }
        let mut said: Vec<_> = there.into_keys().collect();
        let mut ready: Vec<_> = self.ready.keys().copied().collect();
        said.sort_unstable();
        ready.sort_unstable();
        assert_eq!(said, ready);
    }

    /// Everything is given back: nothing is left, and the arena is one free block again.
    pub(in crate::l1::tests::model) fn finish(mut self) {
        self.audit_events();
        let sessions: Vec<u64> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.l1.end_session(session, false).unwrap();
        }
        for load in self.loads.drain(..) {
            self.l1.drop_load(load.name);
        }
        self.buffers.clear();
        self.l1.clear(None, true).unwrap();
        let gauges = self.l1.gauges().1;
        assert_eq!((gauges.used_bytes, gauges.locked_bytes, gauges.objects, gauges.staged), (0, 0, 0, 0));
        assert_eq!((gauges.shares, gauges.sessions), (0, 0));
        assert!(self.l1.with(|state| state.detached_writes.is_empty()));
        let (largest, capacity, detached) =
            self.l1.with(|state| (state.alloc.largest_free(), state.alloc.capacity(), state.detached));
        assert_eq!((largest, detached), (capacity, 0));
    }
}
