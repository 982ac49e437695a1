//! What moves objects between tiers and tells callers: prefetch jobs, writing to L2, making room ahead of need.

mod account;
pub mod chain;
pub mod complete;
pub mod forget;
pub mod job;
pub mod load;
mod pins;
pub mod plan;
pub mod prefetch;
pub mod query;
pub mod shortfall;
pub mod tiers;
mod turn;
pub mod upkeep;
pub mod watch;
pub mod writeback;
pub mod writes;

#[cfg(test)]
mod tests;
