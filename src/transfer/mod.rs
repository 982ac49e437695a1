//! Device transfer: objects between L1 and the paged memory of an engine.
//!
//! It stands above the trait [`Cache`](crate::cache::Cache), so that whoever holds the handle copies, whether L1 is its own or a
//! daemon's. [`pool`] is what an engine registered, [`layout`] where its bytes are, [`job`] one store or load, [`pieces`] in
//! which order its bytes go, [`stream`] a store that is larger than L1's room for it, [`device`] what moves them; [`host`] and [`copy`] do so on the CPU, [`cuda`] on NVIDIA's GPUs.

pub mod copy;
mod cuda;
pub mod device;
mod host;
mod job;
pub mod layout;
mod pieces;
pub mod pool;
mod stream;
pub mod submit;
pub mod table;
#[cfg(test)]
mod tests;

pub use pool::PoolSpec;
pub use submit::TransferRequest;
pub use table::Transfers;
