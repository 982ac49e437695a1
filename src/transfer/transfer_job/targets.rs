//! The keys of a transfer, the blocks of each, and the number of their bytes.

use std::sync::Arc;

use crate::abi::View;
use crate::cache::Cache;
use crate::error::{KVKEEP_ERR_INTERNAL, KVKEEP_ERR_INVALID, KVKEEP_OK, Status};
use crate::key::Key;
use crate::transfer::page_pool::PagePool;
use crate::transfer::pieces::ObjectPlace;

/// The keys of a transfer and their blocks. Never changed.
pub struct Targets {
    /// The pool it goes to or comes from.
    pub pool: Arc<PagePool>,
    pub keys: Vec<Key>,
    /// As many for each key as a chunk has blocks; negative ones are passed over.
    pub blocks: Vec<i32>,
}

pub(super) fn blocks_in(blocks: &[i32]) -> u64 {
    blocks.iter().filter(|&&id| id >= 0).count() as u64
}

impl Targets {
    /// Bytes of each layer that are asked for.
    pub fn layer_bytes(&self) -> Vec<u64> {
        let layout = &self.pool.layout;
        let mut bytes = vec![0; layout.layers.len()];
        for (key, blocks) in self.keys.iter().zip(self.blocks.chunks(layout.blocks_per_chunk as usize)) {
            let Some(group) = layout.groups.get(&key.group) else { continue };
            for (layer, bytes) in bytes.iter_mut().enumerate() {
                *bytes += group.layer_bytes(layer) * blocks_in(blocks);
            }
        }
        bytes
    }

    /// The blocks of a key.
    pub fn blocks_of(&self, key: usize) -> &[i32] {
        let per_chunk = self.pool.layout.blocks_per_chunk as usize;
        &self.blocks[key * per_chunk..][..per_chunk]
    }

    /// Bytes that are asked for of the first `there` blocks of a key.
    pub fn bytes_of(&self, key: usize, there: u32) -> u64 {
        let group = self.pool.layout.groups.get(&self.keys[key].group);
        group.map_or(0, |group| group.block_bytes) * blocks_in(&self.blocks_of(key)[..there as usize])
    }

    /// Whether any of the first `there` blocks of a key is copied in a layer.
    pub fn is_in_layer(&self, key: usize, there: u32, layer: usize) -> bool {
        let group = self.pool.layout.groups.get(&self.keys[key].group);
        group.is_some_and(|group| group.layer_bytes(layer) > 0) && self.bytes_of(key, there) > 0
    }

    /// Where the object of a key is in L1, as `view` has it; else why it is not to be had.
    pub fn place(&self, cache: &dyn Cache, key: usize, view: &View) -> std::result::Result<ObjectPlace, Status> {
        let status = Status::from_number(view.status).unwrap_or(KVKEEP_ERR_INTERNAL);
        if status != KVKEEP_OK {
            return Err(status);
        }
        let layout = &self.pool.layout;
        let per_block = layout.groups.get(&self.keys[key].group).map_or(0, |group| group.block_bytes);
        let whole = per_block != 0 && view.size.is_multiple_of(per_block);
        let blocks = if whole { view.size / per_block } else { 0 };
        if blocks == 0 || blocks > u64::from(layout.blocks_per_chunk) {
            // Stored by another engine, whose pages look different.
            return Err(KVKEEP_ERR_INVALID);
        }
        let arena = cache.arena_of(view).ok_or(KVKEEP_ERR_INTERNAL)?;
        Ok(ObjectPlace { arena, data: view.data.expose_provenance() as u64, blocks: blocks as u32 })
    }
}
