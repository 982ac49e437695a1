//! Pins on objects in backends. A lookup takes them; each is given back exactly once.
//!
//! The answers to a lookup own its pins until the job takes them over, [`JobPins`] owns those of a job. Both give back the pins
//! that they still own when they are dropped, so that no path of a job can forget one.

use crate::control::backends::BackendList;
use crate::key::ObjectKey;

/// A job's pins: at most one for each of its keys.
#[derive(Default)]
pub struct JobPins {
    /// By key: the place of the backend that has pinned it, 0 for none. Empty until the first pin.
    places: Vec<u8>,
    count: usize,
}

impl JobPins {
    /// Takes over the pin that the backend at `place` has taken on key `index` of `keys`.
    pub fn take_over(&mut self, index: usize, place: usize, keys: usize) {
        if self.places.is_empty() {
            self.places = vec![0; keys];
        }
        debug_assert_eq!(self.places[index], 0, "key {index} is pinned already");
        self.count += 1;
        self.places[index] = place as u8;
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The keys that are pinned.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.places.iter().enumerate().filter(|(_, place)| **place != 0).map(|(index, _)| index)
    }

    /// Gives back the pins on those keys that `which` chooses, in one call for each backend.
    pub fn give_back(
        &mut self,
        backends: &BackendList,
        object: impl Fn(usize) -> ObjectKey,
        which: impl Fn(usize) -> bool,
    ) {
        if self.count == 0 {
            return;
        }
        for slot in backends.iter() {
            let mut keys = Vec::new();
            for (index, place) in self.places.iter_mut().enumerate() {
                if usize::from(*place) == slot.place && which(index) {
                    *place = 0;
                    keys.push(object(index));
                }
            }
            if !keys.is_empty() {
                self.count -= keys.len();
                slot.backend.unpin(&keys);
            }
        }
    }
}
