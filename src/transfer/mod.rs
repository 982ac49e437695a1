//! Device transfer: objects between L1 and the paged memory of an engine.
//!
//! It stands above the trait [`Cache`](crate::cache::Cache), so that whoever holds the handle copies, whether L1 is its own or a
//! daemon's. [`pool`] is what an engine registered, [`layout`] where its bytes are, [`job`] one store or load, [`pieces`] in
//! which order its bytes go, [`stream`] a store that is larger than L1's room for it, [`device`] what moves them; [`host`] and [`copy`] do so on the CPU, [`cuda`] on NVIDIA's GPUs.

pub mod copy;
mod cuda;
pub mod device;
mod host;
mod large_store;
pub mod layout;
pub mod page_pool;
mod pieces;
pub mod registry;
pub mod submit;
#[cfg(test)]
mod tests;
mod transfer_job;

pub use self::page_pool::PoolSpec;
pub use self::registry::Transfers;
pub use submit::TransferRequest;
