//! Whether a cache is open, and how many calls are in it: one begins only while the cache is open, and a close waits for all that began.

use std::cell::Cell;

use crate::sync::{AtomicU64, Ordering, per_thread, yield_now};

/// Bits of [`Gate`]'s word that count calls in flight.
const CALLS_BITS: u32 = 24;
const CALLS: u64 = (1 << CALLS_BITS) - 1;

per_thread! {
    /// The cache that this thread is in, or 0. Of calls that a callback made from within a call, that of the outer one.
    static WITHIN: Cell<usize> = const { Cell::new(0) };
}

/// What calls and closes of one cache agree by, in one word, so that no call begins between a look at one half and at the other: the
/// generation, which is odd while open, above the number of calls in flight. The generation is part of the token, so that a
/// token is never valid twice. 0: never open so far.
pub struct Gate(pub(super) AtomicU64);

/// A call in flight: the cache is not freed while it lives.
pub struct Pass {
    gate: &'static Gate,
    outer: bool,
}

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        if self.outer {
            WITHIN.with(|within| within.set(0));
        }
        self.gate.0.fetch_sub(1, Ordering::Release);
    }
}

/// Whether this thread is in the cache of this place.
pub fn is_within(place: usize) -> bool {
    WITHIN.with(Cell::get) == place
}

impl Gate {
    /// Lets calls begin, and returns the generation that they name. What was made before is seen by them.
    pub fn open(&self) -> u64 {
        (self.0.fetch_add(1 << CALLS_BITS, Ordering::AcqRel) >> CALLS_BITS) + 1
    }

    /// Begins a call into the cache of this place, a number that no other open cache has. `None` if the gate is not open in this
    /// generation.
    #[inline]
    pub fn enter(&'static self, place: usize, generation: u64) -> Option<Pass> {
        let is_open = |word: u64| generation & 1 == 1 && word >> CALLS_BITS == generation;
        if !is_open(self.0.load(Ordering::Relaxed)) {
            return None;
        }
        let open = is_open(self.0.fetch_add(1, Ordering::Acquire));
        let outer = WITHIN.with(|within| within.get() == 0 && within.replace(place) == 0);
        let pass = Pass { gate: self, outer };
        open.then_some(pass)
    }

    /// Lets no call begin any more. False if the gate was not open in this generation: another close came first.
    pub fn shut(&self, generation: u64) -> bool {
        let next = |word: u64| (word >> CALLS_BITS == generation).then(|| word + (1 << CALLS_BITS));
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next).is_ok()
    }

    /// Waits until all calls have ended, after [`shut`](Gate::shut).
    pub fn wait_until_empty(&self) {
        while self.0.load(Ordering::Acquire) & CALLS != 0 {
            yield_now();
        }
    }
}
