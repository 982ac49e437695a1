//! Evicting what is above the bounds: a little at a time, on the keeper's thread, between its other work.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::free_space::size;
use super::index::Index;
use super::object_io::Core;
use crate::log::LogLevel;

/// Files evicted before the next job's turn.
const EVICTIONS_MAX: usize = 32;
/// How often the log says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// An eviction that takes more than one step.
struct Progress {
    began: Instant,
    said: Instant,
    objects: u64,
    bytes: u64,
    left: u64,
}

/// The eviction under way.
#[derive(Default)]
pub struct Shrinking(Mutex<Option<Progress>>);

impl Shrinking {
    /// Evicts a few objects. True if it is to be called again.
    pub fn step(&self, core: &Core) -> bool {
        // Others may have freed since what the file system lacked.
        core.space.measure(core);
        let (before, victims) = core.index(|index| (index.surplus(), index.shrink(EVICTIONS_MAX)));
        let evicted = victims.into_iter().filter(|key| core.unlink(*key, None)).count();
        let (left, more) = core.index(|index| (index.surplus(), index.is_to_shrink()));
        // Files that cannot be unlinked are tried again at the next flush.
        let again = more && evicted > 0;
        self.report(core, evicted as u64, before, left, again);
        if !again {
            core.index(Index::shrunk);
        }
        again
    }

    fn report(&self, core: &Core, evicted: u64, before: u64, left: u64, again: bool) {
        let now = Instant::now();
        let mut state = self.0.lock();
        let begins = state.is_none();
        if begins && !again {
            return;
        }
        let progress = state.get_or_insert(Progress { began: now, said: now, objects: 0, bytes: before, left });
        progress.objects += evicted;
        progress.left = left;
        let seconds = progress.began.elapsed().as_secs_f32();
        let Progress { objects, bytes, .. } = *progress;
        let due = now - progress.said >= SAY_EVERY;
        if due {
            progress.said = now;
        }
        if !again {
            *state = None;
        }
        // The log's reader may ask for the backend's health.
        drop(state);
        let dir = core.dir.display();
        if !again {
            core.log.often("fs within bounds", LogLevel::Info, || match left {
                0 => format!("fs: {dir} is within its bounds again: {objects} objects were evicted in {seconds:.1} s"),
                left => format!("fs: {dir} stays {} above its bounds: nothing is left that can be evicted", size(left)),
            });
        } else if begins {
            core.log.often("fs above bounds", LogLevel::Info, || {
                let above = size(bytes);
                format!("fs: {dir} is {above} above its bounds: the oldest objects are evicted in the background")
            });
        } else if due {
            core.log.say(LogLevel::Info, || {
                format!(
                    "fs: {dir} is {} above its bounds: {objects} objects are evicted after {seconds:.0} s",
                    size(left)
                )
            });
        }
    }

    /// What an operator should know, if anything.
    pub fn note(&self) -> Option<String> {
        let state = self.0.lock();
        state.as_ref().map(|progress| {
            let (left, bytes) = (size(progress.left), size(progress.bytes));
            format!("{left} above its bounds, of {bytes}: the oldest objects are evicted in the background")
        })
    }
}
