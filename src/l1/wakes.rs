//! The events for which L1 wakes background threads.

/// Some of the events below, or'ed.
pub type Wakes = u8;
/// Objects wait to be written to L2.
pub const WAKE_WRITES: Wakes = 1;
/// L1 is above its high watermark.
pub const WAKE_EVICTION: Wakes = 2;
/// An object was committed while a caller waits for one.
pub const WAKE_COMMITS: Wakes = 4;
/// Objects were used that backends have. The tier notes it and wakes no thread for it.
pub(super) const WAKE_USES: Wakes = 8;
/// Memory may be had that was in use, or was still to be written.
pub(super) const WAKE_FREED: Wakes = 16;
