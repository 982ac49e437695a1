//! Uses that the policies were not told of yet.
//!
//! Calls that run side by side would meet again at the lock of a policy, and pass its memory to and fro. They leave here what they
//! used, those of a session where few others do, and a policy is told of many uses at once. A call that has the state alone has it
//! told of the rest first, so that nobody sees a policy that knows less than it should.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::tally::{PARTS, part_of};
use super::{State, patiently};

/// From so many on a policy is told, if nobody else is telling it …
const MANY: usize = 256;
/// … and from so many on in any case.
const MOST: usize = 1024;

/// All of them.
#[derive(Default)]
pub(super) struct Touched {
    any: AtomicBool,
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

impl Touched {
    pub fn memory_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.0.lock().ids.capacity() * size_of::<u32>()).sum()
    }
}

impl State {
    /// Objects of a session's pool were used, by a call that runs beside others.
    pub(super) fn touch_later(&self, session: u32, pool: usize, ids: &[u32], now_ms: u64) {
        let mut waiting = self.touched.parts[part_of(session)].0.lock();
        if waiting.pool != pool {
            if !waiting.ids.is_empty() {
                self.tell(&mut waiting, now_ms);
            }
            waiting.pool = pool;
        }
        waiting.ids.extend_from_slice(ids);
        // Read first, since all calls look at it.
        if !self.touched.any.load(Ordering::Relaxed) {
            self.touched.any.store(true, Ordering::Relaxed);
        }
        let count = waiting.ids.len();
        if count >= MOST || (count >= MANY && !self.pools[pool].policy.is_locked()) {
            self.tell(&mut waiting, now_ms);
        }
    }

    fn tell(&self, waiting: &mut Waiting, now_ms: u64) {
        let policy = &self.pools[waiting.pool].policy;
        let look = || policy.try_lock();
        let mut policy = look().or_else(|| patiently(look)).unwrap_or_else(|| policy.lock());
        policy.touch_all(&waiting.ids, &|id| self.slots.meta(id, now_ms));
        waiting.ids.clear();
    }

    /// Tells the policies of all uses.
    #[inline]
    pub(super) fn settle_touched(&mut self) {
        if std::mem::take(self.touched.any.get_mut()) {
            self.tell_all();
        }
    }

    #[cold]
    fn tell_all(&mut self) {
        let State { touched, pools, slots, now_ms, .. } = self;
        for waiting in touched.parts.iter_mut().map(|part| part.0.get_mut()).filter(|waiting| !waiting.ids.is_empty()) {
            let policy = pools[waiting.pool].policy.get_mut();
            policy.touch_all(&waiting.ids, &|id| slots.meta(id, *now_ms));
            waiting.ids.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::L1;
    use super::super::tests::{commit, key, l1, session, space};
    use super::*;
    use crate::config::{SpaceSpec, StoreMode};
    use crate::error::KVKEEP_OK;
    use crate::types::View;

    fn read(l1: &L1, session: u64, number: u32) {
        let mut views = [View::none(KVKEEP_OK)];
        assert!(l1.reserve_read(session, &[key(number)], 1, &mut views).unwrap(), "object {number} is not there");
        assert!(l1.finish_read(session, &[key(number)], 1, None).unwrap());
    }

    fn waiting(l1: &L1) -> usize {
        l1.state.read().touched.parts.iter().map(|part| part.0.lock().ids.len()).sum()
    }

    /// Space for 40 objects in a pool of their own, and 60 beside them; a session of each that leave their uses at the same place.
    fn full() -> (Arc<L1>, [u64; 2]) {
        let l1 = l1(StoreMode::Never, 10);
        let quota_bytes = 40 * 4096;
        let (model, layout, tenant) = ("bounded".to_owned(), String::new(), String::new());
        let bounded = SpaceSpec { model, layout, tenant, chunk_tokens: 16, quota_bytes };
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
