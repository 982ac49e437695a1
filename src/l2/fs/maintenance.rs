//! The maintenance thread: it serves requests that need the file system but move no payload, and every so often writes times of use
//! onto files and cleans up.

use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_OMIT, utimensat};
use rustix::io::Errno;

use super::core::Core;
use super::index::Index;
use super::tasks::{DIRTY_MAX, MaintenanceTask};
use super::{cleanup, file_lookup, foreign, path, remove};
use crate::key::SpaceTag;
use crate::log::LogLevel;

/// Files unlinked before the next task's turn: a lookup has a deadline.
const UNLINKS_MAX: usize = 1 << 12;
/// Files evicted before the next task's turn.
const EVICTIONS_MAX: usize = 32;
/// Times of last use are written at least this often.
const FLUSH_EVERY: Duration = Duration::from_secs(10);

/// The thread. Returns when the queue is closed and empty.
pub fn run(core: &Core) {
    core.root.index(Index::check_bounds);
    let mut flushed = Instant::now();
    let mut cleaned = flushed;
    while let Some(task) = core.root.tasks.next((flushed + FLUSH_EVERY).min(cleaned + core.cleanup_every)) {
        match task {
            Some(MaintenanceTask::Lookup(lookup)) => file_lookup::look_up(core, lookup),
            Some(MaintenanceTask::Unlink(mut keys)) => {
                let now = keys.split_off(keys.len().saturating_sub(UNLINKS_MAX));
                core.root.tasks.push(MaintenanceTask::Unlink(keys));
                remove::unlink_all(core, &now);
            }
            Some(MaintenanceTask::Quarantine(key)) => {
                core.quarantine.move_away(&core.root, key);
                remove::is_gone(core, &key);
            }
            Some(MaintenanceTask::Evict) => evict(core),
            Some(MaintenanceTask::NameSpace(space)) => write_names(core, space),
            Some(MaintenanceTask::Sweep(sweep)) => foreign::step(core, sweep),
            None => {
                flush(core);
                core.free_space.measure(&core.root);
                core.root.index(Index::check_bounds);
                flushed = Instant::now();
                if cleaned.elapsed() >= core.cleanup_every {
                    cleanup::run(core);
                    core.directories.measure_next(&core.root);
                    cleanup::list_again(core);
                    cleanup::list_if_alone(core);
                    cleaned = Instant::now();
                }
            }
        }
    }
    flush(core);
}

/// Writes the file that names a space. Where that fails, people do without.
fn write_names(core: &Core, space: SpaceTag) {
    let root = &core.root;
    if let Err(error) = root.space_files.write(&root.dir, &root.dirfd, &core.temporaries.path(), space) {
        root.log.often("fs space file", LogLevel::Info, || {
            format!(
                "fs: the names of a space cannot be written in {}: {error}; kvkeep stat shows its tag",
                root.dir.display()
            )
        });
    }
}

/// Evicts a few of the objects that are above the bounds, and queues itself again while there are more.
fn evict(core: &Core) {
    if core.root.tasks.is_closed() {
        return;
    }
    // Other processes may have freed since what the file system lacked.
    core.free_space.measure(&core.root);
    let (before, victims) = core.root.index(|index| (index.surplus(), index.shrink(EVICTIONS_MAX)));
    let evicted = victims.into_iter().filter(|key| remove::unlink(core, *key, None)).count();
    let (left, more) = core.root.index(|index| (index.surplus(), index.is_to_shrink()));
    // Files that cannot be unlinked are tried again at the next flush.
    let again = more && evicted > 0;
    core.eviction.report(&core.root, evicted as u64, before, left, again);
    if again {
        core.root.tasks.push(MaintenanceTask::Evict);
    } else {
        core.root.index(Index::shrunk);
    }
}

/// Writes onto their files the times of use that wait now, a batch at a time.
fn flush(core: &Core) {
    let batches = core.root.index(|index| index.dirty()).div_ceil(DIRTY_MAX);
    for _ in 0..batches {
        let used = core.root.index(|index| index.take_dirty(DIRTY_MAX));
        for (key, born, nanoseconds) in used {
            let time =
                Timespec { tv_sec: (nanoseconds / 1_000_000_000) as i64, tv_nsec: (nanoseconds % 1_000_000_000) as _ };
            let access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            let times = Timestamps { last_access: access, last_modification: time };
            // One that cannot be marked loses only its place in the order.
            let marked = utimensat(&core.root.dirfd, path::object(&key).as_str(), &times, AtFlags::SYMLINK_NOFOLLOW);
            if marked == Err(Errno::NOENT) {
                // Another process removed it: L1 has to write its copy again.
                core.root.index(|index| {
                    if index.is_still(&key, born) {
                        index.lost(&key);
                    }
                });
            }
        }
    }
}
