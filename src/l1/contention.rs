//! Whether calls meet at the lock.
//!
//! Only `shared_read.rs` is for that case: without it, this file and the places that ask it would go too.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ablation::{self, Optimization::SharedReads};

/// Calls that met, less one for each millisecond since; from so many on the next reads share the lock …
const CALLS: u64 = 8;
/// … for so long. A background thread that passes by now and then makes no contention.
const LASTS_MS: u64 = 50;

/// Counts calls that had to wait for another.
#[derive(Default)]
pub(super) struct Contention {
    /// When the last of them will be forgotten.
    until_ms: AtomicU64,
}

impl Contention {
    /// A call found the lock taken.
    pub fn met(&self, now_ms: u64) {
        let until_ms = self.until_ms.load(Ordering::Relaxed).max(now_ms).saturating_add(1);
        let there = until_ms > now_ms + CALLS;
        self.until_ms.store(if there { now_ms + CALLS + LASTS_MS } else { until_ms }, Ordering::Relaxed);
    }

    /// From now on there is contention, for tests.
    #[cfg(test)]
    pub fn stay(&self) {
        self.until_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// From now on there is none, for tests.
    #[cfg(test)]
    pub fn leave(&self) {
        self.until_ms.store(0, Ordering::Relaxed);
    }

    /// Whether enough calls met of late that reads are to share the lock.
    #[inline]
    pub fn is_there(&self, now_ms: u64) -> bool {
        !ablation::is_off(SharedReads) && self.until_ms.load(Ordering::Relaxed) > now_ms + CALLS
    }
}
