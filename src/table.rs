//! Which slot of a tier holds a key: a hash table of slot numbers that can be asked without touching the slots.

use hashbrown::HashTable;

/// A slot, and the upper half of its key's hash.
#[derive(Clone, Copy)]
struct Entry {
    tag: u32,
    id: u32,
}

/// Slot numbers by the hashes of their keys.
pub struct Table {
    entries: HashTable<Entry>,
}

fn tag(hash: u64) -> u32 {
    (hash >> 20) as u32
}

impl Table {
    /// Empty.
    pub fn new() -> Table {
        Table { entries: HashTable::new() }
    }

    /// A slot that very likely holds the key: its tag is the same. The caller compares, and asks [`find`](Table::find) if
    /// it is another. Asking so for a batch first, and comparing after, lets the memory accesses of its keys overlap.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        let tag = tag(hash);
        self.entries.find(hash, |entry| entry.tag == tag).map(|entry| entry.id)
    }

    /// The slot that holds the key, as `is` decides.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        self.entries.find(hash, |entry| entry.tag == tag && is(entry.id)).map(|entry| entry.id)
    }

    /// Adds a slot whose key is not there. `rehash` gives the hash of a slot's key.
    pub fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(u32) -> u64) {
        self.entries.insert_unique(hash, Entry { tag: tag(hash), id }, |entry| rehash(entry.id));
    }

    /// Takes a slot out, and says whether it was there.
    pub fn remove(&mut self, hash: u64, id: u32) -> bool {
        let entry = self.entries.find_entry(hash, |entry| entry.id == id);
        entry.is_ok_and(|entry| {
            entry.remove();
            true
        })
    }

    /// All slots, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|entry| entry.id)
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.allocation_size()
    }
}
