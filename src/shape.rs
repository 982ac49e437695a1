//! The shape of a space's objects: the segments that a chunk's bytes are made of, in which order and of which sizes.
//!
//! Two pools of one shape can read each other's objects. A shape belongs to a rank and a group of a space, and so to each
//! object of these. It has nothing of addresses, strides or devices, which each process chooses for itself.

use std::fmt::{self, Display, Formatter};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Fingerprint of a shape: two shapes have the same one by chance once in 2^128 pairs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ShapeTag(pub [u8; 16]);

impl ShapeTag {
    /// Of objects that were not stored from a pool: only their writer knows their layout.
    pub const UNKNOWN: ShapeTag = ShapeTag([0; 16]);
}

/// One segment's part of a shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The number of its layer.
    pub layer: u32,
    /// The tensor of the layer that it is, as its engine numbers it, or 0.
    pub part: u32,
    /// Bytes of a block in it.
    pub block_bytes: u64,
}

/// The shape of the objects of one rank and group. Plain data, so that it crosses the daemon's socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shape {
    /// The rank of their keys.
    pub rank: u32,
    /// The group of their keys.
    pub group: u32,
    /// Of all that follows, and of each segment in order.
    pub tag: ShapeTag,
    /// Bytes of a block in all segments.
    pub block_bytes: u64,
    /// Segments of a chunk.
    pub segments: u32,
    /// Blocks of a chunk.
    pub blocks_per_chunk: u32,
}

impl Shape {
    /// The shape of objects whose segments are `pieces`, in the order of their bytes.
    pub fn new(rank: u32, group: u32, blocks_per_chunk: u32, pieces: impl Iterator<Item = Piece>) -> Shape {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"kvkeep shape").update(&blocks_per_chunk.to_le_bytes());
        let (mut block_bytes, mut segments) = (0, 0);
        for piece in pieces {
            hasher.update(&piece.layer.to_le_bytes()).update(&piece.part.to_le_bytes());
            hasher.update(&piece.block_bytes.to_le_bytes());
            block_bytes += piece.block_bytes;
            segments += 1;
        }
        let mut tag = ShapeTag::UNKNOWN;
        tag.0.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Shape { rank, group, tag, block_bytes, segments, blocks_per_chunk }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Shape { blocks_per_chunk, block_bytes, segments, .. } = self;
        write!(f, "blocks_per_chunk {blocks_per_chunk}, {block_bytes} bytes a block in {segments} segments")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_the_order_of_the_segments_count() {
        let piece = |layer, part, block_bytes| Piece { layer, part, block_bytes };
        let shape = |blocks, pieces: &[Piece]| Shape::new(0, 0, blocks, pieces.iter().copied()).tag;
        let tags = [
            shape(4, &[piece(0, 1, 64), piece(0, 2, 64)]),
            shape(4, &[piece(0, 2, 64), piece(0, 1, 64)]),
            shape(4, &[piece(0, 0, 64), piece(0, 0, 64)]),
            shape(4, &[piece(0, 0, 64), piece(1, 0, 64)]),
            shape(4, &[piece(1, 0, 64), piece(0, 0, 64)]),
            shape(4, &[piece(0, 0, 128)]),
            shape(8, &[piece(0, 0, 64)]),
            shape(4, &[piece(0, 0, 64)]),
        ];
        for (i, tag) in tags.iter().enumerate() {
            assert!(!tags[i + 1..].contains(tag) && *tag != ShapeTag::UNKNOWN, "{i}");
        }
        let again = Shape::new(3, 7, 4, [piece(0, 0, 64)].into_iter());
        assert_eq!((again.tag, again.block_bytes, again.segments), (tags[7], 64, 1));
    }
}
