//! Pools: paged memory that an engine registered once.

use std::sync::Arc;

use super::copy_device::Device;
use super::cpu_copy::Promise;
use super::layout::{Layout, Segment};
use crate::error::{Error, Result};
use crate::shape::Shape;

/// The device that stands for the CPU's own memory, in C `KVKEEP_DEVICE_HOST`.
const HOST: i32 = -1;

/// The description of pages that an engine gives.
pub struct PoolSpec {
    /// Where they are: -1 for the CPU's own memory, or the ordinal of a CUDA device.
    pub device: i32,
    /// The rank of the keys whose objects they hold.
    pub rank: u32,
    /// Blocks of each segment.
    pub blocks: u32,
    /// Blocks of a chunk.
    pub blocks_per_chunk: u32,
    /// The stretches of memory that hold the blocks.
    pub segments: Vec<Segment>,
    /// The engine's promise that the pages are there.
    pub promise: Promise,
}

/// A pool, registered until it is closed.
pub struct PagePool {
    /// The number that callers know it by.
    pub number: u64,
    /// The space whose objects it holds.
    pub space: u64,
    /// The rank of their keys.
    pub rank: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// The places of its blocks' bytes.
    pub layout: Layout,
    /// The shapes of the objects, one for each group.
    pub shapes: Vec<Shape>,
    /// The engine's promise that the pages are there.
    pub promise: Promise,
    /// The device that moves their bytes.
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
