//! The answer of a batch call.

use crate::error::{KVKEEP_OK, Status};

/// The status of each key, written to the caller's array if there is one.
pub struct Outcome<'a> {
    statuses: Option<&'a mut [i32]>,
    all_ok: bool,
}

impl<'a> Outcome<'a> {
    /// Of a batch of which no key was answered yet. `statuses` has a place for each key.
    pub fn new(statuses: Option<&'a mut [i32]>) -> Outcome<'a> {
        Outcome { statuses, all_ok: true }
    }

    /// Answers the key at `index`.
    pub fn set(&mut self, index: usize, status: Status) {
        self.all_ok &= status == KVKEEP_OK;
        if let Some(statuses) = &mut self.statuses {
            statuses[index] = status as i32;
        }
    }

    /// Whether every key answered so far is OK.
    pub fn all_ok(&self) -> bool {
        self.all_ok
    }
}
