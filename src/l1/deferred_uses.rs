//! Uses that the eviction policies do not know of yet.
//!
//! A policy has memory of its own for each object, far away as a rule. It gets many uses at once, for which the accesses
//! overlap. No code asks a policy before all uses were passed on (`L1State::policy`), so none sees one that knows less than it
//! should.
//!
//! Exclusive calls leave their uses in one place, in order. Calls that share the state would meet there:
//! they leave it where few others of their session do.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::counters::{PARTS, part_of};
use super::pools::{EvictionPool, Metas};
use super::spin::spin;
use crate::ablation::{self, Optimization};
use crate::policy::EvictionPolicy;

/// A policy gets at once so many uses of one exclusive call …
const BATCH: usize = 16;
/// … and fewer once so many wait.
const SOME: usize = 64;
/// Uses by shared calls are passed on from so many on, if no other call is passing on …
pub(super) const MANY: usize = 256;
/// … and from so many on in any case.
pub(super) const MOST: usize = 1024;

/// The uses of all pools.
#[derive(Default)]
pub(super) struct DeferredUses {
    /// Of exclusive calls: from before all in `parts`.
    exclusive: DeferredPart,
    /// Whether there may be something in `parts`.
    shared: AtomicBool,
    parts: [DeferredPart; PARTS],
}

#[derive(Default)]
#[repr(align(128))]
struct DeferredPart(Mutex<DeferredBatch>);

/// Uses of objects of one pool.
#[derive(Default)]
struct DeferredBatch {
    pool: usize,
    ids: Vec<u32>,
}

impl DeferredBatch {
    fn pass_on(&mut self, policy: &mut dyn EvictionPolicy, metas: Metas) {
        policy.touch_all(&self.ids, &|id| metas.of(id));
        self.ids.clear();
    }

    /// As [`pass_on`](DeferredBatch::pass_on), by a call that shares the state.
    fn pass_on_shared(&mut self, pools: &[EvictionPool], metas: Metas) {
        if self.ids.is_empty() {
            return;
        }
        let policy = &pools[self.pool].policy;
        let look = || policy.try_lock();
        let mut policy = look().or_else(|| spin(look)).unwrap_or_else(|| policy.lock());
        self.pass_on(policy.as_mut(), metas);
    }
}

impl DeferredUses {
    /// Notes the use of objects of a pool by an exclusive call. False if they do not fit: the caller settles and passes them on
    /// itself, and then calls [`begin`](DeferredUses::begin).
    #[inline(always)]
    pub fn note(&mut self, pool: usize, ids: &[u32]) -> bool {
        let waiting = self.exclusive.0.get_mut();
        let few =
            !ablation::is_off(Optimization::DeferredUses) && ids.len() < BATCH && waiting.ids.len() + ids.len() < SOME;
        let fits = few && waiting.pool == pool && !*self.shared.get_mut();
        if fits {
            waiting.ids.extend_from_slice(ids);
        }
        fits
    }

    /// The next uses by exclusive calls are likely to be of this pool. None may wait.
    pub fn begin(&mut self, pool: usize) {
        self.exclusive.0.get_mut().pool = pool;
    }

    /// Notes the use of objects of a session's pool by a call that shares the state.
    pub fn note_shared(&self, pools: &[EvictionPool], metas: Metas, session: u32, pool: usize, ids: &[u32]) {
        if ablation::is_off(Optimization::DeferredUses) {
            return pools[pool].policy.lock().touch_all(ids, &|id| metas.of(id));
        }
        let mut waiting = self.parts[part_of(session)].0.lock();
        if waiting.pool != pool {
            self.settle_shared(pools, metas, &mut waiting);
            waiting.pool = pool;
        }
        waiting.ids.extend_from_slice(ids);
        // Read first, since all calls look at it.
        if !self.shared.load(Ordering::Relaxed) {
            self.shared.store(true, Ordering::Relaxed);
        }
        let count = waiting.ids.len();
        if count >= MOST || (count >= MANY && !pools[pool].policy.is_locked()) {
            self.settle_shared(pools, metas, &mut waiting);
        }
    }

    /// Passes on the uses in one of the parts, and before them those by exclusive calls.
    fn settle_shared(&self, pools: &[EvictionPool], metas: Metas, waiting: &mut MutexGuard<DeferredBatch>) {
        self.exclusive.0.lock().pass_on_shared(pools, metas);
        waiting.pass_on_shared(pools, metas);
    }

    /// Whether uses may wait.
    #[inline]
    pub fn any(&mut self) -> bool {
        *self.shared.get_mut() || !self.exclusive.0.get_mut().ids.is_empty()
    }

    /// Passes all uses on.
    #[cold]
    pub fn settle(&mut self, pools: &mut [EvictionPool], metas: Metas) {
        let DeferredUses { exclusive, shared, parts } = self;
        *shared.get_mut() = false;
        let waiting = std::iter::once(exclusive).chain(parts).map(|part| part.0.get_mut());
        for waiting in waiting.filter(|waiting| !waiting.ids.is_empty()) {
            let EvictionPool { policy, .. } = &mut pools[waiting.pool];
            waiting.pass_on(policy.get_mut().as_mut(), metas);
        }
    }

    fn all(&self) -> impl Iterator<Item = &DeferredPart> {
        std::iter::once(&self.exclusive).chain(&self.parts)
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.all().map(|part| part.0.lock().ids.capacity() * size_of::<u32>()).sum()
    }

    /// How many uses wait.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.all().map(|part| part.0.lock().ids.len()).sum()
    }
}
