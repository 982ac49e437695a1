//! The host-memory tier.

pub mod alloc;
pub mod policy;
