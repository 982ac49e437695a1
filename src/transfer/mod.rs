//! Device transfer: objects between L1 and the paged memory of an engine.
//!
//! It stands above the trait [`Cache`](crate::cache::Cache), so that the process that holds the handle copies, whether L1 is its
//! own or a daemon's. [`page_pool`] is the memory that an engine registered, [`layout`] the place of its bytes, [`transfer_job`]
//! one store or load, [`pieces`] the order of its bytes, [`large_store`] a store that is larger than the free part of L1.
//! [`device`] moves the pieces: [`host`] and [`copy`] on the CPU, [`cuda`] on NVIDIA's GPUs.

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
