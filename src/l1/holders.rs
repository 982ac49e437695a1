//! The sessions that have shares of an object besides its first holder.

use super::slot::{LISTED, NONE};
use super::slots::Slots;

#[derive(Clone, Copy)]
struct Holder {
    session: u32,
    count: u32,
    next: u32,
}

/// Shares of an object's second and further holders, as lists.
#[derive(Default)]
pub struct Holders {
    list: Vec<Holder>,
    spare: Vec<u32>,
}

impl Holders {
    /// Adds shares of `session` to the list of a slot. True if it had none in the list before.
    pub fn add(&mut self, slots: &mut Slots, id: u32, session: u32, count: u32) -> bool {
        slots[id].set(LISTED);
        let of_slot = slots.cold_mut(id);
        of_slot.listed += count;
        let mut at = of_slot.more;
        while at != NONE {
            let entry = &mut self.list[at as usize];
            if entry.session == session {
                entry.count += count;
                return false;
            }
            at = entry.next;
        }
        let entry = Holder { session, count, next: of_slot.more };
        of_slot.more = match self.spare.pop() {
            Some(place) => {
                self.list[place as usize] = entry;
                place
            }
            None => {
                self.list.push(entry);
                (self.list.len() - 1) as u32
            }
        };
        true
    }

    /// Shares of `session` in the list of a slot.
    pub fn count(&self, slots: &Slots, id: u32, session: u32) -> u32 {
        self.iter(slots, id).find(|(holder, _)| *holder == session).map_or(0, |(_, count)| count)
    }

    /// Takes shares of `session` off the list; they must be there.
    pub fn sub(&mut self, slots: &mut Slots, id: u32, session: u32, count: u32) {
        if slots.cold(id).listed == count {
            slots[id].clear(LISTED);
        }
        let of_slot = slots.cold_mut(id);
        of_slot.listed -= count;
        let mut before = NONE;
        let mut at = of_slot.more;
        while at != NONE {
            let entry = self.list[at as usize];
            if entry.session == session {
                debug_assert!(entry.count >= count);
                if entry.count > count {
                    self.list[at as usize].count -= count;
                    return;
                }
                match before {
                    NONE => of_slot.more = entry.next,
                    before => self.list[before as usize].next = entry.next,
                }
                self.spare.push(at);
                return;
            }
            (before, at) = (at, entry.next);
        }
    }

    /// Sessions in the list and their shares.
    pub fn iter(&self, slots: &Slots, id: u32) -> impl Iterator<Item = (u32, u32)> {
        let mut at = slots.cold(id).more;
        std::iter::from_fn(move || {
            let entry = self.list.get(at as usize)?;
            at = entry.next;
            Some((entry.session, entry.count))
        })
    }
}
