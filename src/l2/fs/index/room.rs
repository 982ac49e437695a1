//! How full the directory may be, and the objects that go so that it stays so.
//!
//! Two sums are bounded. `held` is what the directory comes to once everything under way is done: present objects and reserved
//! writes. `held` and `excess` together are what the disk may hold now, since a victim's bytes are there until its file is
//! unlinked. A victim counts as freed for `held` from the moment it is chosen, so that no other store evicts for the same need.

use super::Index;
use crate::key::ObjectKey;
use crate::l2::fs::frame::disk_bytes;
use crate::policy::Removal;

/// The part of a bound by which files that are about to be unlinked may exceed it: stores need not wait for those.
const TRANSIT_SHARE: u64 = 256;

/// Whether a store finds room.
pub enum Room {
    /// It does once these objects are unlinked, which frees `excess` bytes more than it needs.
    Made { victims: Vec<ObjectKey>, excess: u64 },
    /// It does once files that others take away are unlinked.
    Later,
    /// Nothing is left that may be evicted.
    Lacking,
}

impl Index {
    /// Most bytes the directory should come to.
    fn target(&self) -> u64 {
        self.capacity
    }

    /// Bytes of disk that the directory comes to once everything under way is done.
    pub fn held(&self) -> u64 {
        self.present + self.charged + self.overhead.bytes()
    }

    /// Bytes above what the directory should come to.
    pub fn surplus(&self) -> u64 {
        self.held().saturating_sub(self.target())
    }

    /// Whether `bytes` that fit without evicting anything have to wait until the disk really has room for them.
    pub(super) fn waits(&self, bytes: u64) -> bool {
        self.excess > 0 && self.on_disk().saturating_add(bytes) > self.disk_most() && self.need(bytes) == 0
    }

    /// Most bytes the disk may hold: no more than the bound, but for files about to be unlinked, or than it holds now.
    fn disk_most(&self) -> u64 {
        let target = self.target();
        target.saturating_add(target / TRANSIT_SHARE).max(self.on_disk())
    }

    /// Bytes of disk that objects, writes and files about to be unlinked may take.
    pub(super) fn on_disk(&self) -> u64 {
        self.held().saturating_add(self.excess)
    }

    /// Bytes to evict before `bytes` more fit. In a directory that is too full already, a store evicts as much as it adds.
    fn need(&self, bytes: u64) -> u64 {
        self.held().saturating_add(bytes).saturating_sub(self.target().max(self.held()))
    }

    /// Chooses victims so that `bytes` more fit, and takes them out of the index.
    pub fn make_room(&mut self, bytes: u64) -> Room {
        let need = self.need(bytes);
        if need > self.present {
            return Room::Lacking;
        }
        let Some(chosen) = self.choose(need) else { return Room::Lacking };
        let freed: u64 = chosen.iter().map(|&id| disk_bytes(self.slots.get(id).size)).sum();
        if self.on_disk().saturating_add(bytes) - freed.min(bytes) > self.disk_most() {
            chosen.into_iter().rev().for_each(|id| self.policy.release(id));
            return Room::Later;
        }
        let excess = freed.saturating_sub(bytes);
        self.excess += excess;
        let victims = chosen.into_iter().map(|id| self.evict(id)).collect::<Vec<_>>();
        victims.iter().for_each(|key| self.leave(*key, 0));
        Room::Made { victims, excess }
    }

    /// Victims of at least `need` bytes of disk, set aside by the policy; none if there are not as many.
    fn choose(&mut self, need: u64) -> Option<Vec<u32>> {
        let mut chosen = Vec::new();
        let mut freed = 0;
        while freed < need {
            let Some(id) = self.victim() else {
                chosen.into_iter().rev().for_each(|id| self.policy.release(id));
                return None;
            };
            freed += disk_bytes(self.slots.get(id).size);
            chosen.push(id);
        }
        Some(chosen)
    }

    fn victim(&mut self) -> Option<u32> {
        let slots = &mut self.slots;
        self.policy.victim(&mut |id| {
            let slot = slots.get_mut(id);
            slot.aside |= slot.pins > 0;
            slot.pins == 0
        })
    }

    fn evict(&mut self, id: u32) -> ObjectKey {
        let key = self.slots.name(id);
        self.vanish(id, Removal::Evicted);
        self.evicted += 1;
        key
    }

    /// Notes that the file of `key` is being taken away, which frees `bytes` of disk that no reservation counts.
    pub(super) fn leave(&mut self, key: ObjectKey, bytes: u64) {
        *self.leaving.entry(key).or_default() += bytes;
        self.excess += bytes;
    }

    /// The file of `key` is not being taken away any more.
    pub(super) fn leave_ended(&mut self, key: &ObjectKey) {
        self.excess -= self.leaving.remove(key).unwrap_or(0);
    }

    /// Takes up to `most` objects out that are above the bounds, oldest first. Their files are to be unlinked.
    pub fn shrink(&mut self, most: usize) -> Vec<ObjectKey> {
        let mut victims = Vec::new();
        while victims.len() < most && self.surplus() > 0 {
            let Some(id) = self.victim() else { break };
            let bytes = disk_bytes(self.slots.get(id).size);
            let key = self.evict(id);
            self.leave(key, bytes);
            victims.push(key);
        }
        victims
    }

    /// Has what is above the bounds evicted, if anything is.
    pub fn check_bounds(&mut self) {
        self.overfull = true;
    }

    /// Whether somebody has to begin to evict what is above the bounds. The caller does, and ends by [`Index::shrunk`].
    pub fn begin_shrinking(&mut self) -> bool {
        let begin = self.overfull && !self.shrinking && self.surplus() > 0;
        self.overfull = false;
        self.shrinking |= begin;
        begin
    }

    /// Nothing more is evicted for now of what is above the bounds.
    pub fn shrunk(&mut self) {
        self.shrinking = false;
    }
}
