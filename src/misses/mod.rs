//! Why lookups miss keys: a bounded memory of what became of objects, the counts by reason, and the hit rate of an endless cache.
//!
//! `missed_keys.rs` notes what happens to objects where they leave the last place that had them, and is asked for a key only when a
//! lookup has missed it.

mod fate_memory;
pub mod lookup_counts;
pub mod miss_report;
pub mod miss_text;
pub mod missed_keys;
mod seen_sample;

pub use fate_memory::ObjectFate;
pub use lookup_counts::LookupCounts;
pub use missed_keys::{LeftL1, MissContext, MissedKeys};
