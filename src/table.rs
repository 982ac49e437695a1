//! Which slot of a tier holds a key: a hash table of slot numbers that can be asked without touching the slots.

use hashbrown::HashTable;

use crate::arena;

/// Slot numbers by the hashes of their keys.
pub struct Table {
    ids: HashTable<u32>,
}

impl Table {
    /// Empty.
    pub fn new() -> Table {
        Table { ids: HashTable::new() }
    }

    /// Has the place of a slot number fetched, which is asked for soon.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.ids.find(hash, |id| {
            arena::prefetch(id);
            false
        });
    }

    /// A slot that very likely holds the key: seven bits of its hash are the same. The caller compares, and asks [`find`](Table::find)
    /// if it is another. Asking so for a batch first, and comparing after, lets the memory accesses of its keys overlap.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        self.ids.find(hash, |_| true).copied()
    }

    /// The slot that holds the key, as `is` decides.
    #[inline]
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.ids.find(hash, |&id| is(id)).copied()
    }

    /// Adds a slot whose key is not there. `rehash` gives the hash of a slot's key.
    pub fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(u32) -> u64) {
        self.ids.insert_unique(hash, id, |&id| rehash(id));
    }

    /// Takes a slot out, and says whether it was there.
    pub fn remove(&mut self, hash: u64, id: u32) -> bool {
        let entry = self.ids.find_entry(hash, |&other| other == id);
        entry.is_ok_and(|entry| {
            entry.remove();
            true
        })
    }

    /// All slots, in no order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().copied()
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.ids.allocation_size()
    }
}
