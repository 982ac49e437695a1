//! How full the directory may be, and the eviction that keeps it so.
//!
//! Two sums are bounded. `held` is what the directory comes to once everything under way is done: present objects and reserved
//! writes. `held` and `excess` together are what the disk may hold now, since a victim's bytes are there until its file is
//! unlinked. A victim counts as freed for `held` from the moment it is chosen, so that no other store evicts for the same need.
//!
//! The bound is the capacity, or the file system's bound where that is lower.

use super::fs_index::Index;
use super::reservation::Reservation;
use crate::key::ObjectKey;
use crate::l2::fs::file_format::disk_bytes;
use crate::policy::Removal;

/// The part of a bound by which files that are about to be unlinked may exceed it: stores need not wait for those.
const TRANSIT_SHARE: u64 = 256;
/// Where the file system is full, this share of what is present is evicted beyond the need, and no more than so many bytes:
/// otherwise every store would meet a full file system.
const MARGIN_SHARE: u64 = 100;
const MARGIN_MAX: u64 = 64 << 20;

/// Whether a store finds disk space.
pub enum EvictionPlan {
    /// It does once the caller has unlinked these objects, which the policy has set aside.
    Chosen(Vec<u32>),
    /// It does once other stores and deletions have unlinked their files.
    Later,
    /// Nothing is left that may be evicted.
    Impossible,
}

impl Index {
    /// Most bytes the directory should come to.
    fn target(&self) -> u64 {
        self.capacity.min(self.disk.most())
    }

    /// Bytes of disk that the directory comes to once everything under way is done.
    pub fn held(&self) -> u64 {
        self.present + self.reserved + self.overhead.bytes()
    }

    /// Bytes above the bounds that are to be evicted.
    pub fn surplus(&self) -> u64 {
        let most = if self.disk.patient { self.capacity } else { self.target() };
        self.held().saturating_sub(most)
    }

    /// Whether `bytes` that fit without an eviction have to wait until files that take their place on the disk are unlinked.
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

    /// Chooses the objects to evict for `bytes`; the policy sets them aside.
    pub fn plan_eviction(&mut self, bytes: u64) -> EvictionPlan {
        let need = self.need(bytes);
        self.disk.pressed |= need > 0 && self.held().saturating_add(bytes) <= self.capacity;
        if need > self.present {
            return EvictionPlan::Impossible;
        }
        let (chosen, freed) = self.choose(need);
        if freed < need {
            self.release(chosen);
            return EvictionPlan::Impossible;
        }
        if self.on_disk().saturating_add(bytes) - freed.min(bytes) > self.disk_most() {
            self.release(chosen);
            return EvictionPlan::Later;
        }
        EvictionPlan::Chosen(chosen)
    }

    /// Evicts these objects, which the policy has set aside, for a reservation whose victims so far are unlinked.
    pub(super) fn evict_for(&mut self, reservation: &mut Reservation, chosen: Vec<u32>) {
        let freed = chosen.iter().map(|&id| disk_bytes(self.slots.get(id).size)).sum::<u64>();
        (reservation.freed, reservation.excess) = (freed, freed.saturating_sub(reservation.bytes));
        self.unlinking += reservation.freed;
        self.excess += reservation.excess;
        reservation.victims = chosen.into_iter().map(|id| self.evict(id)).collect();
        reservation.victims.iter().for_each(|key| self.begin_unlink(*key, 0));
    }

    /// Objects of at least `need` bytes of disk together, or as many as there are, set aside by the policy; and their bytes.
    fn choose(&mut self, need: u64) -> (Vec<u32>, u64) {
        let (mut chosen, mut freed) = (Vec::new(), 0);
        while freed < need
            && let Some(id) = self.victim()
        {
            freed += disk_bytes(self.slots.get(id).size);
            chosen.push(id);
        }
        (chosen, freed)
    }

    fn release(&mut self, chosen: Vec<u32>) {
        chosen.into_iter().rev().for_each(|id| self.policy.release(id));
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

    /// The file of `key` is being unlinked, which frees `bytes` of disk that no reservation counts.
    pub(super) fn begin_unlink(&mut self, key: ObjectKey, bytes: u64) {
        *self.leaving.entry(key).or_default() += bytes;
        self.excess += bytes;
        self.unlinking += bytes;
    }

    /// The file of `key` is not being unlinked any more.
    pub(super) fn end_unlink(&mut self, key: &ObjectKey) {
        let bytes = self.leaving.remove(key).unwrap_or(0);
        self.excess -= bytes;
        self.unlinking -= bytes;
    }

    /// Takes up to `most` objects out that are above the bounds, oldest first. Their files are to be unlinked.
    pub fn shrink(&mut self, most: usize) -> Vec<ObjectKey> {
        if self.shrink_to.is_none() && self.surplus() > 0 {
            // A refusal lowers the bound by the margin already.
            let measured = self.disk.measured < self.capacity.min(self.disk.refused);
            let margin = if measured { self.margin() } else { 0 };
            self.shrink_to = Some(self.target().saturating_sub(margin));
        }
        let mut victims = Vec::new();
        while victims.len() < most && self.is_to_shrink() {
            let Some(id) = self.victim() else { break };
            let bytes = disk_bytes(self.slots.get(id).size);
            let key = self.evict(id);
            self.begin_unlink(key, bytes);
            victims.push(key);
        }
        victims
    }

    /// Whether there is more to evict than was evicted.
    pub fn is_to_shrink(&self) -> bool {
        self.surplus() > 0 || self.shrink_to.is_some_and(|most| self.held() > most)
    }

    /// Has the next [`begin_shrinking`](Index::begin_shrinking) check the bounds.
    pub fn check_bounds(&mut self) {
        self.overfull = true;
    }

    /// Whether an eviction has to begin since the directory is above its bounds. The caller begins it, and ends it by [`Index::shrunk`].
    pub fn begin_shrinking(&mut self) -> bool {
        let begin = self.overfull && !self.shrinking && self.surplus() > 0;
        self.overfull = false;
        self.shrinking |= begin;
        begin
    }

    /// The eviction of what is above the bounds has ended, for now.
    pub fn shrunk(&mut self) {
        (self.shrinking, self.shrink_to) = (false, None);
    }

    /// Whether an eviction of what is above the bounds is under way.
    pub fn is_shrinking(&self) -> bool {
        self.shrinking
    }

    /// Bytes that are evicted beyond the need where the file system is full.
    pub fn margin(&self) -> u64 {
        (self.present / MARGIN_SHARE).min(MARGIN_MAX)
    }

    /// The file system has `spare` bytes more than are to stay free; negative: it lacks as many, which are not evicted now if `patient`.
    pub fn measured(&mut self, spare: i64, patient: bool) {
        self.disk.measured = (self.held() + self.unlinking).saturating_add_signed(spare);
        self.disk.patient = patient;
        self.overfull |= spare < 0;
    }

    /// The file system refused a store, whose victims so far are unlinked. Evicts as much as it needs. False if there is nothing to
    /// evict.
    pub fn refused(&mut self, reservation: &mut Reservation) -> bool {
        self.disk.pressed = true;
        let others = self.held() - reservation.bytes;
        self.disk.refused = self.disk.refused.min(others.saturating_sub(self.margin()));
        let (chosen, freed) = self.choose(reservation.bytes);
        self.evict_for(reservation, chosen);
        self.overfull = true;
        freed > 0
    }

    /// Forgets what the file system refused.
    pub fn forget_refusals(&mut self) {
        self.disk.refused = u64::MAX;
    }

    /// Whether a store met the file system's bound below the capacity since the last call.
    pub fn take_pressed(&mut self) -> bool {
        std::mem::take(&mut self.disk.pressed)
    }
}
