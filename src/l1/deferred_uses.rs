//! Uses that the eviction policies do not know of yet.
//!
//! A policy has memory of its own for each object, far away as a rule. It gets many uses at once, for which the accesses
//! overlap. No code asks a policy before all uses were passed on (`L1State::policy`), so none sees one that knows less than it
//! should.

use super::pools::{EvictionPool, Metas};
use crate::ablation::{self, Optimization};

/// A policy gets at once so many uses of one call …
const BATCH: usize = 16;
/// … and fewer once so many wait.
const SOME: usize = 64;

/// Uses of objects of one pool.
#[derive(Default)]
pub(super) struct DeferredUses {
    pool: usize,
    ids: Vec<u32>,
}

impl DeferredUses {
    /// Notes the use of objects of a pool. False if they do not fit: the caller settles and passes them on itself, and then calls
    /// [`begin`](DeferredUses::begin).
    #[inline(always)]
    pub fn note(&mut self, pool: usize, ids: &[u32]) -> bool {
        let few = !ablation::is_off(Optimization::DeferredUses) && ids.len() < BATCH && self.ids.len() + ids.len() < SOME;
        let fits = few && self.pool == pool;
        if fits {
            self.ids.extend_from_slice(ids);
        }
        fits
    }

    /// The next uses are likely to be of this pool. None may wait.
    pub fn begin(&mut self, pool: usize) {
        self.pool = pool;
    }

    /// Whether uses wait.
    #[inline]
    pub fn any(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Passes all uses on.
    #[cold]
    pub fn settle(&mut self, pools: &mut [EvictionPool], metas: Metas) {
        pools[self.pool].policy.touch_all(&self.ids, &|id| metas.of(id));
        self.ids.clear();
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<u32>()
    }
}
