//! Moves objects between tiers and notifies callers: prefetch jobs, writing to L2, forgetting spaces, deadlines.

pub mod backend_tasks;
pub mod backends;
pub mod breaker;
pub mod completion;
pub mod copies;
pub mod deadline;
pub mod delete;
pub mod forget_space;
pub mod forgotten;
pub mod load_cost;
pub mod losses;
pub mod prefetch;
pub mod shortfall;
pub mod store_pressure;
pub mod throughput;
pub mod tier_sync;
pub mod tokens;
pub mod write_counters;
pub mod writeback;

#[cfg(test)]
mod tests;
