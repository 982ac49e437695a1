//! What moves objects between tiers and tells callers: prefetch jobs, writing to L2, making room ahead of need.

pub mod backends;
pub mod completion;
pub mod deadline;
pub mod forget_space;
pub mod prefetch;
pub mod shortfall;
pub mod tier_sync;
pub mod tokens;
pub mod write_counters;
pub mod writeback;

#[cfg(test)]
mod tests;
