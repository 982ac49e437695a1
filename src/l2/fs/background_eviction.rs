//! How far the eviction of what is above the bounds has come, for the log and for health. The maintenance thread evicts a little at
//! a time, between its other tasks.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::free_space::size;
use super::root::Root;
use crate::log::LogLevel;

/// How often the log has a line about it.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// An eviction that takes more than one step.
struct EvictionProgress {
    began: Instant,
    said: Instant,
    objects: u64,
    bytes: u64,
    left: u64,
}

/// The eviction under way.
#[derive(Default)]
pub struct BackgroundEviction(Mutex<Option<EvictionProgress>>);

impl BackgroundEviction {
    /// A step has evicted so many objects and left so many bytes above the bounds. Logs the first step, the last, and some between.
    pub fn report(&self, root: &Root, evicted: u64, before: u64, left: u64, again: bool) {
        let now = Instant::now();
        let mut state = self.0.lock();
        let begins = state.is_none();
        if begins && !again {
            return;
        }
        let progress = state.get_or_insert(EvictionProgress { began: now, said: now, objects: 0, bytes: before, left });
        progress.objects += evicted;
        progress.left = left;
        let seconds = progress.began.elapsed().as_secs_f32();
        let EvictionProgress { objects, bytes, .. } = *progress;
        let due = now - progress.said >= SAY_EVERY;
        if due {
            progress.said = now;
        }
        if !again {
            *state = None;
        }
        // The log's reader may ask for the backend's health.
        drop(state);
        let dir = root.dir.display();
        if !again {
            root.log.often("fs within bounds", LogLevel::Info, || match left {
                0 => format!("fs: {dir} is within its bounds again: {objects} objects were evicted in {seconds:.1} s"),
                left => format!("fs: {dir} stays {} above its bounds: nothing is left that can be evicted", size(left)),
            });
        } else if begins {
            root.log.often("fs above bounds", LogLevel::Info, || {
                let above = size(bytes);
                format!("fs: {dir} is {above} above its bounds: the oldest objects are evicted in the background")
            });
        } else if due {
            root.log.write(LogLevel::Info, || {
                format!(
                    "fs: {dir} is {} above its bounds: {objects} objects are evicted after {seconds:.0} s",
                    size(left)
                )
            });
        }
    }

    /// A sentence for the operator while an eviction is under way.
    pub fn note(&self) -> Option<String> {
        let state = self.0.lock();
        state.as_ref().map(|progress| {
            let (left, bytes) = (size(progress.left), size(progress.bytes));
            format!("{left} above its bounds, of {bytes}: the oldest objects are evicted in the background")
        })
    }
}
