//! Optimisations that the benchmark turns off, one at a time, to compare the same calls with and without each.
//!
//! Only the feature `ablation` lets them be turned off. Without it, as the libraries are built, [`is_off`] is a constant.

/// An optimisation that can be turned off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Optimization {
    /// A slot knows its key by a fingerprint. Off: each slot that is found is compared with the whole key.
    KeyFingerprint,
    /// A thread remembers the batch that it looked up last.
    LastBatch,
    /// A read of one key makes no lists.
    SingleKeyRead,
    /// Large transfers are copied past the caches.
    StreamingCopies,
}

#[cfg(feature = "ablation")]
static OFF: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// Turns off those of a set, with a bit for each, and all others on. No call may be under way, in any thread.
#[cfg(feature = "ablation")]
pub fn turn_off(set: u32) {
    OFF.store(set, std::sync::atomic::Ordering::SeqCst);
}

/// Whether an optimisation is turned off.
#[cfg(feature = "ablation")]
#[inline(always)]
pub fn is_off(optimization: Optimization) -> bool {
    OFF.load(std::sync::atomic::Ordering::Relaxed) & 1 << optimization as u32 != 0
}

/// Whether an optimisation is turned off.
#[cfg(not(feature = "ablation"))]
#[inline(always)]
pub const fn is_off(_: Optimization) -> bool {
    false
}
