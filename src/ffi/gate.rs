//! Whether a cache is open, and the calls that are in it: one begins only while the cache is open, and a close waits for all that began.

use super::visitor::{self, Visit};
use crate::ablation::{self, Optimization::ThreadRecords};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, yield_now};

/// What calls and closes of one cache agree by. Its place, a number that no other open cache has, tells it from others.
pub struct Gate {
    /// Odd while open. Part of the token, so that a token is never valid twice.
    pub(super) generation: AtomicU64,
    /// Calls in flight that their threads could not write down.
    pub(super) calls: AtomicU32,
}

/// A call in flight: the cache is not freed while it lives.
pub struct Pass {
    gate: &'static Gate,
    visit: Option<Visit>,
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        if self.visit.is_none() {
            self.gate.calls.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Gate {
    /// Lets calls begin, and returns the generation that they name. What was made before is seen by them.
    pub fn open(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Begins a call. `None` if the gate is not open in this generation.
    #[inline]
    pub fn enter(&'static self, place: usize, generation: u64) -> Option<Pass> {
        let counted = ablation::is_off(ThreadRecords);
        let visit = if counted { None } else { visitor::visit(place) };
        if visit.is_none() {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if !counted {
                fence(Ordering::SeqCst);
            }
        }
        let pass = Pass { gate: self, visit };
        let open = generation & 1 == 1 && self.generation.load(Ordering::SeqCst) == generation;
        open.then_some(pass)
    }

    /// Lets no call begin any more. False if the gate was not open in this generation: another close came first.
    pub fn shut(&self, generation: u64) -> bool {
        self.generation.compare_exchange(generation, generation + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Waits until all calls have ended, after [`shut`](Gate::shut). False if that cannot be found out.
    pub fn wait_until_empty(&self, place: usize) -> bool {
        let all_left = visitor::wait_for_all(place);
        while self.calls.load(Ordering::SeqCst) != 0 {
            yield_now();
        }
        all_left
    }
}
