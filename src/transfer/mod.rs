//! Device transfer: objects between L1 and the paged memory of an engine.
//!
//! It stands above the trait [`Cache`](crate::cache::Cache), so that it copies for every handle, whether L1 is in this process or a
//! daemon's. [`transfers`] has the pools and transfers of a handle by number, [`submit`] accepts a transfer. [`page_pool`] is what
//! an engine registered, [`layout`] where its bytes are. [`transfer_job`] is one store or load, [`pieces`] the order of its bytes,
//! [`large_store`] the background of a store that is larger than L1's memory for it. [`copy_device`] is what moves bytes: [`host`] and [`cpu_copy`]
//! do so on the CPU, [`cuda`] on NVIDIA's GPUs.

pub mod copy_device;
pub mod cpu_copy;
#[cfg(target_arch = "x86_64")]
mod cpu_copy_x86;
mod cuda;
mod host;
mod large_store;
pub mod layout;
pub mod page_pool;
mod pieces;
pub mod submit;
#[cfg(test)]
mod tests;
mod transfer_job;
pub mod transfers;

pub use self::page_pool::PoolSpec;
pub use self::transfers::Transfers;
pub use submit::TransferRequest;
