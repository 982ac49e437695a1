//! Uses that the policies were not told of yet.
//!
//! A policy has memory of its own for each object, far away as a rule. It is told of many uses at once, for which the accesses
//! overlap. Nobody asks a policy before it was told of all ([`State::policy`]), so none sees one that knows less than it should.
//!
//! Calls that have the state alone leave what they used in one place, in order. Those that run side by side would meet there: they
//! leave it where few others of their session do.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::counters::{PARTS, part_of};
use super::slot::Slots;
use super::{Pool, State, patiently};
use crate::policy::{EvictionPolicy, Meta};

/// A policy is told at once of so many used by one call that has the state alone …
const BATCH: usize = 16;
/// … and of fewer once so many wait.
const SOME: usize = 64;
/// Of what was used side by side it is told from so many on, if nobody else is telling it …
const MANY: usize = 256;
/// … and from so many on in any case.
const MOST: usize = 1024;

/// All of them.
#[derive(Default)]
pub(super) struct Touched {
    /// Of calls that were alone: from before all in `parts`.
    alone: Part,
    /// Whether there may be something in `parts`.
    beside: AtomicBool,
    parts: [Part; PARTS],
}

#[derive(Default)]
#[repr(align(128))]
struct Part(Mutex<Waiting>);

/// Uses of objects of one pool.
#[derive(Default)]
struct Waiting {
    pool: usize,
    ids: Vec<u32>,
}

impl Waiting {
    fn tell(&mut self, policy: &mut dyn EvictionPolicy, metas: Metas) {
        policy.touch_all(&self.ids, &|id| metas.of(id));
        self.ids.clear();
    }
}

impl Touched {
    fn all(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.alone).chain(&self.parts)
    }

    pub fn memory_bytes(&self) -> usize {
        self.all().map(|part| part.0.lock().ids.capacity() * size_of::<u32>()).sum()
    }
}

/// What a policy may know of objects.
#[derive(Clone, Copy)]
pub(super) struct Metas<'a> {
    slots: &'a Slots,
    now_ms: u64,
}

impl Metas<'_> {
    /// Of one that is new to it.
    pub fn of_new(&self, id: u32) -> Meta {
        self.slots.new_meta(id, self.now_ms)
    }

    /// Of one that it has already.
    pub fn of(&self, id: u32) -> Meta {
        self.slots.meta(id, self.now_ms)
    }
}

impl State {
    /// The policy of a pool, told of all uses, and what it may know.
    #[inline]
    pub(super) fn policy(&mut self, pool: usize) -> (&mut dyn EvictionPolicy, Metas<'_>) {
        self.settle_touched();
        (self.pools[pool].policy.get_mut().as_mut(), Metas { slots: &self.slots, now_ms: self.now_ms })
    }

    /// Objects of a pool were used, by a call that has the state alone.
    #[inline(always)]
    pub(super) fn touch_all(&mut self, pool: usize, ids: &[u32]) {
        let Touched { alone, beside, .. } = &mut self.touched;
        let waiting = alone.0.get_mut();
        let few = ids.len() < BATCH && waiting.ids.len() + ids.len() < SOME;
        if few && waiting.pool == pool && !*beside.get_mut() {
            waiting.ids.extend_from_slice(ids);
        } else {
            self.touch_now(pool, ids);
        }
    }

    fn touch_now(&mut self, pool: usize, ids: &[u32]) {
        let (policy, metas) = self.policy(pool);
        policy.touch_all(ids, &|id| metas.of(id));
        self.touched.alone.0.get_mut().pool = pool;
    }

    /// Objects of a session's pool were used, by a call that runs beside others.
    pub(super) fn touch_beside(&self, session: u32, pool: usize, ids: &[u32], now_ms: u64) {
        let mut waiting = self.touched.parts[part_of(session)].0.lock();
        if waiting.pool != pool {
            self.tell_beside(&mut waiting, now_ms);
            waiting.pool = pool;
        }
        waiting.ids.extend_from_slice(ids);
        // Read first, since all calls look at it.
        if !self.touched.beside.load(Ordering::Relaxed) {
            self.touched.beside.store(true, Ordering::Relaxed);
        }
        let count = waiting.ids.len();
        if count >= MOST || (count >= MANY && !self.pools[pool].policy.is_locked()) {
            self.tell_beside(&mut waiting, now_ms);
        }
    }

    /// Tells a policy of what waits in one of the parts, and before of what was used by calls that were alone.
    fn tell_beside(&self, waiting: &mut Waiting, now_ms: u64) {
        self.tell_shared(&mut self.touched.alone.0.lock(), now_ms);
        self.tell_shared(waiting, now_ms);
    }

    fn tell_shared(&self, waiting: &mut Waiting, now_ms: u64) {
        if waiting.ids.is_empty() {
            return;
        }
        let policy = &self.pools[waiting.pool].policy;
        let look = || policy.try_lock();
        let mut policy = look().or_else(|| patiently(look)).unwrap_or_else(|| policy.lock());
        waiting.tell(policy.as_mut(), Metas { slots: &self.slots, now_ms });
    }

    /// Tells the policies of all uses.
    #[inline]
    pub(super) fn settle_touched(&mut self) {
        if *self.touched.beside.get_mut() || !self.touched.alone.0.get_mut().ids.is_empty() {
            self.tell_all();
        }
    }

    #[cold]
    fn tell_all(&mut self) {
        let State { touched, pools, slots, now_ms, .. } = self;
        let Touched { alone, beside, parts } = touched;
        *beside.get_mut() = false;
        let waiting = std::iter::once(alone).chain(parts).map(|part| part.0.get_mut());
        for waiting in waiting.filter(|waiting| !waiting.ids.is_empty()) {
            let Pool { policy, .. } = &mut pools[waiting.pool];
            waiting.tell(policy.get_mut().as_mut(), Metas { slots, now_ms: *now_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::abi::View;
    use crate::config::{SpaceSpec, StoreMode};
    use crate::error::KVKEEP_OK;
    use crate::key::Key;
    use crate::l1::L1;
    use crate::l1::tests::{commit, key, l1, session, space};

    fn read(l1: &L1, session: u64, number: u32) {
        let mut views = [View::none(KVKEEP_OK)];
        assert!(l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap(), "object {number} is not there");
        assert!(l1.finish_read(session, &[key(number)], 1, None).unwrap());
    }

    fn waiting(l1: &L1) -> usize {
        l1.state.read().touched.all().map(|part| part.0.lock().ids.len()).sum()
    }

    /// Space for 40 objects in a pool of their own, and 60 beside them; a session of each that leave their uses at the same place.
    fn full() -> (Arc<L1>, [u64; 2]) {
        let l1 = l1(StoreMode::Never, 10);
        let quota_bytes = 40 * 4096;
        let (model, layout, tenant) = ("bounded".to_owned(), String::new(), String::new());
        let bounded = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes };
        let spaces = [space(&l1, 0), l1.open_space(&bounded).unwrap()];
        let sessions = spaces.map(|space| {
            let session = session(&l1, space);
            for _ in 1..PARTS {
                self::session(&l1, space);
            }
            session
        });
        for (session, count) in sessions.into_iter().zip([60, 40]) {
            commit(&l1, session, 0..count);
        }
        l1.crowd.stay();
        (l1, sessions)
    }

    #[test]
    fn what_was_used_side_by_side_is_evicted_last() {
        let (l1, sessions) = full();
        for number in 0..10 {
            sessions.iter().for_each(|&session| read(&l1, session, number));
        }
        assert!(waiting(&l1) > 0, "nothing ran side by side");
        for session in sessions {
            commit(&l1, session, 100..110);
            assert_eq!(waiting(&l1), 0);
            for number in (0..10).chain(20..40).chain(100..110) {
                read(&l1, session, number);
            }
            let mut views = [View::none(KVKEEP_OK); 10];
            let evicted: Vec<_> = (10..20).map(key).collect();
            l1.reserve_read(session, &evicted, 1, &mut views).unwrap();
            assert!(views.iter().all(|view| view.status != KVKEEP_OK as i32));
        }
    }

    #[test]
    fn what_was_used_alone_is_told_first_though_another_pool_takes_the_place() {
        let (l1, sessions) = full();
        l1.crowd.leave();
        (1..20).for_each(|number| read(&l1, sessions[0], number));
        l1.crowd.stay();
        (20..60).chain([0]).for_each(|number| read(&l1, sessions[0], number));
        read(&l1, sessions[1], 0);
        commit(&l1, sessions[0], 100..101);
        let mut views = [View::none(KVKEEP_OK)];
        l1.reserve_read(sessions[0], &[key(1)], 1, &mut views).unwrap();
        assert_ne!(views[0].status, KVKEEP_OK as i32, "what was used first was not the first to go");
    }

    /// Random calls of a session, alone and beside others, against a list of its objects in order of use: of one call, the last first.
    #[test]
    fn what_was_used_first_is_evicted_first_however_it_was_used() {
        let mut seed = 42u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as usize % below
        };
        for _ in 0..300 {
            let l1 = l1(StoreMode::Never, 100);
            let space = space(&l1, 0);
            let session = session(&l1, space);
            commit(&l1, session, 0..50);
            let (mut order, mut next): (Vec<u32>, u32) = ((0..50).collect(), 50);
            for _ in 0..random(300) {
                let at = random(order.len());
                match random(40) {
                    0 => l1.crowd.stay(),
                    1 => l1.crowd.leave(),
                    2 if order.len() > 10 => {
                        assert_eq!(l1.delete(space, &[key(order.remove(at))]).unwrap(), [KVKEEP_OK]);
                    }
                    3 if order.len() < 100 => {
                        commit(&l1, session, next..next + 1);
                        order.push(next);
                        next += 1;
                    }
                    4 if at > 0 => {
                        let used: Vec<u32> = order.drain(..at).collect();
                        let keys: Vec<Key> = used.iter().copied().map(key).collect();
                        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
                        assert!(l1.reserve_read(session, &keys, 1, &mut views).unwrap());
                        assert!(l1.finish_read(session, &keys, 1, None).unwrap());
                        order.extend(used.into_iter().rev());
                    }
                    _ => {
                        let used = order.remove(at);
                        read(&l1, session, used);
                        order.push(used);
                    }
                }
            }
            commit(&l1, session, 1000..1100 - order.len() as u32);
            for (at, number) in (2000..).zip(order) {
                commit(&l1, session, at..at + 1);
                let mut views = [View::none(KVKEEP_OK)];
                l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap();
                assert_ne!(views[0].status, KVKEEP_OK as i32, "object {number} was not the next to go");
            }
        }
    }

    #[test]
    fn a_policy_is_told_before_too_much_waits() {
        let (l1, [session, _]) = full();
        let mut most = 0;
        for turn in 0..3 * MOST as u32 {
            read(&l1, session, turn % 60);
            most = most.max(waiting(&l1));
        }
        assert_eq!(most, MANY - 1);
        l1.gauges();
        let state = l1.state.read();
        let telling = state.pools[0].policy.lock();
        for turn in 1..MOST as u32 {
            read(&l1, session, turn % 60);
        }
        assert_eq!(waiting(&l1), MOST - 1);
        drop(telling);
        read(&l1, session, 0);
        assert_eq!(waiting(&l1), 0);
    }
}
