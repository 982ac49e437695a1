//! Pools: paged memory that an engine registered once.

use std::sync::Arc;

use super::copy::Promise;
use super::device::Device;
use super::layout::{Layout, Segment};
use crate::error::{Error, Result};
use crate::shape::Shape;

/// The device that stands for the CPU's own memory, in C `KVKEEP_DEVICE_HOST`.
const HOST: i32 = -1;

/// What an engine says of its pages.
pub struct PoolSpec {
    /// Where they are: -1 for the CPU's own memory, or the ordinal of a CUDA device.
    pub device: i32,
    /// The rank of the keys whose objects they hold.
    pub rank: u32,
    /// Blocks of each segment.
    pub blocks: u32,
    /// Blocks of a chunk.
    pub blocks_per_chunk: u32,
    /// Where the blocks are.
    pub segments: Vec<Segment>,
    /// That they are there.
    pub promise: Promise,
}

/// A registered pool.
pub struct PagePool {
    /// Its number.
    pub number: u64,
    /// The space whose objects it holds.
    pub space: u64,
    /// The rank of their keys.
    pub rank: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Where the bytes are.
    pub layout: Layout,
    /// The shapes of the objects, one for each group.
    pub shapes: Vec<Shape>,
    /// That they are there.
    pub promise: Promise,
    /// What moves them.
    pub device: Arc<dyn Device>,
}

/// The number of a CUDA device, or none for the host. Refuses what is neither.
pub fn cuda_device(device: i32) -> Result<Option<i32>> {
    match device {
        HOST => Ok(None),
        0.. => Ok(Some(device)),
        _ => Err(Error::invalid(format!(
            "device is {device}: pass KVKEEP_DEVICE_HOST ({HOST}) or the ordinal of a CUDA device"
        ))),
    }
}
