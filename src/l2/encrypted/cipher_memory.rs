//! The memory of ciphertexts on their way to a backend: bounded, and used again, so that its pages are touched once.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::arena::{Arena, Buffer, HUGE_PAGE, Hold, MapOptions, PAGE};
use crate::error::{Error, Result};

/// The addresses that are set aside. Pages are touched as they are needed, from the first on.
const SPAN: usize = 1 << 30;

/// A bounded memory that lends buffers.
pub struct CipherMemory {
    arena: Arena,
    bytes_max: u64,
    ranges: Mutex<Ranges>,
    /// So many bytes, from the first on, have their pages.
    joined: Mutex<u64>,
    me: Weak<CipherMemory>,
}

/// Ranges by their offsets; no two of `free` touch.
#[derive(Default)]
struct Ranges {
    free: BTreeMap<u64, u64>,
    lent: BTreeMap<u64, u64>,
    lent_bytes: u64,
}

impl Hold for CipherMemory {
    fn release(&self, token: u64) {
        self.ranges.lock().give_back(token);
    }
}

impl Ranges {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let (&at, &length) = self.free.iter().find(|(_, length)| **length >= bytes)?;
        self.free.remove(&at);
        if length > bytes {
            self.free.insert(at + bytes, length - bytes);
        }
        self.lent.insert(at, bytes);
        self.lent_bytes += bytes;
        Some(at)
    }

    fn give_back(&mut self, at: u64) {
        let Some(mut length) = self.lent.remove(&at) else { return };
        self.lent_bytes -= length;
        if let Some(after) = self.free.remove(&(at + length)) {
            length += after;
        }
        match self.free.range_mut(..at).next_back() {
            Some((before, its)) if before + *its == at => *its += length,
            _ => drop(self.free.insert(at, length)),
        }
    }
}

impl CipherMemory {
    /// A memory that lends about `bytes_max` at once. No page is touched yet.
    pub fn new(bytes_max: u64) -> Result<Arc<CipherMemory>> {
        let options = MapOptions { name: Some(c"kvkeep-ciphertexts"), ..MapOptions::default() };
        let arena =
            Arena::map(SPAN, options).map_err(|error| Error::io("mapping memory for encrypted objects", &error))?;
        let ranges = Ranges { free: BTreeMap::from([(0, arena.bytes() as u64)]), ..Ranges::default() };
        Ok(Arc::new_cyclic(|me| {
            let (ranges, joined) = (Mutex::new(ranges), Mutex::default());
            CipherMemory { arena, bytes_max, ranges, joined, me: me.clone() }
        }))
    }

    /// Whether a buffer of so many bytes can ever be lent.
    pub fn fits(&self, bytes: usize) -> bool {
        bytes <= SPAN
    }

    /// A buffer of `bytes`; none while there is no room. One may be larger than the bound while it is the only one.
    pub fn lend(&self, bytes: usize) -> Option<Buffer> {
        let me = self.me.upgrade()?;
        let span = (bytes.max(1) as u64).next_multiple_of(PAGE as u64);
        let at = {
            let mut ranges = self.ranges.lock();
            let has_room = ranges.lent_bytes + span <= self.bytes_max || ranges.lent.is_empty();
            has_room.then(|| ranges.take(span)).flatten()?
        };
        Some(self.arena.lend(at, bytes as u64, me, at))
    }

    /// Gives a lent buffer its pages, joined to huge ones where the kernel can: a disk writes scattered ones at little more than half
    /// the speed. Pages that were given before stay.
    pub fn join_pages(&self, buffer: &Buffer) {
        let at = buffer.bytes().as_ptr() as usize - self.arena.at(0) as usize;
        let end = (at + buffer.len()).min(self.arena.bytes()) as u64;
        let mut joined = self.joined.lock();
        while *joined < end {
            let part = (HUGE_PAGE as u64).min(self.arena.bytes() as u64 - *joined);
            // Where the kernel cannot, the first use of a page pays for it.
            let _ = self.arena.populate(*joined, part);
            *joined += part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 16 * PAGE as u64;

    #[test]
    fn what_is_lent_is_bounded_and_comes_back_whole() {
        let memory = CipherMemory::new(MAX).unwrap();
        let mut buffers: Vec<Buffer> = (0..16).map(|_| memory.lend(PAGE - 1).unwrap()).collect();
        assert!(memory.lend(1).is_none());
        buffers.iter_mut().enumerate().for_each(|(i, buffer)| buffer.bytes_mut().fill(i as u8));
        assert!(buffers.iter().enumerate().all(|(i, buffer)| buffer.bytes().iter().all(|byte| *byte == i as u8)));
        // In any order.
        for at in [3, 0, 7, 7, 1] {
            drop(buffers.remove(at));
        }
        buffers.push(memory.lend(PAGE).unwrap());
        buffers.clear();
        let ranges = memory.ranges.lock();
        assert_eq!((ranges.free.len(), ranges.lent.len(), ranges.lent_bytes), (1, 0, 0));
    }

    #[test]
    fn an_object_above_the_bound_is_lent_alone() {
        let memory = CipherMemory::new(MAX).unwrap();
        let small = memory.lend(1).unwrap();
        assert!(memory.lend(MAX as usize + 1).is_none());
        drop(small);
        let large = memory.lend(MAX as usize + 1).unwrap();
        assert!(memory.lend(1).is_none());
        drop(large);
        assert!(memory.lend(1).is_some() && memory.fits(SPAN) && !memory.fits(SPAN + 1));
    }
}
