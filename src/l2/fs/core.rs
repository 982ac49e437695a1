//! The state that the threads of one open backend share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use super::background_eviction::BackgroundEviction;
use super::descriptor_wait::{Descriptors, is_out_of_descriptors};
use super::directories::Directories;
use super::engine::IoEngine;
use super::engine::backlog::Backlog;
use super::free_space::FreeSpace;
use super::fs_options::FsOptions;
use super::index::Index;
use super::openers::Openers;
use super::path::{Temporaries, WriterId};
use super::quarantine_dir::Quarantine;
use super::recover::ObjectDir;
use super::root::Root;
use super::writers::WriterLock;
use crate::key::ObjectKey;
use crate::l2::StoreRequest;
use crate::log::LogLevel;

/// One open backend, without its threads.
pub struct Core {
    pub root: Root,
    /// Loads and stores that no thread of the engine has begun.
    pub backlog: Backlog,
    /// Set once, when the engine has started.
    pub engine: OnceLock<Arc<dyn IoEngine>>,
    pub free_space: FreeSpace,
    pub eviction: BackgroundEviction,
    pub directories: Directories,
    pub quarantine: Quarantine,
    pub descriptors: Descriptors,
    pub writer: WriterId,
    pub temporaries: Temporaries,
    /// Shows other processes that this writer lives; none where the file system has no locks.
    pub writer_lock: Mutex<Option<WriterLock>>,
    pub cleanup_every: Duration,
    /// Directories that recovery could not list.
    pub unlisted: Mutex<Vec<ObjectDir>>,
    /// The error with which every read fails.
    #[cfg(test)]
    pub reads_fail_with: Mutex<Option<i32>>,
}

impl Core {
    /// A backend of what `index` was restored from.
    pub fn new(
        options: &FsOptions,
        dirfd: OwnedFd,
        direct: bool,
        index: Index,
        openers: Openers,
        names: Temporaries,
        writer_lock: Option<WriterLock>,
    ) -> Core {
        Core {
            root: Root::new(options, dirfd, direct, index, openers),
            backlog: Backlog::default(),
            engine: OnceLock::new(),
            free_space: FreeSpace::new(options.min_free),
            eviction: BackgroundEviction::default(),
            directories: Directories::new(options.count_directories),
            quarantine: Quarantine::default(),
            descriptors: Descriptors::default(),
            writer: WriterId::this(),
            writer_lock: Mutex::new(writer_lock),
            temporaries: names,
            cleanup_every: options.cleanup_every,
            unlisted: Mutex::default(),
            #[cfg(test)]
            reads_fail_with: Mutex::default(),
        }
    }

    /// Wakes the engine for `count` new requests.
    pub fn wake(&self, count: usize) {
        if let Some(engine) = self.engine.get() {
            engine.wake(count);
        }
    }

    /// Gives stores that waited in the index back to the engine.
    pub fn requeue(&self, stores: Vec<StoreRequest>) {
        if !stores.is_empty() {
            let count = stores.len();
            self.backlog.requeue(stores);
            self.wake(count);
        }
    }

    /// Takes one pin off each key, and starts the stores that waited for one of them.
    pub fn unpin(&self, keys: &[ObjectKey]) {
        let stores = self.root.index(|index| index.unpin(keys));
        self.requeue(stores);
    }

    /// Whether to try again what failed with `error`: there was no descriptor, and time is left to wait for one.
    pub fn waits_for_descriptor(&self, error: &io::Error, patience: Instant) -> bool {
        let waits = is_out_of_descriptors(error) && Instant::now() < patience && !self.backlog.is_closed();
        if waits {
            self.root.log.often("fs descriptors", LogLevel::Warn, || {
                let limit = getrlimit(Resource::Nofile).current.map_or("none".to_owned(), |limit| limit.to_string());
                format!(
                    "fs: loads and stores wait for a descriptor ({error}; this process may have {limit}): \
                     raise its limit (ulimit -n, LimitNOFILE=)"
                )
            });
        }
        waits
    }
}
