//! Since when the writes that are under way to backends have waited.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Writes under way, counted by the time at which each was queued.
#[derive(Default)]
pub struct WriteWaits(Mutex<BTreeMap<u64, u32>>);

impl WriteWaits {
    /// A write that was queued at `since_ms` is under way.
    pub fn begin(&self, since_ms: u64) {
        *self.0.lock().entry(since_ms).or_default() += 1;
    }

    /// Such a write has ended.
    pub fn end(&self, since_ms: u64) {
        let mut waits = self.0.lock();
        if let Some(count) = waits.get_mut(&since_ms) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&since_ms);
            }
        }
    }

    /// When the oldest of them was queued.
    pub fn oldest(&self) -> Option<u64> {
        self.0.lock().first_key_value().map(|(since_ms, _)| *since_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_first_that_has_not_ended() {
        let waits = WriteWaits::default();
        assert_eq!(waits.oldest(), None);
        [7, 5, 5, 9].into_iter().for_each(|since| waits.begin(since));
        waits.end(5);
        assert_eq!(waits.oldest(), Some(5));
        waits.end(5);
        assert_eq!(waits.oldest(), Some(7));
        [9, 7].into_iter().for_each(|since| waits.end(since));
        assert_eq!(waits.oldest(), None);
    }
}
