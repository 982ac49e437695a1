//! The allocator of the arena's memory: a two-level segregated fit (TLSF) whose lists stand outside the arena.
//!
//! Free blocks hang in bins by size, 32 bins to a power of two, and two levels of bitmaps find the next bin that has
//! one. A block knows its neighbours by address, so that a freed one melts into them at once.

use crate::chunked::Chunked;

const NIL: u32 = u32::MAX;
/// In `prev_free` of a block that is not free.
const USED: u32 = u32::MAX - 1;
const FINE: u32 = 5;
const FINE_BINS: usize = 1 << FINE;
/// Powers of two up to 2^32 units, those below 32 units sharing the first.
const COARSE_BINS: usize = 29;
const BINS: usize = COARSE_BINS * FINE_BINS;
/// Blocks looked at in a bin that may or may not hold a fit, before a bin that surely does is split.
const GLANCE: u32 = 8;
const UNIT: u64 = 64;
const PAGE: u64 = crate::arena::PAGE as u64;

/// A stretch of the arena that [`Alloc::alloc`] gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its first unit; see [`Alloc::offset`].
    pub start: u32,
    /// Names it to [`Alloc::free`].
    pub node: u32,
}

#[derive(Clone, Copy)]
struct BlockNode {
    /// First unit of the block.
    start: u32,
    /// Units less one, so that a block of 2^32 units can be written.
    last: u32,
    left: u32,
    right: u32,
    prev_free: u32,
    next_free: u32,
}

const _: () = assert!(size_of::<BlockNode>() == 24);
const BLANK: BlockNode = BlockNode { start: 0, last: 0, left: NIL, right: NIL, prev_free: USED, next_free: NIL };

impl BlockNode {
    fn units(&self) -> u64 {
        u64::from(self.last) + 1
    }

    /// Units lost in front when the block is used from a multiple of `align` units on.
    fn gap(&self, align: u64) -> u64 {
        u64::from(self.start).wrapping_neg() & (align - 1)
    }

    fn fits(&self, units: u64, align: u64) -> bool {
        self.usable(align) >= units
    }

    fn usable(&self, align: u64) -> u64 {
        self.units().saturating_sub(self.gap(align))
    }
}

#[derive(Clone, Copy)]
struct Bin {
    head: u32,
    /// Upper bounds of the free units in any of its blocks, from any unit on and from a page on: they spare the walk through
    /// a bin that is known to hold no fit.
    most: u64,
    most_paged: u64,
}

/// The allocator of one arena. It keeps offsets only and never touches the arena's memory.
pub struct Alloc {
    nodes: Chunked<BlockNode>,
    /// Nodes ever used; those freed again hang in `spare` by `next_free`.
    made: u32,
    spare: u32,
    bins: Box<[Bin]>,
    coarse: u32,
    fine: [u32; COARSE_BINS],
    /// The unit is two to the power of it.
    unit_bits: u32,
    /// Units in a page, at least one.
    page_units: u64,
    units: u64,
    used_units: u64,
    last_request: LastRequest,
}

/// The last request and the block it was cut off. As long as no bin changed, the same request is served from there again.
struct LastRequest {
    units: u64,
    align: u64,
    node: u32,
}

/// The bin of blocks with this many units; all blocks of later bins are larger.
fn bin_of(units: u64) -> usize {
    if units < FINE_BINS as u64 {
        return units as usize;
    }
    let shift = 63 - units.leading_zeros() - FINE;
    (shift as usize + 1) * FINE_BINS + ((units >> shift) as usize & (FINE_BINS - 1))
}

impl Alloc {
    /// The allocator of an arena of `bytes`. The unit is 64 bytes up to 256 GiB and doubles with the arena beyond.
    pub fn new(bytes: u64) -> Alloc {
        let mut unit_bits = UNIT.ilog2();
        while bytes >> unit_bits > 1 << 32 {
            unit_bits += 1;
        }
        let mut alloc = Alloc {
            nodes: Chunked::new(),
            made: 0,
            spare: NIL,
            bins: vec![Bin { head: NIL, most: 0, most_paged: 0 }; BINS].into_boxed_slice(),
            coarse: 0,
            fine: [0; COARSE_BINS],
            unit_bits,
            page_units: (PAGE >> unit_bits).max(1),
            units: bytes >> unit_bits,
            used_units: 0,
            last_request: LastRequest { units: 0, align: 0, node: NIL },
        };
        if alloc.units > 0 {
            let node = alloc.new_node(BlockNode { last: (alloc.units - 1) as u32, ..BLANK });
            if let Some(node) = node {
                alloc.push(node);
            }
        }
        alloc
    }

    /// Takes `size` bytes, at a multiple of 4096 when `size` is one, else of 64. `None` when no free block holds them.
    pub fn alloc(&mut self, size: u64) -> Option<Block> {
        let whole = size >> self.unit_bits;
        let units = (whole + u64::from(whole << self.unit_bits != size)).max(1);
        if units > self.units - self.used_units {
            return None;
        }
        let align = if size.is_multiple_of(PAGE) { self.page_units } else { 1 };
        let LastRequest { node, .. } = self.last_request;
        let again = node != NIL && self.last_request.units == units && self.last_request.align == align;
        let node = if again && self.nodes[node].fits(units, align) { node } else { self.find(units, align)? };
        self.carve(node, units, align)
    }

    /// Where the bytes of a block begin.
    #[inline]
    pub fn offset(&self, start: u32) -> u64 {
        u64::from(start) << self.unit_bits
    }

    /// Gives back a block that [`alloc`](Alloc::alloc) gave.
    pub fn free(&mut self, node: u32) {
        let Some(&BlockNode { left, right, prev_free: USED, .. }) = self.nodes.get(node) else {
            debug_assert!(false, "block {node} is not in use");
            return;
        };
        self.used_units -= self.nodes[node].units();
        let mut whole = node;
        if left != NIL && self.nodes[left].prev_free != USED {
            self.unlink(left);
            self.absorb_right(left);
            whole = left;
        }
        if right != NIL && self.nodes[right].prev_free != USED {
            self.unlink(right);
            self.absorb_right(whole);
        }
        self.push(whole);
    }

    /// Bytes that the block takes, rounding included.
    pub fn size_of(&self, node: u32) -> u64 {
        self.nodes[node].units() << self.unit_bits
    }

    /// Bytes taken, rounding included.
    pub fn used_bytes(&self) -> u64 {
        self.used_units << self.unit_bits
    }

    /// Bytes of the arena, used or free.
    pub fn capacity(&self) -> u64 {
        self.units << self.unit_bits
    }

    /// Bytes of the largest free block.
    pub fn largest_free(&self) -> u64 {
        let Some(bin) = self.next_bin(0) else { return 0 };
        let mut last = bin;
        while let Some(later) = self.next_bin(last + 1) {
            last = later;
        }
        let mut most = 0;
        let mut node = self.bins[last].head;
        while node != NIL {
            most = most.max(self.nodes[node].units());
            node = self.nodes[node].next_free;
        }
        most << self.unit_bits
    }

    /// Memory that the allocator itself holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.memory_bytes() + self.bins.len() * size_of::<Bin>() + size_of::<Alloc>()
    }

    /// A free block that holds `units` at `align`: the best-sized bin first, a larger one next, and a search of every
    /// bin in doubt before giving up.
    fn find(&mut self, units: u64, align: u64) -> Option<u32> {
        let first = bin_of(units);
        // Any block of a bin from `sure` on fits wherever it starts.
        let sure = bin_of(units + align - 1) + 1;
        let mut at = first;
        while let Some(bin) = self.next_bin(at).filter(|&bin| bin < sure) {
            if let Some(node) = self.search(bin, units, align, GLANCE) {
                return Some(node);
            }
            at = bin + 1;
        }
        if let Some(bin) = self.next_bin(sure) {
            return Some(self.bins[bin].head);
        }
        at = first;
        while let Some(bin) = self.next_bin(at).filter(|&bin| bin < sure) {
            if let Some(node) = self.search(bin, units, align, u32::MAX) {
                return Some(node);
            }
            at = bin + 1;
        }
        None
    }

    /// The first fit among the first `limit` blocks of a bin. A walk to the end without one tightens the bin's bound.
    fn search(&mut self, bin: usize, units: u64, align: u64, limit: u32) -> Option<u32> {
        let paged = align > 1;
        let Bin { head, most, most_paged } = self.bins[bin];
        if units > if paged { most_paged } else { most } {
            return None;
        }
        let mut node = head;
        let mut seen = 0;
        for _ in 0..limit {
            if node == NIL {
                let bound = if paged { &mut self.bins[bin].most_paged } else { &mut self.bins[bin].most };
                *bound = seen;
                return None;
            }
            let block = &self.nodes[node];
            if block.fits(units, align) {
                return Some(node);
            }
            seen = seen.max(block.usable(align));
            node = block.next_free;
        }
        None
    }

    /// The first bin from `from` on that holds a block.
    fn next_bin(&self, from: usize) -> Option<usize> {
        let coarse = from / FINE_BINS;
        if coarse >= COARSE_BINS {
            return None;
        }
        let here = self.fine[coarse] & (u32::MAX << (from % FINE_BINS));
        if here != 0 {
            return Some(coarse * FINE_BINS + here.trailing_zeros() as usize);
        }
        let above = self.coarse & u32::MAX.checked_shl(coarse as u32 + 1).unwrap_or(0);
        if above == 0 {
            return None;
        }
        let coarse = above.trailing_zeros() as usize;
        Some(coarse * FINE_BINS + self.fine[coarse].trailing_zeros() as usize)
    }

    /// Makes a used block of `units` out of a free one, and frees the remainder on both sides.
    fn carve(&mut self, node: u32, units: u64, align: u64) -> Option<Block> {
        let gap = self.nodes[node].gap(align);
        let tail = self.nodes[node].units() - gap - units;
        // Nodes first: running out of node numbers must leave the block as it was.
        if self.made >= USED - 2 {
            return None;
        }
        if gap == 0 && tail > 0 && bin_of(tail) == bin_of(tail + units) {
            self.last_request = LastRequest { units, align, node };
            return self.cut(node, units);
        }
        self.unlink(node);
        let mut block = node;
        if gap > 0 {
            block = self.split(node, gap)?;
            self.push(node);
        }
        if tail > 0 {
            let rest = self.split(block, units)?;
            self.push(rest);
        }
        self.used_units += units;
        Some(Block { start: self.nodes[block].start, node: block })
    }

    /// Makes a used block of the first `units` of a free one, whose remainder stays in its bin.
    fn cut(&mut self, node: u32, units: u64) -> Option<Block> {
        let BlockNode { start, left, .. } = self.nodes[node];
        let block = self.new_node(BlockNode { start, last: (units - 1) as u32, left, right: node, ..BLANK })?;
        if left != NIL {
            self.nodes[left].right = block;
        }
        let rest = &mut self.nodes[node];
        rest.start += units as u32;
        rest.last -= units as u32;
        rest.left = block;
        self.used_units += units;
        Some(Block { start, node: block })
    }

    /// Cuts a block after `units` and gives the node of the part behind.
    fn split(&mut self, node: u32, units: u64) -> Option<u32> {
        let BlockNode { start, last, right, .. } = self.nodes[node];
        let behind = self.new_node(BlockNode {
            start: start + units as u32,
            last: last - units as u32,
            left: node,
            right,
            ..BLANK
        })?;
        let front = &mut self.nodes[node];
        front.last = (units - 1) as u32;
        front.right = behind;
        if right != NIL {
            self.nodes[right].left = behind;
        }
        Some(behind)
    }

    /// Joins a block with its right neighbour, whose node is free again.
    fn absorb_right(&mut self, node: u32) {
        let gone = self.nodes[node].right;
        let BlockNode { last, right, .. } = self.nodes[gone];
        let block = &mut self.nodes[node];
        // Never more than the arena, whose last unit fits in 32 bits.
        block.last += last + 1;
        block.right = right;
        if right != NIL {
            self.nodes[right].left = node;
        }
        self.nodes[gone] = BlockNode { next_free: self.spare, prev_free: NIL, ..BLANK };
        self.spare = gone;
    }

    fn new_node(&mut self, node: BlockNode) -> Option<u32> {
        let place = self.spare;
        if place != NIL {
            self.spare = self.nodes[place].next_free;
            self.nodes[place] = node;
            return Some(place);
        }
        let place = self.made;
        if place >= USED {
            return None;
        }
        self.made += 1;
        self.nodes.reach(place, || BLANK);
        self.nodes[place] = node;
        Some(place)
    }

    /// Hangs a free block in its bin.
    fn push(&mut self, node: u32) {
        self.last_request.node = NIL;
        let block = self.nodes[node];
        let at = bin_of(block.units());
        let bin = &mut self.bins[at];
        let next = bin.head;
        bin.head = node;
        bin.most = bin.most.max(block.units());
        bin.most_paged = bin.most_paged.max(block.usable(self.page_units));
        if next == NIL {
            self.fine[at / FINE_BINS] |= 1 << (at % FINE_BINS);
            self.coarse |= 1 << (at / FINE_BINS);
        } else {
            self.nodes[next].prev_free = node;
        }
        let block = &mut self.nodes[node];
        block.prev_free = NIL;
        block.next_free = next;
    }

    /// Takes a free block out of its bin and marks it used.
    fn unlink(&mut self, node: u32) {
        self.last_request.node = NIL;
        let block = self.nodes[node];
        if block.next_free != NIL {
            self.nodes[block.next_free].prev_free = block.prev_free;
        }
        if block.prev_free != NIL {
            self.nodes[block.prev_free].next_free = block.next_free;
        } else {
            let at = bin_of(block.units());
            self.bins[at].head = block.next_free;
            if block.next_free == NIL {
                self.bins[at] = Bin { head: NIL, most: 0, most_paged: 0 };
                self.fine[at / FINE_BINS] &= !(1 << (at % FINE_BINS));
                if self.fine[at / FINE_BINS] == 0 {
                    self.coarse &= !(1 << (at / FINE_BINS));
                }
            }
        }
        let block = &mut self.nodes[node];
        block.prev_free = USED;
        block.next_free = NIL;
    }
}

#[cfg(test)]
#[path = "tests/alloc.rs"]
mod tests;
