//! Memory under a transfer: loads from L2 into staging, and writes of committed objects to L2.
//!
//! A [`Buffer`] counts in its slot's `io`, so that the memory is neither evicted nor reused while a backend has it (P2).

use std::sync::Arc;

use super::slot::{FORGOTTEN, GIVEN_UP, HIDDEN, LOST, PARKED, QUEUED, Ref, STAGING, STORED, TEMPORARY, WRITING};
use super::{L1, State, WAKE_FREED};
use crate::arena::{Buffer, Hold};
use crate::error::{Result, Status};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, ObjectKey};
use crate::policy::Removal;
use crate::shape::ShapeTag;

/// An object to be written to L2.
pub struct Write {
    /// Names it to [`L1::written`].
    pub name: Ref,
    /// Its identity.
    pub key: ObjectKey,
    /// The tag of its layout.
    pub layout: [u8; 16],
    /// The tag of its shape.
    pub shape: ShapeTag,
    /// Its bytes; one more buffer of them can be had by [`L1::buffer`].
    pub buffer: Buffer,
}

/// A reader of a loaded object: whom to give how many shares.
#[derive(Clone, Copy, Debug)]
pub struct Landed {
    /// The session.
    pub session: u64,
    /// Shares.
    pub count: u32,
    /// Whether the object is to stay when they are returned; one such reader is enough.
    pub keep: bool,
}

/// Where bytes begin in the arena, and how many they are.
type Place = (u64, u64);

impl Hold for L1 {
    fn release(&self, token: u64) {
        self.with(|state| state.land(Ref::unpack(token)));
    }
}

impl L1 {
    /// The bytes of a slot whose `io` the caller raised for it. A staged slot is known to its loader alone, and a ready one is
    /// never written again.
    fn buffer_of(&self, name: Ref, (offset, size): Place) -> Option<Buffer> {
        let hold: Arc<dyn Hold> = self.me.upgrade()?;
        Some(self.arena.lend(offset, size, hold, name.pack()))
    }

    /// Stages memory of `space` for loads, in order; after the first key that does not fit, none does. A loaded object is
    /// not written to L2 again.
    pub fn stage_loads<'a>(
        &self,
        space: u32,
        wanted: impl Iterator<Item = (&'a Key, u64, u32)>,
        temporary: bool,
    ) -> Vec<std::result::Result<(Ref, Buffer), Status>> {
        let mut full = None;
        // Hashed before the lock is taken.
        let wanted: Vec<(&Key, Fingerprint, u64, u32)> = wanted
            .map(|(key, size, depth)| (key, self.fingerprinter.fingerprint(key).within(space), size, depth))
            .collect();
        let staged: Vec<std::result::Result<(Ref, Place), Status>> = self.with(|state| {
            wanted
                .into_iter()
                .map(|(key, fingerprint, size, depth)| {
                    if let Some(status) = full {
                        return Err(status);
                    }
                    let id = state.stage(space, key, fingerprint, size, temporary).inspect_err(|&status| {
                        state.count_refusal(status);
                        full = Some(status);
                    })?;
                    state.slots[id].set(STORED);
                    state.slots.mention_mut(id).depth = depth;
                    state.slots.begin_transfer(id);
                    Ok((state.slots.name(id), state.place(id)))
                })
                .collect()
        });
        staged
            .into_iter()
            .map(|staged| {
                let (name, place) = staged?;
                let buffer = self.buffer_of(name, place).ok_or(crate::error::KVKEEP_ERR_CLOSED)?;
                Ok((name, buffer))
            })
            .collect()
    }

    /// Commits a loaded object and gives its readers their shares. Says of each whether it has them (its session lives).
    /// False for all if the load was dropped meanwhile. None if the object has another shape than those of its rank and group: it
    /// is dropped. `lost`: no backend has it any more.
    pub fn commit_load(&self, name: Ref, shape: ShapeTag, readers: &[Landed], lost: bool) -> Option<Vec<bool>> {
        self.with(|state| {
            let live = state.slots.find(name).is_some_and(|slot| slot.is(STAGING));
            if !live {
                return Some(vec![false; readers.len()]);
            }
            if state.slots[name.slot].is(FORGOTTEN) {
                state.unstage(name.slot);
                return Some(vec![false; readers.len()]);
            }
            if !state.admits_shape(name.slot, shape) {
                state.unstage(name.slot);
                return None;
            }
            if readers.iter().any(|reader| reader.keep) {
                state.slots[name.slot].clear(TEMPORARY);
            }
            let slot = &mut state.slots[name.slot];
            if lost {
                slot.clear(STORED);
                slot.set(if slot.is(TEMPORARY) { 0 } else { LOST });
            }
            let fingerprint = state.fingerprint_of(name.slot);
            let id = state.commit(name.slot, fingerprint);
            state.rank_new();
            let given = readers
                .iter()
                .map(|reader| {
                    let Ok((index, session)) = state.sessions.use_now(reader.session, state.now_ms) else {
                        return false;
                    };
                    session.landed = true;
                    let mut fresh = Vec::new();
                    let taken = state.take(index, id, reader.count, &mut fresh);
                    state.note_all(index, &fresh);
                    taken
                })
                .collect();
            // Loaded for one reading, and no reader is left.
            if id == name.slot && state.slots[id].is(TEMPORARY) && state.slots.shares(id) == 0 {
                state.hide(id, Removal::Deleted);
                state.free_if_unused(id);
            }
            Some(given)
        })
    }

    /// Gives up a load; its memory is freed when the transfer has landed.
    pub fn drop_load(&self, name: Ref) {
        self.with(|state| {
            if state.slots.find(name).is_some_and(|slot| slot.is(STAGING)) {
                state.unstage(name.slot);
            }
        });
    }

    /// Takes queued objects to write, up to `objects` and about `bytes`, at least one.
    pub fn take_writes(&self, objects: usize, bytes: u64) -> Vec<Write> {
        let taken: Vec<(Ref, Place, ObjectKey, [u8; 16], ShapeTag)> = self.with(|state| {
            let mut taken = Vec::new();
            let mut left = bytes;
            while taken.len() < objects && (left > 0 || taken.is_empty()) {
                let Some(name) = state.writes.pop_front() else { break };
                let Some(slot) = state.slots.find(name) else { continue };
                if slot.is(HIDDEN) || !slot.is(QUEUED) {
                    continue;
                }
                left = left.saturating_sub(slot.size());
                state.slots[name.slot].set(WRITING);
                state.writes_waiting -= 1;
                let space = &state.spaces[state.slots.space(name.slot) as usize];
                let key = ObjectKey { space: space.tag, key: *state.slots.key(name.slot) };
                taken.push((name, state.place(name.slot), key, space.layout, state.shape_of(name.slot)));
                state.raise_io(name.slot);
            }
            taken
        });
        taken
            .into_iter()
            .filter_map(|(name, place, key, layout, shape)| {
                Some(Write { name, key, layout, shape, buffer: self.buffer_of(name, place)? })
            })
            .collect()
    }

    /// Gives up all that waits to be written, and says how much that was.
    pub fn drop_writes(&self) -> u64 {
        self.with(|state| {
            for name in std::mem::take(&mut state.writes) {
                if state.slots.find(name).is_some_and(|slot| slot.is(QUEUED) && !slot.is(WRITING)) {
                    let slot = &mut state.slots[name.slot];
                    slot.clear(QUEUED);
                    slot.set(GIVEN_UP);
                }
            }
            std::mem::take(&mut state.writes_waiting)
        })
    }

    /// Another buffer over an object, unless it was evicted, deleted or forgotten meanwhile.
    pub fn buffer(&self, name: Ref) -> Option<Buffer> {
        let place = self.with(|state| {
            state.slots.find(name).filter(|slot| slot.is_findable())?;
            let place = state.place(name.slot);
            state.raise_io(name.slot);
            Some(place)
        })?;
        self.buffer_of(name, place)
    }

    /// A write ended: a backend has the object, or writing it was given up and is not tried again. From now on the object may be
    /// evicted like any other. One that was to leave once written leaves now.
    pub fn written(&self, name: Ref, stored: bool) {
        self.with(|state| {
            if state.slots.find(name).is_none() {
                return;
            }
            state.wakes |= WAKE_FREED;
            let leaving = state.stay(name.slot);
            let slot = &mut state.slots[name.slot];
            let parked = slot.is(PARKED);
            // Lost since it was queued.
            let lost = slot.is(LOST) && stored;
            slot.clear(QUEUED | PARKED | WRITING);
            if !lost {
                slot.clear(LOST);
                slot.set(if stored { STORED } else { GIVEN_UP });
            }
            if slot.is(HIDDEN) {
                return;
            }
            let locked = slot.locked();
            let pool = state.spaces[state.slots.space(name.slot) as usize].pool;
            if leaving && !locked && state.above(state.config.low_percent, 0) {
                // Not kept to be written again: a backend that loses at once what it stores must not keep L1 full.
                if lost {
                    state.count_unasked_drop();
                }
                state.evict(name.slot);
            } else if parked {
                state.policy(pool).0.release(name.slot);
            }
        });
    }

    /// Whether a session holds shares, stages something or has jobs.
    pub fn session_holds(&self, session: u64) -> bool {
        self.with(|state| {
            let index = state.sessions.index(session);
            index.is_ok_and(|index| !state.sessions.at(index).idle())
        })
    }

    /// Fails if a session is not live.
    pub fn session_lives(&self, session: u64) -> Result<()> {
        self.with(|state| state.sessions.index(session).map(drop))
    }
}

impl State {
    fn place(&self, id: u32) -> Place {
        let slot = &self.slots[id];
        (self.alloc.offset(slot.start), slot.size())
    }

    fn raise_io(&mut self, id: u32) {
        let was_locked = self.slots[id].locked();
        self.slots.begin_transfer(id);
        self.relock(id, was_locked);
    }

    /// A buffer was let go.
    fn land(&mut self, name: Ref) {
        if self.slots.find(name).is_none() {
            debug_assert!(false, "a buffer outlived its slot");
            return;
        }
        let id = name.slot;
        self.wakes |= WAKE_FREED;
        self.slots.end_transfer(id);
        self.relock(id, true);
        let slot = &self.slots[id];
        if slot.locked() {
            return;
        }
        if slot.is(HIDDEN) {
            return self.free_if_unused(id);
        }
        let pool = self.spaces[self.slots.space(id) as usize].pool;
        if !slot.is(PARKED) || slot.is(TEMPORARY) {
            self.policy(pool).0.release(id);
        }
    }
}
