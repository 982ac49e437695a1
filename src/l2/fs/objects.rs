//! The table of objects: dense slots that the policy numbers them by, found by key.

use hashbrown::HashMap;

use crate::arena::prefetch_to_change;
use crate::chunked::Chunked;
use crate::hash::KeyHasher;
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::l2::object_header::HeaderDetails;
use crate::shape::ShapeTag;
use crate::slot_table::SlotTable;

/// The state of an object's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileState {
    /// The file is whole.
    Present,
    /// This process is writing the file.
    Writing,
    /// The file is gone, and the slot only counts pins.
    Gone,
}

/// Whether an object's header is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderState {
    /// Its fields are not remembered.
    Unknown,
    /// Its fields are in the object's [`ObjectUse`].
    Known,
    /// The last attempt to open the file failed: lookups have the maintenance thread try again before they promise the object.
    Unreadable,
}

/// One object, with all that a lookup needs of it on one cache line. Thousands of them are looked at in a scheduler's call, after other
/// cores have changed them.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub struct ObjectSlot {
    key: Key,
    /// Which of the spaces it belongs to.
    space: u32,
    pub pins: u32,
    /// Bytes of the payload.
    pub size: u64,
    /// Tells the object from those that were here before it under the same key.
    pub born: u32,
    pub state: FileState,
    /// The policy was refused it as a victim, and waits for its release.
    pub aside: bool,
    /// Its last use is not on its file yet.
    pub dirty: bool,
    pub header: HeaderState,
}

const _: () = assert!(size_of::<ObjectSlot>() == 64);

impl ObjectSlot {
    /// Takes a pin, if it is present and can be read, and gives its size.
    pub fn pin(&mut self) -> Option<u64> {
        let present = self.state == FileState::Present && self.header != HeaderState::Unreadable;
        self.pins += u32::from(present);
        present.then_some(self.size)
    }

    fn names(&self, space: u32, key: &Key) -> bool {
        self.space == space && self.key == *key
    }
}

/// How an object was used, and what a use of it needs.
#[derive(Clone, Copy, Default)]
pub struct ObjectUse {
    /// When last, in nanoseconds of the system's clock.
    pub at: u64,
    pub count: u16,
    /// Of a known header: the layout and shape, as an index into the table's classes,
    kind: u16,
    /// and the checksum of the payload.
    crc: u32,
}

/// The layout and shape of a header, which many objects share.
type HeaderClass = ([u8; 16], ShapeTag);

/// All objects of a directory, by slot and by key.
pub struct ObjectTable {
    table: SlotTable,
    hasher: KeyHasher,
    slots: Chunked<ObjectSlot>,
    uses: Chunked<ObjectUse>,
    /// Slots ever used; those given back are in `free`.
    made: u32,
    free: Vec<u32>,
    spaces: Vec<SpaceTag>,
    by_tag: HashMap<SpaceTag, u32>,
    kinds: Vec<HeaderClass>,
    by_kind: HashMap<HeaderClass, u16>,
}

impl ObjectTable {
    pub fn new() -> ObjectTable {
        ObjectTable {
            table: SlotTable::new(),
            // Secret, since an engine may let its users choose the bits of a key.
            hasher: KeyHasher::new(),
            slots: Chunked::new(),
            uses: Chunked::new(),
            made: 0,
            free: Vec::new(),
            spaces: Vec::new(),
            by_tag: HashMap::new(),
            kinds: Vec::new(),
            by_kind: HashMap::new(),
        }
    }

    pub fn find(&self, key: &ObjectKey) -> Option<u32> {
        let space = *self.by_tag.get(&key.space)?;
        self.table.find(self.hasher.hash(&key.key), |id| self.slots[id].names(space, &key.key))
    }

    /// Calls `each` with the place of every key and the slot that holds it, if one does. Groups of keys are looked for together, so
    /// that what they need of the memory is fetched at the same time.
    pub fn find_all(&mut self, keys: &[ObjectKey], mut each: impl FnMut(usize, Option<&mut ObjectSlot>)) {
        const GROUP: usize = 32;
        let space_of = |tag| self.by_tag.get(tag).copied();
        let mut of = keys.first().map(|key| (key.space, space_of(&key.space)));
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            let mut likely = [(0, None); GROUP];
            let likely = &mut likely[..keys.len()];
            for ((hash, _), key) in likely.iter_mut().zip(keys) {
                *hash = self.hasher.hash(&key.key);
                self.table.prefetch(*hash);
            }
            for (hash, id) in &mut *likely {
                *id = self.table.candidate(*hash);
                if let Some(id) = *id {
                    prefetch_to_change(&self.slots[id]);
                }
            }
            for (i, (key, &(hash, id))) in keys.iter().zip(&*likely).enumerate() {
                // The keys of a batch are mostly of one space.
                if of.is_none_or(|(tag, _)| tag != key.space) {
                    of = Some((key.space, space_of(&key.space)));
                }
                let id = of.and_then(|(_, space)| space).and_then(|space| {
                    let is = |id: u32| self.slots[id].names(space, &key.key);
                    if let Some(id) = id
                        && is(id)
                    {
                        Some(id)
                    } else {
                        self.table.find(hash, is)
                    }
                });
                each(group * GROUP + i, id.map(|id| &mut self.slots[id]));
            }
        }
    }

    pub fn insert(&mut self, key: ObjectKey, size: u64, state: FileState) -> u32 {
        let ObjectKey { space: tag, key } = key;
        let space = *self.by_tag.entry(tag).or_insert_with(|| {
            self.spaces.push(tag);
            (self.spaces.len() - 1) as u32
        });
        let slot = ObjectSlot {
            key,
            space,
            pins: 0,
            size,
            born: 0,
            state,
            aside: false,
            dirty: false,
            header: HeaderState::Unknown,
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.reach(self.made, || slot);
            self.uses.reach(self.made, ObjectUse::default);
            self.made += 1;
            self.made - 1
        });
        self.slots[id] = slot;
        self.uses[id] = ObjectUse::default();
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.table.insert(hasher.hash(&key), id, |id| hasher.hash(&slots[id].key));
        id
    }

    pub fn remove(&mut self, id: u32) {
        let slot = &mut self.slots[id];
        if self.table.remove(self.hasher.hash(&slot.key), id) {
            slot.dirty = false;
            self.free.push(id);
        }
    }

    /// The full name of an object.
    pub fn name(&self, id: u32) -> ObjectKey {
        let slot = &self.slots[id];
        ObjectKey { space: self.spaces[slot.space as usize], key: slot.key }
    }

    /// The hash of an object's name.
    pub fn tag(&self, id: u32) -> u64 {
        let slot = &self.slots[id];
        self.hasher.hash_in(slot.space, &slot.key)
    }

    /// Remembers the fields of an object's header, unless there are too many classes of headers.
    pub fn know(&mut self, id: u32, known: &HeaderDetails) {
        let kind = (known.layout, known.shape);
        let next = (self.kinds.len() < usize::from(u16::MAX)).then_some(self.kinds.len() as u16);
        let number = self.by_kind.get(&kind).copied().or(next);
        if number.is_some() && number == next {
            self.kinds.push(kind);
            self.by_kind.extend(next.map(|next| (kind, next)));
        }
        self.slots[id].header = if number.is_some() { HeaderState::Known } else { HeaderState::Unknown };
        self.uses[id].kind = number.unwrap_or_default();
        self.uses[id].crc = known.crc;
    }

    /// The fields of an object's header, if they are known.
    pub fn known(&self, id: u32) -> Option<HeaderDetails> {
        if self.slots[id].header != HeaderState::Known {
            return None;
        }
        let ObjectUse { kind, crc, .. } = self.uses[id];
        let &(layout, shape) = self.kinds.get(usize::from(kind))?;
        Some(HeaderDetails { layout, shape, crc })
    }

    pub fn get(&self, id: u32) -> &ObjectSlot {
        &self.slots[id]
    }

    pub fn get_mut(&mut self, id: u32) -> &mut ObjectSlot {
        &mut self.slots[id]
    }

    pub fn usage(&self, id: u32) -> ObjectUse {
        self.uses[id]
    }

    pub fn usage_mut(&mut self, id: u32) -> &mut ObjectUse {
        &mut self.uses[id]
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &ObjectSlot)> {
        self.table.ids().map(|id| (id, &self.slots[id]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_the_same_key_of_another_space() {
        let mut slots = ObjectTable::new();
        let keys =
            [1, 2, 1, 3].map(|n| ObjectKey { space: SpaceTag([n; 16]), key: Key { hash: [7; 32], rank: 0, group: 0 } });
        let (one, two) = (slots.insert(keys[0], 10, FileState::Present), slots.insert(keys[1], 20, FileState::Present));
        assert_eq!(keys.map(|key| slots.find(&key)), [Some(one), Some(two), Some(one), None]);
        let mut sizes = [0; 4];
        slots.find_all(&keys, |i, slot| sizes[i] = slot.and_then(ObjectSlot::pin).unwrap_or(0));
        assert_eq!(sizes, [10, 20, 10, 0]);
        assert_eq!([one, two].map(|id| slots.get(id).pins), [2, 1]);
        assert_eq!((slots.name(one), slots.name(two)), (keys[0], keys[1]));
        assert_ne!(slots.tag(one), slots.tag(two));
    }

    #[test]
    fn the_fields_of_headers_are_remembered_for_each_shape() {
        let mut slots = ObjectTable::new();
        let known = |n: u8| HeaderDetails { layout: [7; 16], shape: ShapeTag([n; 16]), crc: u32::from(n) };
        let key = |n: u8| ObjectKey { space: SpaceTag([1; 16]), key: Key { hash: [n; 32], rank: 0, group: 0 } };
        let ids = [1, 2].map(|n| slots.insert(key(n), 10, FileState::Present));
        assert_eq!(slots.known(ids[0]), None);
        for n in [1, 2, 1] {
            slots.know(ids[0], &known(n));
            slots.know(ids[1], &known(1));
            assert_eq!(ids.map(|id| slots.known(id)), [Some(known(n)), Some(known(1))]);
        }
        // There is a bound: beyond it the header is read again each time.
        let many = |n: u16| {
            let mut shape = [9; 16];
            shape[..2].copy_from_slice(&n.to_le_bytes());
            HeaderDetails { layout: [7; 16], shape: ShapeTag(shape), crc: u32::from(n) }
        };
        (2..u16::MAX).for_each(|n| slots.know(ids[1], &many(n)));
        assert_eq!(slots.known(ids[1]), Some(many(u16::MAX - 1)));
        slots.know(ids[1], &many(u16::MAX));
        assert_eq!(ids.map(|id| slots.known(id)), [Some(known(1)), None]);
    }

    #[test]
    fn a_removed_slot_is_used_again() {
        let mut slots = ObjectTable::new();
        let key = |n| ObjectKey { space: SpaceTag([n; 16]), key: Key { hash: [n; 32], rank: 0, group: 0 } };
        let one = slots.insert(key(1), 10, FileState::Present);
        let two = slots.insert(key(2), 20, FileState::Present);
        slots.remove(one);
        assert_eq!(slots.find(&key(1)), None);
        assert_eq!(slots.find(&key(2)), Some(two));
        assert_eq!(slots.insert(key(3), 30, FileState::Writing), one);
        assert_eq!(slots.iter().count(), 2);
    }
}
