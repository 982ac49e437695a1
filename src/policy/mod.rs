//! Which object is evicted first. One file for each policy, one trait, chosen by name.

mod eviction_policy;
mod ghost;
mod lru;
mod mq;
mod none;
mod queue;
mod s3fifo;

#[cfg(test)]
mod tests;

pub use eviction_policy::{EvictionPolicy, Meta, Removal};
pub use lru::Lru;
pub use mq::Mq;
pub use none::Never;
pub use s3fifo::S3Fifo;

use crate::error::{Error, Result};

/// Names that [`by_name`] knows.
pub const NAMES: [&str; 4] = ["lru", "s3fifo", "mq", "none"];

/// The policy of this name, empty. The error has the names that are known.
pub fn by_name(name: &str) -> Result<Box<dyn EvictionPolicy>> {
    match name {
        "lru" => Ok(Box::new(Lru::new())),
        "s3fifo" => Ok(Box::new(S3Fifo::new())),
        "mq" => Ok(Box::new(Mq::new())),
        "none" => Ok(Box::new(Never)),
        _ => Err(Error::invalid(format!("there is no eviction policy {name:?}; known are {}", NAMES.join(", ")))),
    }
}
