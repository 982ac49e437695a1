//! The places of a chunk's bytes in paged memory, and their order in its objects. Pure arithmetic.
//!
//! An object has the bytes of one chunk for one group: for each segment of the group in the order given, for each block, that
//! segment's bytes of the block. All else about an engine's tensors (heads or tokens first, K and V apart or fused, one latent, all
//! layers of a block together) is in the segments' addresses, sizes and strides.

use hashbrown::HashMap;

use crate::error::{Error, Result};
use crate::shape::{Piece, Shape};

/// Most segments of a pool.
pub const SEGMENTS_MAX: usize = 4096;
/// Most blocks of a chunk.
pub const BLOCKS_PER_CHUNK_MAX: u32 = 1 << 16;
/// Most blocks of a pool: their numbers are not negative in C.
pub const BLOCKS_MAX: u32 = i32::MAX as u32;
/// Addresses and sizes are multiples of this.
pub const GRAIN: u64 = 4;
/// Most bytes of one object.
const OBJECT_BYTES_MAX: u64 = 1 << 40;

/// One stretch of memory with a place for each block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Address of block 0.
    pub address: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// From one block to the next.
    pub block_stride: u64,
    /// The group it belongs to.
    pub group: u32,
    /// The layer it belongs to.
    pub layer: u32,
    /// The tensor of the layer, by the engine's own number, or 0.
    pub part: u32,
}

impl Segment {
    /// Address of a block.
    pub fn block(&self, id: u32) -> u64 {
        self.address + u64::from(id) * self.block_stride
    }

    fn name(&self, index: usize) -> String {
        format!("segments[{index}] (layer {}, group {})", self.layer, self.group)
    }

    /// One past its last byte, if that can be an address.
    fn end(&self, blocks: u32) -> Option<u64> {
        let last = u64::from(blocks - 1).checked_mul(self.block_stride)?.checked_add(self.address)?;
        last.checked_add(self.block_bytes).filter(|&end| end <= i64::MAX as u64)
    }
}

/// A segment as one of its group.
#[derive(Clone, Copy, Debug)]
pub struct GroupSegment {
    /// The segment, as the engine gave it.
    pub segment: Segment,
    /// Place of its layer among the pool's layers.
    pub layer: usize,
    /// Bytes of a block in the segments before it.
    pub before: u64,
}

/// The segments of one group.
#[derive(Debug, Default)]
pub struct Group {
    /// In the order of the object's bytes.
    pub parts: Vec<GroupSegment>,
    /// The same by layer: indexes of `parts`.
    pub by_layer: Vec<Vec<usize>>,
    /// Bytes of a block in all segments.
    pub block_bytes: u64,
}

impl Group {
    /// Bytes of a block in one layer.
    pub fn layer_bytes(&self, layer: usize) -> u64 {
        self.by_layer[layer].iter().map(|&part| self.parts[part].segment.block_bytes).sum()
    }
}

/// A layout whose every number was checked.
#[derive(Debug)]
pub struct Layout {
    /// Blocks of the pool.
    pub blocks: u32,
    /// Blocks of a chunk.
    pub blocks_per_chunk: u32,
    /// The layers' numbers, rising.
    pub layers: Vec<u32>,
    /// The groups by their numbers.
    pub groups: HashMap<u32, Group>,
}

impl Layout {
    /// Checks every number that an engine gives.
    pub fn new(blocks: u32, blocks_per_chunk: u32, segments: &[Segment]) -> Result<Layout> {
        if blocks == 0 || blocks > BLOCKS_MAX {
            return Err(Error::invalid(format!(
                "block_count is {blocks}, it must be 1 to {BLOCKS_MAX}: pass the number of blocks that each segment has"
            )));
        }
        if blocks_per_chunk == 0 || blocks_per_chunk > BLOCKS_PER_CHUNK_MAX {
            return Err(Error::invalid(format!(
                "blocks_per_chunk is {blocks_per_chunk}, it must be 1 to {BLOCKS_PER_CHUNK_MAX}: pass the space's chunk_tokens \
                 divided by the tokens of a block"
            )));
        }
        if segments.is_empty() || segments.len() > SEGMENTS_MAX {
            return Err(Error::invalid(format!(
                "segment_count is {}, it must be 1 to {SEGMENTS_MAX}: pass one segment for each tensor of pages",
                segments.len()
            )));
        }
        for (index, segment) in segments.iter().enumerate() {
            check_numbers(segment, index, blocks)?;
        }
        check_overlap(segments, blocks)?;
        let mut layers: Vec<u32> = segments.iter().map(|segment| segment.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let mut groups: HashMap<u32, Group> = HashMap::new();
        for &segment in segments {
            let group = groups.entry(segment.group).or_default();
            group.by_layer.resize_with(layers.len(), Vec::new);
            let layer = layers.binary_search(&segment.layer).unwrap_or_default();
            group.by_layer[layer].push(group.parts.len());
            group.parts.push(GroupSegment { segment, layer, before: group.block_bytes });
            group.block_bytes += segment.block_bytes;
            if group.block_bytes.saturating_mul(u64::from(blocks_per_chunk)) > OBJECT_BYTES_MAX {
                return Err(Error::invalid(format!(
                    "a chunk of group {} has more than {OBJECT_BYTES_MAX} bytes: check block_bytes, which is in bytes",
                    segment.group
                )));
            }
        }
        Ok(Layout { blocks, blocks_per_chunk, layers, groups })
    }

    /// The shapes of the objects of `rank`, one for each group.
    pub fn shapes(&self, rank: u32) -> Vec<Shape> {
        let piece = |part: &GroupSegment| {
            let Segment { layer, part, block_bytes, .. } = part.segment;
            Piece { layer, part, block_bytes }
        };
        let shape = |(&group, of_group): (&u32, &Group)| {
            Shape::new(rank, group, self.blocks_per_chunk, of_group.parts.iter().map(piece))
        };
        self.groups.iter().map(shape).collect()
    }
}

fn check_numbers(segment: &Segment, index: usize, blocks: u32) -> Result<()> {
    let Segment { address, block_bytes, block_stride, .. } = *segment;
    let name = segment.name(index);
    if address == 0 {
        return Err(Error::invalid(format!("{name} has address 0: pass the address of its block 0")));
    }
    if block_bytes == 0 {
        return Err(Error::invalid(format!("{name} has block_bytes 0: pass the bytes of a block in it")));
    }
    if block_stride < block_bytes {
        return Err(Error::invalid(format!(
            "{name} has a block_stride of {block_stride}, less than its block_bytes of {block_bytes}, so that its blocks \
             overlap: pass the bytes from one block to the next, or 0 where they touch"
        )));
    }
    if [address, block_bytes, block_stride].iter().any(|number| !number.is_multiple_of(GRAIN)) {
        return Err(Error::invalid(format!(
            "{name} has an address, block_bytes or block_stride that is no multiple of {GRAIN}: align the tensor and its blocks"
        )));
    }
    if segment.end(blocks).is_none() {
        return Err(Error::invalid(format!(
            "{name} ends beyond what can be addressed: check address, block_stride and block_count ({blocks})"
        )));
    }
    Ok(())
}

/// Refuses two segments of a group whose blocks share a byte. Those of two groups may: an engine gives a block to one of them.
fn check_overlap(segments: &[Segment], blocks: u32) -> Result<()> {
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_unstable_by_key(|&index| (segments[index].group, segments[index].address));
    for (at, &i) in order.iter().enumerate() {
        let a = &segments[i];
        let end = a.end(blocks).unwrap_or(u64::MAX);
        let near = order[at + 1..].iter().map(|&j| (j, &segments[j]));
        for (j, b) in near.take_while(|(_, b)| b.group == a.group && b.address < end) {
            if a.block_stride != b.block_stride {
                return Err(Error::invalid(format!(
                    "{} and {} lie in one stretch of memory with different strides, so that their blocks may overlap: give \
                     them separate memory or one stride",
                    a.name(i),
                    b.name(j)
                )));
            }
            // Block 0 of `b` lies so far behind the beginning of a block of `a`, and the next block of `a` so far behind that.
            let behind = (b.address - a.address) % a.block_stride;
            let before_last = (b.address - a.address) / a.block_stride + 1 < u64::from(blocks);
            if behind < a.block_bytes || (behind + b.block_bytes > a.block_stride && before_last) {
                return Err(Error::invalid(format!(
                    "blocks of {} and {} overlap: give each segment bytes of its own",
                    a.name(i),
                    b.name(j)
                )));
            }
        }
    }
    Ok(())
}
