//! Who has shares of an object beside its holder.

use super::slot::{LISTED, NONE, Slots};

#[derive(Clone, Copy)]
struct Hold {
    session: u32,
    count: u32,
    next: u32,
}

/// Shares of an object's second and further holders, as lists.
#[derive(Default)]
pub struct Holds {
    holds: Vec<Hold>,
    spare: Vec<u32>,
}

impl Holds {
    /// Adds shares of `session` to the list of a slot. True if it had none in the list before.
    pub fn add(&mut self, slots: &mut Slots, id: u32, session: u32, count: u32) -> bool {
        slots[id].set(LISTED);
        let of_slot = slots.detail_mut(id);
        of_slot.rest += count;
        let mut at = of_slot.more;
        while at != NONE {
            let hold = &mut self.holds[at as usize];
            if hold.session == session {
                hold.count += count;
                return false;
            }
            at = hold.next;
        }
        let hold = Hold { session, count, next: of_slot.more };
        of_slot.more = match self.spare.pop() {
            Some(place) => {
                self.holds[place as usize] = hold;
                place
            }
            None => {
                self.holds.push(hold);
                (self.holds.len() - 1) as u32
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
        if slots.detail(id).rest == count {
            slots[id].clear(LISTED);
        }
        let of_slot = slots.detail_mut(id);
        of_slot.rest -= count;
        let mut before = NONE;
        let mut at = of_slot.more;
        while at != NONE {
            let hold = self.holds[at as usize];
            if hold.session == session {
                debug_assert!(hold.count >= count);
                if hold.count > count {
                    self.holds[at as usize].count -= count;
                    return;
                }
                match before {
                    NONE => of_slot.more = hold.next,
                    before => self.holds[before as usize].next = hold.next,
                }
                self.spare.push(at);
                return;
            }
            (before, at) = (at, hold.next);
        }
    }

    /// Sessions in the list and their shares.
    pub fn iter(&self, slots: &Slots, id: u32) -> impl Iterator<Item = (u32, u32)> {
        let mut at = slots.detail(id).more;
        std::iter::from_fn(move || {
            let hold = self.holds.get(at as usize)?;
            at = hold.next;
            Some((hold.session, hold.count))
        })
    }
}
