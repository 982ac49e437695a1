//! kvkeep keeps the KV cache of language-model requests outside the GPU.
//!
//! The C ABI in [`ffi`] is the product; everything else is floors below it, each using only what stands below.

pub mod ffi;

pub mod open_cache;

pub mod transfer;

pub mod cache;

pub mod daemon;
pub mod node;
mod store_wait;

pub mod control;
pub mod l1;
pub mod l2;

pub mod abi;
pub mod ablation;
pub mod arena;
pub mod arena_lease;
pub mod backend_report;
pub mod backend_state;
pub mod call_errors;
mod chunked;
pub mod config;
mod doorbell;
pub mod error;
pub mod events;
pub(crate) mod fingerprint;
#[doc(hidden)]
pub mod fuzzing;
pub mod hash;
pub mod key;
pub mod log;
pub mod memory_bounds;
pub mod meters;
pub mod misses;
pub mod openmetrics;
pub mod policy;
pub mod prometheus;
pub mod shape;
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;
mod slot_table;
pub mod space_names;
pub mod space_report;
mod sync;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod write_waits;
