//! The order in which the bytes of a transfer are copied: layer by layer over all chunks that are there, a piece at a time.

use std::ops::Range;
use std::sync::Arc;

use super::cpu_copy::{Fragment, Promise};
use super::layout::Layout;
use crate::arena_lease::ArenaLease;

/// Bytes of a piece, about: a thread copies so many before it takes the transfer's lock again.
const PIECE_BYTES: u64 = 2 << 20;
const FRAGMENTS_MAX: usize = 4096;

/// Where an object is in L1.
#[derive(Clone)]
pub struct ObjectPlace {
    /// The mapping, which stays while this does, and what lies there.
    pub arena: ArenaLease,
    /// Address of its first byte.
    pub data: u64,
    /// How many blocks it has.
    pub blocks: u32,
}

/// The parts of a transfer from which its batches cut pieces.
pub struct BatchSource<'a> {
    /// The layout of the pool's segments.
    pub layout: &'a Layout,
    /// The promise that its pages are there.
    pub promise: &'a Promise,
    /// The group of a key.
    pub group_of: &'a dyn Fn(usize) -> u32,
    /// Block numbers, so many for each key as a chunk has blocks; negative ones are passed over.
    pub blocks: &'a [i32],
    /// Where the keys' objects are.
    pub places: &'a [Option<ObjectPlace>],
}

/// Some keys of a transfer by their places in it: neighbours in a batch.
pub struct KeySpan {
    batch: Arc<[usize]>,
    range: Range<usize>,
}

impl KeySpan {
    /// The keys, by their places in the transfer.
    pub fn keys(&self) -> &[usize] {
        &self.batch[self.range.clone()]
    }

    /// Whether they are keys of this batch.
    pub fn is_of(&self, batch: &Arc<[usize]>) -> bool {
        Arc::ptr_eq(&self.batch, batch)
    }
}

/// Keys whose objects are there, and the place up to which they are cut into pieces.
pub struct KeyBatch {
    keys: Arc<[usize]>,
    layer: usize,
    key: usize,
    part: usize,
    block: u32,
}

/// A piece's place in the transfer.
pub struct CutPiece {
    /// The place of its layer among the pool's.
    pub layer: usize,
    /// The number of its bytes.
    pub bytes: u64,
    /// From its first to its last key.
    pub keys: KeySpan,
    /// The mapping that it is in.
    pub arena: ArenaLease,
}

impl KeyBatch {
    /// Nothing is copied yet.
    pub fn new(keys: Arc<[usize]>) -> KeyBatch {
        KeyBatch { keys, layer: 0, key: 0, part: 0, block: 0 }
    }

    /// Cuts the next piece off; None when nothing is left.
    pub fn cut(&mut self, source: &BatchSource<'_>, fragments: &mut Vec<Fragment>) -> Option<CutPiece> {
        fragments.clear();
        let layers = source.layout.layers.len();
        let mut cut: Option<CutPiece> = None;
        while self.layer < layers {
            while self.key < self.keys.len() {
                let full = self.cut_key(source, fragments, &mut cut);
                if full {
                    return cut;
                }
                self.key += 1;
            }
            self.key = 0;
            self.layer += 1;
            if cut.is_some() {
                break;
            }
        }
        cut
    }

    /// Goes on with the key it is at. True if the piece is full, with more of the key left.
    fn cut_key(&mut self, source: &BatchSource<'_>, fragments: &mut Vec<Fragment>, cut: &mut Option<CutPiece>) -> bool {
        let key = self.keys[self.key];
        let per_chunk = source.layout.blocks_per_chunk as usize;
        let Some(place) = &source.places[key] else { return false };
        let Some(group) = source.layout.groups.get(&(source.group_of)(key)) else { return false };
        if cut.as_ref().is_some_and(|cut| !Arc::ptr_eq(&cut.arena, &place.arena)) {
            return true;
        }
        let parts = &group.by_layer[self.layer];
        let ids = &source.blocks[key * per_chunk..][..place.blocks as usize];
        while let Some(&part) = parts.get(self.part) {
            let part = &group.parts[part];
            let bytes = part.segment.block_bytes;
            while let Some(&id) = ids.get(self.block as usize) {
                if cut.as_ref().is_some_and(|cut| cut.bytes >= PIECE_BYTES) || fragments.len() >= FRAGMENTS_MAX {
                    return true;
                }
                let block = self.block;
                self.block += 1;
                let Ok(id) = u32::try_from(id) else { continue };
                let data = place.data + part.before * u64::from(place.blocks) + u64::from(block) * bytes;
                let page = part.segment.block(id);
                let fragment = Fragment::new(source.promise, page, &place.arena, data, bytes);
                if !fragments.last_mut().is_some_and(|last| last.join(&fragment)) {
                    fragments.push(fragment);
                }
                let cut = cut.get_or_insert_with(|| CutPiece {
                    layer: self.layer,
                    bytes: 0,
                    keys: KeySpan { batch: self.keys.clone(), range: self.key..self.key },
                    arena: place.arena.clone(),
                });
                cut.bytes += bytes;
                cut.keys.range.end = self.key + 1;
            }
            self.part += 1;
            self.block = 0;
        }
        self.part = 0;
        false
    }
}
