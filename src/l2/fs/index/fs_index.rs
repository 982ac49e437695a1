//! The objects of the directory that this process knows: their size, pins and uses; and how full the directory is.
//!
//! Present and reserved bytes never exceed the capacity by this process's doing: a write reserves its bytes before it begins. Objects
//! that are found beyond that are evicted in the background ([`bounds`](super::bounds)).

use std::collections::{HashMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use super::disk::{DiskBound, Overhead};
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::fs::file_format::disk_bytes;
use crate::l2::fs::objects::{FileState, HeaderState, ObjectSlot, ObjectTable};
use crate::l2::fs::recover::FoundObject;
use crate::l2::object_header::HeaderDetails;
use crate::l2::{Change, Found, Observer, StoreRequest, Usage};
use crate::policy::{EvictionPolicy, Meta, Removal};

/// Objects are numbered as they are stored. Those with numbers no further apart are taken for neighbours on the disk, although some
/// loads that other threads begin come between.
const NEAR: u32 = 256;

/// Guarded by one lock, which [`Root::index`](crate::l2::fs::root::Root::index) takes.
pub struct Index {
    pub(super) slots: ObjectTable,
    pub(super) policy: Box<dyn EvictionPolicy>,
    pub(super) capacity: u64,
    /// Bytes of disk of present objects.
    pub(super) present: u64,
    /// Bytes of disk that writes reserve.
    pub(super) reserved: u64,
    /// Bytes of files that are being unlinked, beyond the bytes that a write puts in their place.
    pub(super) excess: u64,
    /// Bytes of all files that are being unlinked.
    pub(super) unlinking: u64,
    /// The bound that the file system sets.
    pub(super) disk: DiskBound,
    /// The directory was found above its bounds, and no eviction has begun yet.
    pub(super) overfull: bool,
    /// The maintenance thread evicts what is above the bounds,
    pub(super) shrinking: bool,
    /// down to so many bytes.
    pub(super) shrink_to: Option<u64>,
    /// Bytes of disk that belong to no object.
    pub(super) overhead: Overhead,
    pub(super) objects: u64,
    pub(super) evicted: u64,
    /// Pins on all keys.
    pub(super) pins: u64,
    /// Objects that appeared, wrapping.
    pub(super) births: u32,
    /// Keys whose files are being unlinked, and the bytes of each in `excess` that are no reservation's.
    pub(super) leaving: HashMap<ObjectKey, u64>,
    /// Stores that wait for their own key.
    pub(super) waiting_for_key: HashMap<ObjectKey, Vec<StoreRequest>>,
    /// Stores that wait for disk space.
    pub(super) waiting_for_space: VecDeque<StoreRequest>,
    pub(super) writing: u32,
    pub(super) dirty: Vec<u32>,
    pub(super) clock: u64,
    /// The object that was loaded last.
    pub(super) last: u32,
    pub(super) observer: Option<Observer>,
}

/// The index's answer to a load that begins.
pub struct Opening {
    /// Names the object, should another one take its key.
    pub born: u32,
    /// The fields of its header, if they are known.
    pub known: Option<HeaderDetails>,
    /// Its file is likely to lie next to that of the load before.
    pub follows: bool,
}

fn meta(slots: &ObjectTable, id: u32) -> Meta {
    Meta { tag: slots.tag(id), size: slots.get(id).size, depth: 0, uses: slots.usage(id).count.into(), priority: 0 }
}

impl Index {
    pub fn new(policy: Box<dyn EvictionPolicy>, capacity: u64) -> Index {
        Index {
            slots: ObjectTable::new(),
            policy,
            capacity: if capacity == 0 { u64::MAX } else { capacity },
            present: 0,
            reserved: 0,
            excess: 0,
            unlinking: 0,
            disk: DiskBound::default(),
            overfull: false,
            shrinking: false,
            shrink_to: None,
            overhead: Overhead::default(),
            objects: 0,
            evicted: 0,
            pins: 0,
            births: 0,
            leaving: HashMap::new(),
            waiting_for_key: HashMap::new(),
            waiting_for_space: VecDeque::new(),
            writing: 0,
            dirty: Vec::new(),
            clock: 0,
            last: u32::MAX,
            observer: None,
        }
    }

    /// Replaces the observer of objects that appear and vanish.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    pub(super) fn notify(&self, change: Change, id: u32) {
        if let Some(observer) = &self.observer {
            observer(change, &self.slots.name(id), self.slots.get(id).size);
        }
    }

    /// Brings the clock to the time of day, once per batch.
    pub(super) fn tick(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        self.clock = self.clock.max(now);
    }

    /// Each use gets a time of its own, a microsecond apart, so that order survives a restart.
    pub(super) fn mark_used(&mut self, id: u32) {
        self.clock = self.clock.saturating_add(1000);
        self.slots.usage_mut(id).at = self.clock;
        let slot = self.slots.get_mut(id);
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(id);
        }
    }

    pub(super) fn appear(&mut self, id: u32) {
        self.births = self.births.wrapping_add(1);
        let slot = self.slots.get_mut(id);
        slot.state = FileState::Present;
        slot.born = self.births;
        slot.aside = false;
        self.present += disk_bytes(slot.size);
        self.objects += 1;
        self.policy.insert(id, &|id| meta(&self.slots, id));
        self.notify(Change::Appeared, id);
    }

    /// The object leaves the policy and the counts; pins keep its slot.
    pub(super) fn vanish(&mut self, id: u32, why: Removal) {
        let (size, state) = (self.slots.get(id).size, self.slots.get(id).state);
        if state == FileState::Present {
            self.policy.remove(id, why);
            self.objects -= 1;
            self.notify(Change::Vanished, id);
            self.present -= disk_bytes(size);
        }
        self.drop_file(id);
    }

    pub(super) fn drop_file(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        slot.state = FileState::Gone;
        slot.header = HeaderState::Unknown;
        if slot.pins == 0 {
            self.slots.remove(id);
        }
    }

    /// Most bytes of disk that the directory may take.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The bytes of disk that belong to no object, for the caller to set.
    pub fn overhead_mut(&mut self) -> &mut Overhead {
        self.overfull = true;
        &mut self.overhead
    }

    /// Adds the objects that recovery found: numbered in the order in which they were made, given to the policy in that of their use.
    pub fn restore(&mut self, mut seen: Vec<FoundObject>) {
        seen.sort_unstable_by_key(|seen| (seen.made, seen.key));
        let mut used: Vec<(u64, u32)> = Vec::with_capacity(seen.len());
        for FoundObject { key, size, used: at, .. } in seen {
            if self.leaving.contains_key(&key) {
                continue;
            }
            let id = self.slots.find(&key).unwrap_or_else(|| self.slots.insert(key, size, FileState::Gone));
            let slot = self.slots.get_mut(id);
            if slot.state == FileState::Gone {
                (slot.state, slot.size) = (FileState::Present, size);
                self.slots.usage_mut(id).at = at;
                used.push((at, id));
            }
        }
        used.sort_unstable();
        for (at, id) in used {
            self.clock = self.clock.max(at);
            self.appear(id);
        }
    }

    /// Pins present objects; `other` is the answer for absent ones.
    pub fn lookup(&mut self, keys: &[ObjectKey], found: &mut [Found], other: Found) {
        let pins = &mut self.pins;
        self.slots.find_all(keys, |i, slot| {
            let other = if slot.as_ref().is_some_and(|slot| slot.header == HeaderState::Unreadable) {
                Found::Unknown
            } else {
                other
            };
            let pinned = slot.and_then(ObjectSlot::pin);
            *pins += u64::from(pinned.is_some());
            found[i] = pinned.map_or(other, Found::Present);
        });
    }

    /// Pins `key`, whose file was just seen to have `size` bytes of payload.
    pub fn discovered(&mut self, key: ObjectKey, size: u64, used: u64) -> Found {
        if self.leaving.contains_key(&key) {
            return Found::Absent;
        }
        let state = self.slots.find(&key).map(|id| self.slots.get(id).state);
        if state == Some(FileState::Writing) {
            return Found::Absent;
        }
        let id = self.present_again(key, size, used);
        self.overfull = true;
        let slot = self.slots.get_mut(id);
        if slot.header == HeaderState::Unreadable {
            slot.header = HeaderState::Unknown;
        }
        let pinned = slot.pin();
        self.pins += u64::from(pinned.is_some());
        pinned.map_or(Found::Absent, Found::Present)
    }

    /// The file of `key` cannot be opened, and is there all the same: it keeps its bytes, and is not written again.
    pub fn unreadable(&mut self, key: &ObjectKey) {
        if let Some(id) = self.slots.find(key)
            && self.slots.get(id).state == FileState::Present
        {
            self.slots.get_mut(id).header = HeaderState::Unreadable;
        }
    }

    /// Whether the file of `key` could not be opened the last time.
    pub fn is_unreadable(&self, key: &ObjectKey) -> bool {
        self.slots.find(key).is_some_and(|id| self.slots.get(id).header == HeaderState::Unreadable)
    }

    /// Takes one pin off each key. Gives the stores that may try again.
    pub fn unpin(&mut self, keys: &[ObjectKey]) -> Vec<StoreRequest> {
        let mut freed = false;
        for key in keys {
            let Some(id) = self.slots.find(key) else { continue };
            let slot = self.slots.get_mut(id);
            if slot.pins == 0 {
                continue;
            }
            self.pins -= 1;
            slot.pins -= 1;
            if slot.pins > 0 {
                continue;
            }
            freed = true;
            match slot.state {
                FileState::Present if slot.aside => {
                    slot.aside = false;
                    self.policy.release(id);
                }
                FileState::Gone => self.slots.remove(id),
                FileState::Present | FileState::Writing => {}
            }
        }
        if freed { self.take_waiting() } else { Vec::new() }
    }

    /// Hides `key`, pinned or not; the caller unlinks its file. A load that has it pinned finds it gone.
    pub fn begin_delete(&mut self, key: &ObjectKey) {
        let bytes = self.lost(key);
        self.begin_unlink(*key, bytes);
    }

    /// Hides `key`, pinned or not. True if the caller is to move its file away; false if another does that already, or if the file is gone
    /// and a new one is being written.
    pub fn hide(&mut self, key: &ObjectKey) -> bool {
        if self.slots.find(key).is_some_and(|id| self.slots.get(id).state == FileState::Writing) {
            return false;
        }
        self.lost(key);
        let first = !self.leaving.contains_key(key);
        self.begin_unlink(*key, 0);
        first
    }

    /// The file of `key` is not there or not whole. Gives the bytes of disk that the index counted for it.
    pub fn lost(&mut self, key: &ObjectKey) -> u64 {
        let present = self.slots.find(key).filter(|&id| self.slots.get(id).state == FileState::Present);
        present.map_or(0, |id| {
            let bytes = disk_bytes(self.slots.get(id).size);
            self.vanish(id, Removal::Deleted);
            bytes
        })
    }

    /// The file of the hidden `key` is gone. Gives the stores that may try again.
    pub fn removed(&mut self, key: &ObjectKey) -> Vec<StoreRequest> {
        // A write that was under way when it was deleted may have published it since.
        self.lost(key);
        self.end_unlink(key);
        self.retry(key)
    }

    /// The file of the hidden `key` cannot be taken away: shows the object again. Gives the stores that may try again.
    pub fn unhide(&mut self, key: &ObjectKey, size: u64, used: u64) -> Vec<StoreRequest> {
        self.end_unlink(key);
        self.present_again(*key, size, used);
        self.retry(key)
    }

    /// Makes an object that is on disk present, unless the index has it already. Gives its slot.
    fn present_again(&mut self, key: ObjectKey, size: u64, used: u64) -> u32 {
        let id = self.slots.find(&key).unwrap_or_else(|| self.slots.insert(key, size, FileState::Gone));
        if self.slots.get(id).state == FileState::Gone {
            self.slots.get_mut(id).size = size;
            self.slots.usage_mut(id).at = used;
            self.appear(id);
        }
        id
    }

    pub(super) fn retry(&mut self, key: &ObjectKey) -> Vec<StoreRequest> {
        let mut stores = self.waiting_for_key.remove(key).unwrap_or_default();
        stores.extend(self.take_waiting());
        stores
    }

    /// A few of the stores that wait for disk space, or all where no write or unlink is left that would start them later.
    pub(super) fn take_waiting(&mut self) -> Vec<StoreRequest> {
        let most = if self.writing == 0 && self.excess == 0 { usize::MAX } else { 4 };
        let mut stores = Vec::new();
        while stores.len() < most
            && let Some(store) = self.waiting_for_space.front()
            && !self.waits(disk_bytes(store.buffer.len() as u64))
        {
            stores.extend(self.waiting_for_space.pop_front());
        }
        stores
    }

    /// Whether the object that was `born` then is still there. An object stored anew under its key is another one.
    pub fn is_still(&self, key: &ObjectKey, born: u32) -> bool {
        let of_key = self.slots.find(key).map(|id| self.slots.get(id));
        of_key.is_some_and(|slot| slot.state == FileState::Present && slot.born == born)
    }

    /// Remembers the fields of the header of `key`, so that it need not be read again.
    pub fn know(&mut self, key: &ObjectKey, known: &HeaderDetails) {
        if let Some(id) = self.slots.find(key)
            && self.slots.get(id).state == FileState::Present
        {
            self.slots.know(id, known);
        }
    }

    /// Begins a load of `key` into a buffer of `len` bytes, which counts as a use of the object.
    pub fn begin_load(&mut self, key: &ObjectKey, len: usize) -> Result<Opening> {
        let id = self.slots.find(key).filter(|&id| self.slots.get(id).state == FileState::Present);
        let Some(id) = id else {
            return Err(Error::new(KVKEEP_ERR_NOT_FOUND, format!("object {} is not there any more", key.key)));
        };
        let slot = self.slots.get_mut(id);
        if slot.size != len as u64 {
            let size = slot.size;
            return Err(Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("object {} of {len} bytes was replaced by one of {size} since it was looked up", key.key),
            ));
        }
        let born = slot.born;
        self.tick();
        self.touch_slot(id);
        let follows = (1..=NEAR).contains(&id.abs_diff(self.last));
        self.last = id;
        Ok(Opening { born, known: self.slots.known(id), follows })
    }

    pub(super) fn touch_slot(&mut self, id: u32) {
        let slot = self.slots.get_mut(id);
        if slot.state == FileState::Present {
            slot.aside = false;
            let usage = self.slots.usage_mut(id);
            usage.count = usage.count.saturating_add(1);
            self.policy.touch(id, &|id| meta(&self.slots, id));
            self.mark_used(id);
        }
    }

    /// Marks keys as used, the last one last.
    pub fn touch(&mut self, keys: &[ObjectKey]) {
        self.tick();
        for key in keys {
            if let Some(id) = self.slots.find(key) {
                self.touch_slot(id);
            }
        }
    }

    /// Up to `most` uses that are not on their files yet: key and birth of the object, and the time in nanoseconds. They count as
    /// written from now on.
    pub fn take_dirty(&mut self, most: usize) -> Vec<(ObjectKey, u32, u64)> {
        let ids = self.dirty.split_off(self.dirty.len().saturating_sub(most));
        let slots = &mut self.slots;
        let used = ids.into_iter().filter_map(|id| {
            let slot = slots.get_mut(id);
            let (was, born) = (std::mem::take(&mut slot.dirty), slot.born);
            was.then(|| (slots.name(id), born, slots.usage(id).at))
        });
        used.collect()
    }

    /// How many uses are not on their files yet.
    pub fn dirty(&self) -> usize {
        self.dirty.len()
    }

    /// Whether `key` is known: stored, being written or being unlinked.
    pub fn knows(&self, key: &ObjectKey) -> bool {
        self.leaving.contains_key(key)
            || self.slots.find(key).is_some_and(|id| self.slots.get(id).state != FileState::Gone)
    }

    /// The objects of a space.
    pub fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        let present = self.slots.iter().filter(|(_, slot)| slot.state == FileState::Present);
        let named = present.map(|(id, slot)| (self.slots.name(id), slot.size));
        named.filter(|(name, _)| space.is_none_or(|space| name.space == space)).collect()
    }

    pub fn usage(&self) -> Usage {
        Usage {
            objects: self.objects,
            bytes: self.held(),
            overhead: self.overhead.bytes(),
            capacity: if self.capacity == u64::MAX { 0 } else { self.capacity },
            evicted: self.evicted,
            pins: self.pins,
            io_uring_refused: 0,
            short: false,
        }
    }
}
