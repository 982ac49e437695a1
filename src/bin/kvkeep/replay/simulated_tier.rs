//! One tier by keys alone: the cache's own eviction policy over objects that have a size and no bytes.

use hashbrown::HashMap;
use kvkeep::hash::KeyHasher;
use kvkeep::policy::{EvictionPolicy, Meta, Removal};

use super::content;

/// The tags by which policies remember evicted objects: those that L1 makes of the same keys.
const TAGS: KeyHasher = KeyHasher::fixed();

/// An object in its slot. A slot is used again: `birth` tells its objects apart.
struct SimulatedObject {
    id: u64,
    /// Bytes that it takes of the tier.
    room: u64,
    birth: u32,
    uses: u32,
    depth: u32,
    locks: u32,
    live: bool,
    /// Known to the policy: before that it is staged.
    ranked: bool,
}

impl SimulatedObject {
    fn meta(&self) -> Meta {
        Meta { tag: 0, size: self.room, depth: self.depth, uses: self.uses, priority: 0 }
    }
}

/// Names an object, also after it was evicted.
#[derive(Clone, Copy)]
pub struct ObjectName {
    slot: u32,
    birth: u32,
}

/// A tier of a simulated cache.
pub struct SimulatedTier {
    policy: Box<dyn EvictionPolicy>,
    /// Bytes of the tier that an object of so many bytes takes.
    room: fn(u64) -> u64,
    objects: Vec<SimulatedObject>,
    spare: Vec<u32>,
    by_id: HashMap<u64, u32>,
    births: u32,
    capacity: u64,
    used: u64,
    locked: u64,
    /// Objects evicted so far.
    pub evictions: u64,
}

impl SimulatedTier {
    /// An empty tier of `capacity` bytes.
    pub fn new(policy: Box<dyn EvictionPolicy>, capacity: u64, room: fn(u64) -> u64) -> SimulatedTier {
        let (objects, spare, by_id) = (Vec::new(), Vec::new(), HashMap::new());
        SimulatedTier { policy, room, objects, spare, by_id, births: 0, capacity, used: 0, locked: 0, evictions: 0 }
    }

    /// The object `id`, if the tier has it.
    pub fn find(&self, id: u64) -> Option<ObjectName> {
        self.by_id.get(&id).map(|&slot| ObjectName { slot, birth: self.objects[slot as usize].birth })
    }

    /// Objects and bytes that it holds.
    pub fn holds(&self) -> (u64, u64) {
        (self.by_id.len() as u64, self.used)
    }

    fn live(&mut self, name: ObjectName) -> Option<&mut SimulatedObject> {
        self.objects.get_mut(name.slot as usize).filter(|object| object.live && object.birth == name.birth)
    }

    /// The id of an object; none for one that was evicted.
    pub fn id(&self, name: ObjectName) -> Option<u64> {
        let object = &self.objects[name.slot as usize];
        (object.live && object.birth == name.birth).then_some(object.id)
    }

    /// The place of an object in its prompt; none for one that was evicted.
    pub fn depth(&self, name: ObjectName) -> Option<u32> {
        let object = &self.objects[name.slot as usize];
        (object.live && object.birth == name.birth).then_some(object.depth)
    }

    /// Makes room for an object, and takes it. `None`: what is in use leaves none.
    pub fn stage(&mut self, id: u64, bytes: u64, depth: u32) -> Option<ObjectName> {
        let room = (self.room)(bytes);
        if room > self.capacity.saturating_sub(self.locked) {
            return None;
        }
        while self.used + room > self.capacity {
            if !self.evict_one() {
                return None;
            }
        }
        self.used += room;
        self.locked += room;
        self.births = self.births.wrapping_add(1);
        let birth = self.births;
        let object = SimulatedObject { id, room, birth, uses: 0, depth, locks: 0, live: true, ranked: false };
        let slot = match self.spare.pop() {
            Some(slot) => {
                self.objects[slot as usize] = object;
                slot
            }
            None => {
                self.objects.push(object);
                (self.objects.len() - 1) as u32
            }
        };
        self.by_id.insert(id, slot);
        Some(ObjectName { slot, birth })
    }

    /// Has the policy know a staged object: it may be evicted from now on.
    pub fn commit(&mut self, name: ObjectName) {
        let Some(object) = self.live(name).filter(|object| !object.ranked) else { return };
        object.ranked = true;
        let (room, id, locks) = (object.room, object.id, object.locks);
        if locks == 0 {
            self.locked -= room;
        }
        let meta = Meta { tag: TAGS.hash(&content::key(id)), ..self.objects[name.slot as usize].meta() };
        self.policy.insert(name.slot, &|_| meta);
    }

    /// A reader takes a share: the object stays until [`unlock`](SimulatedTier::unlock).
    pub fn lock(&mut self, name: ObjectName) {
        let Some(object) = self.live(name) else { return };
        object.locks += 1;
        if object.locks == 1 && object.ranked {
            self.locked += object.room;
        }
    }

    /// A reader returns its share, and the object keeps its place in the order of eviction.
    pub fn unlock(&mut self, name: ObjectName) {
        let Some(object) = self.live(name) else { return };
        object.locks -= 1;
        if object.locks == 0 {
            let room = object.room;
            self.locked -= room;
            self.policy.release(name.slot);
        }
    }

    /// Counts a read.
    pub fn count_use(&mut self, name: ObjectName) {
        if let Some(object) = self.live(name) {
            object.uses = object.uses.saturating_add(1);
        }
    }

    /// Marks an object as used now. False for one that was evicted.
    pub fn touch(&mut self, name: ObjectName) -> bool {
        let Some(object) = self.live(name) else { return false };
        let meta = object.meta();
        self.policy.touch(name.slot, &|_| meta);
        true
    }

    /// Evicts until no more than `low` percent are used, if more than `high` percent are.
    pub fn trim(&mut self, high: u32, low: u32) {
        let above = |used: u64, percent: u32| {
            percent < 100 && u128::from(used) * 100 > u128::from(self.capacity) * u128::from(percent)
        };
        if !above(self.used, high) {
            return;
        }
        let most = (u128::from(self.capacity) * u128::from(low) / 100) as u64;
        while self.used > most && self.evict_one() {}
    }

    fn evict_one(&mut self) -> bool {
        let objects = &self.objects;
        let Some(slot) = self.policy.victim(&mut |slot| objects[slot as usize].locks == 0) else { return false };
        self.policy.remove(slot, Removal::Evicted);
        let object = &mut self.objects[slot as usize];
        object.live = false;
        self.used -= object.room;
        self.by_id.remove(&object.id);
        self.spare.push(slot);
        self.evictions += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use kvkeep::policy::Lru;

    use super::*;

    fn tier(capacity: u64) -> SimulatedTier {
        SimulatedTier::new(Box::new(Lru::new()), capacity, |bytes| bytes)
    }

    fn add(tier: &mut SimulatedTier, id: u64, bytes: u64) -> Option<ObjectName> {
        let name = tier.stage(id, bytes, 0)?;
        tier.commit(name);
        Some(name)
    }

    #[test]
    fn the_least_recently_used_leaves_first_and_what_is_in_use_stays() {
        let mut tier = tier(30);
        let names: Vec<ObjectName> = (0..3).map(|id| add(&mut tier, id, 10).unwrap()).collect();
        tier.lock(names[0]);
        assert!(add(&mut tier, 3, 10).is_some() && tier.find(0).is_some() && tier.find(1).is_none());
        assert!(!tier.touch(names[1]), "a name of an object that is gone names none");
        assert!(add(&mut tier, 4, 25).is_none(), "25 bytes beside the 10 in use do not fit");
        assert_eq!(tier.holds(), (3, 30), "nothing is evicted for what cannot fit");
        tier.unlock(names[0]);
        // It was passed over and comes first again.
        assert!(add(&mut tier, 5, 10).is_some() && tier.find(0).is_none());
        assert!(add(&mut tier, 6, 30).is_some());
        assert_eq!((tier.holds(), tier.evictions), ((1, 30), 5));
    }

    #[test]
    fn it_is_trimmed_from_one_mark_to_the_other() {
        let mut tier = tier(100);
        for id in 0..8 {
            add(&mut tier, id, 10);
            tier.trim(80, 60);
        }
        assert_eq!(tier.holds(), (8, 80), "80 % are not above 80 %");
        add(&mut tier, 8, 10);
        tier.trim(80, 60);
        assert_eq!(tier.holds(), (6, 60));
        (9..20).for_each(|id| {
            add(&mut tier, id, 10);
            tier.trim(100, 60);
        });
        assert_eq!(tier.holds(), (10, 100));
    }
}
