//! Why L1 has no room for what a job found, for the result of the job.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, KVKEEP_ERR_QUOTA, Status};
use crate::l1::L1;

/// The message of a job that L1 has no room for begins so.
pub const NO_ROOM: &str = "no room for what was found: ";
/// For so long the holder of most memory is not looked for again: all sessions are looked at for it.
const KEPT: Duration = Duration::from_millis(100);

/// The last refusal that was explained.
#[derive(Default)]
pub(super) struct NoRoom {
    last: Mutex<Option<(Instant, String)>>,
}

impl NoRoom {
    /// The error of a load for `session` that L1 refused with `status`: who holds the memory, and the remedy.
    pub(super) fn explain(&self, l1: &L1, session: u64, status: Status) -> Error {
        let of_space = status == KVKEEP_ERR_QUOTA;
        let explain = || l1.largest_holder(session, of_space).unwrap_or_else(|error| error.message);
        let mut last = self.last.lock();
        let why = match &*last {
            Some((at, why)) if !of_space && at.elapsed() < KEPT => why.clone(),
            _ => explain(),
        };
        if !of_space && last.as_ref().is_none_or(|(at, _)| at.elapsed() >= KEPT) {
            *last = Some((Instant::now(), why.clone()));
        }
        Error::new(status, format!("{NO_ROOM}{why}"))
    }
}
