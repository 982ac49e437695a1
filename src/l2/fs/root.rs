//! The open directory of a backend: its descriptor, its index and its health. Every other part of the backend stands on this one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, statat};

use super::failures::{Failures, file_error};
use super::file_format::payload_of;
use super::fs_options::{Durability, FsOptions};
use super::index::Index;
use super::openers::Openers;
use super::path;
use super::space_files::SpaceFiles;
use super::tasks::{MaintenanceTask, TaskQueue};
use crate::error::Error;
use crate::log::Log;

/// The open directory, as all threads share it.
pub struct Root {
    pub dir: PathBuf,
    pub dirfd: OwnedFd,
    pub log: Log,
    /// Files are opened for direct I/O.
    pub direct: bool,
    pub openers: Openers,
    /// A change is synced before it is answered.
    pub durable: bool,
    /// The maintenance thread's queue.
    pub tasks: TaskQueue,
    pub failures: Failures,
    pub space_files: SpaceFiles,
    index: Mutex<Index>,
}

impl Root {
    /// A directory whose objects are in `index`.
    pub fn new(options: &FsOptions, dirfd: OwnedFd, direct: bool, index: Index, openers: Openers) -> Root {
        Root {
            dir: options.dir.clone(),
            dirfd,
            log: options.log.clone(),
            direct,
            openers,
            durable: options.durability == Durability::Power,
            tasks: TaskQueue::default(),
            failures: Failures::default(),
            space_files: SpaceFiles::default(),
            index: Mutex::new(index),
        }
    }

    /// Runs `work` under the index's lock, and has the maintenance thread evict if that left the directory above its bounds.
    pub fn index<T>(&self, work: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.lock();
        let result = work(&mut index);
        let evict = index.begin_shrinking();
        drop(index);
        if evict {
            self.tasks.push(MaintenanceTask::Evict);
        }
        result
    }

    /// The error of a failed change: the file system failed while doing `what` to the relative path `path`. Health counts it.
    pub fn error(&self, what: &str, path: &str, error: &io::Error) -> Error {
        let error = file_error(what, &self.dir.join(path), error);
        self.failures.write_failed(&error);
        error
    }

    /// The error of a failed read: the file system failed while doing `what` to the relative path `path`. Health counts it.
    pub fn unread(&self, what: &str, path: &str, error: &io::Error) -> Error {
        let error = file_error(what, &self.dir.join(path), error);
        self.failures.read_failed(&error);
        error
    }

    /// Bytes of payload and time of last use, in nanoseconds, of the object at `path`, if there is one.
    pub fn stat(&self, path: &str) -> rustix::io::Result<Option<(u64, u64)>> {
        match statat(&self.dirfd, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
                let used = seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as u64);
                Ok(payload_of(stat.st_size as u64).map(|size| (size, used)))
            }
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the directories in which objects are written.
    pub fn make_tmp(&self) -> io::Result<()> {
        path::make_tmp(&self.dir)
    }
}
