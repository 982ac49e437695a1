//! How old the oldest share and the oldest waiting write are, and when the cache was opened.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::l1::L1;
use crate::write_waits::WriteWaits;

/// The oldest share is looked for at most so often: every object has to be looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The ages of one cache.
pub struct Ages {
    opened: SystemTime,
    /// When the oldest share was looked for last, and since when there is one.
    looked: Mutex<Option<(Instant, Option<u64>)>>,
}

impl Default for Ages {
    /// The cache is opened now.
    fn default() -> Ages {
        Ages { opened: SystemTime::now(), looked: Mutex::default() }
    }
}

impl Ages {
    /// When the cache was opened, in milliseconds since 1970.
    pub fn opened_ms(&self) -> u64 {
        self.opened.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    /// For how many milliseconds the object has been shared that is shared longest; 0 where none is. Up to a second late. One caller
    /// at a time looks; the others have what was seen before, and wait for nobody.
    pub fn oldest_share_ms(&self, l1: &L1) -> u64 {
        let now = Instant::now();
        let (is_due, seen) = {
            let mut looked = self.looked.lock();
            let is_due = looked.is_none_or(|(at, _)| now >= at + LOOK);
            let seen = looked.and_then(|(_, since)| since);
            if is_due {
                *looked = Some((now, seen));
            }
            (is_due, seen)
        };
        let mut since = seen;
        if is_due {
            since = l1.oldest_share();
            *self.looked.lock() = Some((now, since));
        }
        since.map_or(0, |since| l1.now_ms().saturating_sub(since))
    }

    /// For how many milliseconds the oldest write has waited that has not ended; 0 where none waits.
    pub fn oldest_write_ms(&self, l1: &L1, waits: &WriteWaits) -> u64 {
        let oldest = [l1.oldest_queued(), waits.oldest()].into_iter().flatten().min();
        oldest.map_or(0, |since| l1.now_ms().saturating_sub(since))
    }
}
