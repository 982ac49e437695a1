//! The host-memory tier.

pub mod alloc;
mod chunked;
pub mod policy;
