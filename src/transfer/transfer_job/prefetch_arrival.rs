//! The end of a prefetch that a load follows.

use crate::error::Status;

/// A prefetch of some of a load's keys has ended.
pub struct PrefetchArrival {
    /// Places of the keys.
    pub keys: Vec<usize>,
    /// The status of those that it did not bring.
    pub absent: Status,
    /// Why it did not bring them, where it says.
    pub why: String,
}
