//! The index's part in a store: whether it may be written, the objects that are evicted for it, and its end.

use super::bounds::EvictionPlan;
use super::fs_index::Index;
use super::reservation::{Admit, Reservation};
use crate::error::{Error, KVKEEP_ERR_LIMIT};
use crate::l2::fs::file_format::{disk_bytes, is_small};
use crate::l2::fs::objects::{FileState, HeaderState};
use crate::l2::{StoreRequest, Stored};

impl Index {
    /// Reserves disk space for a store, evicting as much as it needs. The caller unlinks the victims.
    pub fn admit(&mut self, store: StoreRequest) -> Admit {
        let key = store.key;
        if self.leaving.contains_key(&key) {
            self.waiting_for_key.entry(key).or_default().push(store);
            return Admit::Waits;
        }
        let found = self.slots.find(&key);
        match found.map(|id| (id, self.slots.get(id).state)) {
            Some((id, FileState::Present)) => {
                // One that this process cannot read is of no use to it.
                if self.slots.get(id).header != HeaderState::Unreadable {
                    self.touch(&[key]);
                }
                return Admit::Already(store);
            }
            Some((_, FileState::Writing)) => {
                self.waiting_for_key.entry(key).or_default().push(store);
                return Admit::Waits;
            }
            Some((_, FileState::Gone)) | None => {}
        }
        let size = store.buffer.len() as u64;
        let bytes = disk_bytes(size);
        let overhead = self.overhead.bytes();
        if bytes > self.capacity.saturating_sub(overhead) {
            let mut why = format!("an object of {size} bytes does not fit the capacity of {} bytes", self.capacity);
            if overhead > 0 {
                why += &format!(", of which quarantine, leftovers and directories take {overhead}");
            }
            return Admit::Refused(store, Error::new(KVKEEP_ERR_LIMIT, why));
        }
        let victims = match self.plan_eviction(bytes) {
            EvictionPlan::Chosen(victims) => victims,
            // A write or an unlink under way may free enough.
            EvictionPlan::Later | EvictionPlan::Impossible if self.writing > 0 || self.excess > 0 => {
                self.waiting_for_space.push_back(store);
                return Admit::Waits;
            }
            EvictionPlan::Later | EvictionPlan::Impossible => {
                let why = if self.disk.is_pressed() {
                    format!(
                        "no room for {size} bytes: the file system is full, and nothing is left here to evict for it; \
                         free space on it, or lower min_free="
                    )
                } else {
                    format!("no room for {size} bytes: everything stored is pinned or held by the policy")
                };
                return Admit::Refused(store, Error::new(KVKEEP_ERR_LIMIT, why));
            }
        };
        let slot = match found {
            Some(id) => {
                let slot = self.slots.get_mut(id);
                (slot.state, slot.size) = (FileState::Writing, size);
                id
            }
            None => self.slots.insert(key, size, FileState::Writing),
        };
        self.writing += 1;
        self.reserved += bytes;
        let known = if is_small(size) { store.header.seal(store.buffer.bytes()).known(&key, size) } else { None };
        let mut reservation = Reservation { slot, victims: Vec::new(), bytes, freed: 0, excess: 0, known };
        self.evict_for(&mut reservation, victims);
        Admit::Go(store, reservation)
    }

    /// The reservation's victims are unlinked. Gives the stores that may try again.
    pub fn settle(&mut self, reservation: &mut Reservation) -> Vec<StoreRequest> {
        self.excess -= std::mem::take(&mut reservation.excess);
        self.unlinking -= std::mem::take(&mut reservation.freed);
        let victims = std::mem::take(&mut reservation.victims);
        victims.iter().flat_map(|key| self.removed(key)).collect()
    }

    /// The write ended; `published`: the object is there, written by this store or already. Gives the stores that may try again.
    pub fn finish(&mut self, mut reservation: Reservation, published: Option<&Stored>) -> Vec<StoreRequest> {
        let mut stores = self.settle(&mut reservation);
        let id = reservation.slot;
        let key = self.slots.name(id);
        self.writing -= 1;
        self.reserved -= reservation.bytes;
        if let Some(stored) = published {
            if let Some(known) = reservation.known.filter(|_| *stored == Stored::Written) {
                self.slots.know(id, &known);
            }
            self.appear(id);
            self.tick();
            self.mark_used(id);
        } else {
            self.drop_file(id);
        }
        stores.append(&mut self.retry(&key));
        stores
    }
}
