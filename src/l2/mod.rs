//! Everything below L1: [`backend`] is the trait of any store of objects, [`object_header`] the header around every object ([`store_header`]
//! while it is on its way there),
//! [`registry`] opens a store by its URL; [`fs`], [`memory`], [`plugin`], [`redis`], `s3` (a cargo feature)
//! and [`fault`] are the stores, and [`encrypted`] goes around any of them.

pub mod backend;
pub mod common_options;
pub mod encrypted;
pub mod fault;
pub mod fs;
pub mod memory;
pub mod object_header;
pub mod plugin;
mod presence_share;
pub mod redis;
pub mod registry;
#[cfg(feature = "s3")]
pub mod s3;
pub mod store_header;
#[cfg(test)]
mod tests;
pub mod url;

pub use self::backend::{
    Backend, Change, Found, Health, LoadRequest, LoadSink, LookupRequest, Observer, Reply, StoreRequest, Stored, Usage,
};
