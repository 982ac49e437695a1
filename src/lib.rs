//! kvkeep keeps the KV cache of language-model requests outside the GPU.
//!
//! The C ABI in [`ffi`] is the product; everything else is floors below it, each using only what stands below.

pub mod ffi;

pub mod opened;

pub mod transfer;

pub mod cache;

mod calls;
pub mod daemon;
pub mod explain;
pub mod node;
mod view;
mod waiting;

pub mod control;
pub mod l1;
pub mod l2;

pub mod arena;
mod background;
mod chunked;
pub mod config;
mod doorbell;
pub mod error;
pub mod events;
pub mod hash;
pub mod in_use;
pub mod key;
pub mod log;
pub mod memory_bounds;
pub mod metrics;
pub mod policy;
pub(crate) mod print;
pub mod shape;
pub mod stats;
mod table;
pub mod types;
