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

/// Names that [`by_name`] knows.
pub const NAMES: [&str; 4] = ["lru", "s3fifo", "mq", "none"];

/// The policy of this name, empty.
pub fn by_name(name: &str) -> Option<Box<dyn EvictionPolicy>> {
    match name {
        "lru" => Some(Box::new(Lru::new())),
        "s3fifo" => Some(Box::new(S3Fifo::new())),
        "mq" => Some(Box::new(Mq::new())),
        "none" => Some(Box::new(Never)),
        _ => None,
    }
}
