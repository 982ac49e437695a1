//! The places of the HTTP port: a slow peer does not hold up the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::task::AbortHandle;

const ASKING: u8 = 0;
const ANSWERED: u8 = 1;
const FOLLOWING: u8 = 2;

/// How far a connection is.
#[derive(Clone, Default)]
pub struct Stage(Arc<AtomicU8>);

impl Stage {
    /// Its request is whole, and is being answered; `follows` if the answer is a stream without an end.
    pub fn answered(&self, follows: bool) {
        self.0.store(if follows { FOLLOWING } else { ANSWERED }, Ordering::Relaxed);
    }

    fn is(&self, stage: u8) -> bool {
        self.0.load(Ordering::Relaxed) == stage
    }
}

/// The connections that are served, the oldest first.
#[derive(Default)]
pub struct HttpPlaces(Vec<(AbortHandle, Stage)>);

impl HttpPlaces {
    /// Gives a place to a connection, which `task` serves.
    pub fn take(&mut self, task: AbortHandle, stage: Stage) {
        self.0.push((task, stage));
    }

    /// Frees a place for one more where `most` may be. The oldest connection whose request is not whole is closed for it, or
    /// else the oldest that does not take its answer. False if all follow events: they have few places of their own.
    pub fn free_place(&mut self, most: usize) -> bool {
        self.0.retain(|(task, _)| !task.is_finished());
        if self.0.len() < most {
            return true;
        }
        let oldest = |stage: u8| self.0.iter().position(|(_, known)| known.is(stage));
        let Some(slow) = oldest(ASKING).or_else(|| oldest(ANSWERED)) else { return false };
        self.0.remove(slow).0.abort();
        true
    }
}
