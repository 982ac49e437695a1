//! The table of objects: dense slots that the policy numbers them by, found by key.

use std::hash::{BuildHasher, RandomState};

use crate::key::ObjectKey;
use crate::table::Table;

/// What stands behind a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// A whole file.
    Present,
    /// A file being written by this process.
    Writing,
    /// A file that goes when its last pin does; hidden from lookups.
    Doomed,
    /// Nothing but pins: the file went under its readers.
    Gone,
}

/// One object.
pub struct Slot {
    pub key: ObjectKey,
    pub hash: u64,
    /// Bytes of payload.
    pub size: u64,
    /// When it was last used, in nanoseconds of the system's clock.
    pub used: u64,
    pub pins: u32,
    pub uses: u32,
    pub state: State,
    /// The policy was refused it and waits to hear of it.
    pub aside: bool,
    /// Its last use is not on its file yet.
    pub dirty: bool,
}

impl Slot {
    /// Takes a pin, if it is present, and gives its size.
    pub fn pin(&mut self) -> Option<u64> {
        let present = self.state == State::Present;
        self.pins += u32::from(present);
        present.then_some(self.size)
    }
}

/// All objects.
pub struct Slots {
    table: Table,
    slots: Vec<Slot>,
    free: Vec<u32>,
    seed: [u64; 4],
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl Slots {
    pub fn new() -> Slots {
        // Secret, since an engine may let its users choose the bits of a key.
        let random = RandomState::new();
        let seed = [0, 1, 2, 3].map(|i: u64| random.hash_one(i) | 1);
        Slots { table: Table::new(), slots: Vec::new(), free: Vec::new(), seed }
    }

    /// Every word of the key takes part.
    pub fn hash(&self, key: &ObjectKey) -> u64 {
        let (space, hash, [a, b, c, d]) = (&key.space.0, &key.key.hash, self.seed);
        let ends = u64::from(key.key.rank) | u64::from(key.key.group) << 32;
        let one = fold(word(space, 0) ^ a, word(space, 8) ^ b);
        let two = fold(word(hash, 0) ^ c, word(hash, 8) ^ d);
        let three = fold(word(hash, 16) ^ b, word(hash, 24) ^ c);
        fold(one ^ two.rotate_left(21) ^ d, three ^ ends.rotate_left(7) ^ a)
    }

    pub fn find(&self, key: &ObjectKey) -> Option<u32> {
        let hash = self.hash(key);
        self.table.find(hash, |id| self.slots[id as usize].key == *key)
    }

    /// Calls `each` with the place of every key and the slot that holds it, if one does. Groups of keys are looked for in two
    /// passes, table first, slots after, so that their memory accesses overlap.
    pub fn find_all(&mut self, keys: &[ObjectKey], mut each: impl FnMut(usize, Option<&mut Slot>)) {
        const GROUP: usize = 32;
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            let mut likely = [(0, None); GROUP];
            for (likely, key) in likely.iter_mut().zip(keys) {
                let hash = self.hash(key);
                *likely = (hash, self.table.candidate(hash));
            }
            for (i, (key, (hash, id))) in keys.iter().zip(likely).enumerate() {
                let is = |id: u32| self.slots[id as usize].key == *key;
                let id = id.and_then(|id| if is(id) { Some(id) } else { self.table.find(hash, is) });
                each(group * GROUP + i, id.map(|id| &mut self.slots[id as usize]));
            }
        }
    }

    pub fn insert(&mut self, key: ObjectKey, size: u64, state: State) -> u32 {
        let hash = self.hash(&key);
        let slot = Slot { key, hash, size, used: 0, pins: 0, uses: 0, state, aside: false, dirty: false };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        let slots = &self.slots;
        self.table.insert(hash, id, |id| slots[id as usize].hash);
        id
    }

    pub fn remove(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        if self.table.remove(slot.hash, id) {
            slot.dirty = false;
            self.free.push(id);
        }
    }

    pub fn get(&self, id: u32) -> &Slot {
        &self.slots[id as usize]
    }

    pub fn get_mut(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.table.ids().map(|id| (id, &self.slots[id as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, SpaceTag};

    #[test]
    fn every_byte_of_a_key_changes_its_hash() {
        let slots = Slots::new();
        let key = ObjectKey { space: SpaceTag([0; 16]), key: Key { hash: [0; 32], rank: 0, group: 0 } };
        let mut seen = vec![slots.hash(&key)];
        for byte in 0..56 {
            let mut other = key;
            match byte {
                0..16 => other.space.0[byte] = 1,
                16..48 => other.key.hash[byte - 16] = 1,
                48..52 => other.key.rank = 1 << ((byte - 48) * 8),
                _ => other.key.group = 1 << ((byte - 52) * 8),
            }
            seen.push(slots.hash(&other));
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 57);
    }

    #[test]
    fn a_removed_slot_is_used_again() {
        let mut slots = Slots::new();
        let key = |n| ObjectKey { space: SpaceTag([n; 16]), key: Key { hash: [n; 32], rank: 0, group: 0 } };
        let one = slots.insert(key(1), 10, State::Present);
        let two = slots.insert(key(2), 20, State::Present);
        slots.remove(one);
        assert_eq!(slots.find(&key(1)), None);
        assert_eq!(slots.find(&key(2)), Some(two));
        assert_eq!(slots.insert(key(3), 30, State::Writing), one);
        assert_eq!(slots.iter().count(), 2);
    }
}
