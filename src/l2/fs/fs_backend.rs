//! The `fs` backend as its callers see it: opening a directory, and the requests of the trait.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::arena::Buffer;
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::{Log, LogLevel};
use crate::space_names::SpaceNames;
use crate::threads;

use super::core::Core;
use super::engine::start;
use super::file_format::BLOCK;
use super::fs_options::{Durability, FsOptions};
use super::index::Index;
use super::openers::Openers;
use super::path::{self, Temporaries, WriterId};
use super::tasks::{DeleteBatch, ForeignSweep, MaintenanceTask};
use super::writers::WriterLock;
use super::{cleanup, durability, maintenance, recover};

/// A directory of objects.
pub struct Fs {
    pub(super) core: Arc<Core>,
    maintenance: Mutex<Option<JoinHandle<()>>>,
    engine: &'static str,
    uring_refused: bool,
}

impl Fs {
    /// Opens the directory that the URL `fs://<path>?<params>` names.
    pub fn open_url(path: &str, params: &[(String, String)], log: &Log) -> Result<Arc<Fs>> {
        Fs::open(FsOptions { log: log.clone(), ..FsOptions::from_url(path, params)? })
    }

    /// Opens a directory: recovers its objects and starts the threads. The oldest objects above its capacity are evicted afterwards, in
    /// the background. Blocks.
    pub fn open(options: FsOptions) -> Result<Arc<Fs>> {
        let dir = options.dir.as_path();
        let policy = options.policy()?;
        let at = |what: &'static str| move |error| Error::io(format!("{what} {}", dir.display()), &error);
        path::make_directory(dir).map_err(at("making"))?;
        let dirfd: OwnedFd = std::fs::File::open(dir).map_err(at("opening"))?.into();
        let writer = WriterId::this();
        let names = Temporaries::new(&writer);
        let tmp = path::make_tmp(dir);
        let probed = format!("{}/{}", path::TMP, names.name());
        let direct = tmp.and_then(|()| Ok(probe(&dirfd, &probed, options.direct)?));

        // Before the directory is listed: what a later opener stores may be missing in the list.
        let writer_lock = WriterLock::new(dir, &names).ok();
        let openers = Openers::new(dir, options.shared);
        let alone = openers.find_out(dir, &names);
        let mut index = Index::new(policy, options.capacity);
        let mut recovered = recover::recover(dir, &writer)?;
        if options.durability == Durability::Power {
            // What was found counts as stored, whatever wrote it.
            durability::sync_everything(&dirfd).map_err(at("syncing the file system of"))?;
        }
        index.restore(std::mem::take(&mut recovered.found));
        let direct_io = *direct.as_ref().unwrap_or(&false);
        let core = Arc::new(Core::new(&options, dirfd, direct_io, index, openers, names, writer_lock));
        cleanup::note_unlisted(&core, recovered);
        cleanup::note_alone(&core, alone);
        cleanup::run(&core);
        core.directories.measure_all(&core.root);
        if let Err(error) = direct {
            let error = core.root.error("writing to", "", &error);
            core.root.log.write(LogLevel::Warn, || format!("fs: objects are loaded, but none is stored: {error}"));
        }
        let (engine, uring_refused) = start::start(&core, &options)?;
        let fs = Fs { core: Arc::clone(&core), maintenance: Mutex::new(None), engine, uring_refused };
        let maintenance = threads::spawn("kvkeep-fs-keep", move || maintenance::run(&core));
        match maintenance {
            Ok(thread) => *fs.maintenance.lock() = Some(thread),
            Err(error) => return Err(Error::io("starting a thread of the fs backend", &error)),
        }
        fs.core.root.log.write(LogLevel::Info, || {
            let usage = fs.usage();
            let bound =
                if options.capacity == 0 { ", no capacity=: it may fill the disk but for min_free=" } else { "" };
            format!(
                "fs: {} has {} objects, {} bytes (engine {}){bound}",
                dir.display(),
                usage.objects,
                usage.bytes,
                fs.engine
            )
        });
        Ok(Arc::new(fs))
    }

    /// The engine in use: `uring` or `pool`.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Whether files are read and written around the page cache.
    pub fn is_direct(&self) -> bool {
        self.core.root.direct
    }

    /// Objects quarantined since it was opened.
    pub fn quarantined(&self) -> u64 {
        self.core.quarantine.moved()
    }
}

/// Checks that files can be made, and whether direct I/O works on them.
fn probe(dirfd: &OwnedFd, name: &str, direct: bool) -> rustix::io::Result<bool> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let open = |more| openat(dirfd, name, flags | more, Mode::from_raw_mode(path::FILE_MODE));
    drop(open(OFlags::empty())?);
    // A file system that is full refuses the block, but not because it is written directly.
    let refused = |result| matches!(result, Err(Errno::INVAL | Errno::OPNOTSUPP));
    let works = direct
        && open(OFlags::DIRECT).is_ok_and(|file| {
            Buffer::heap(BLOCK).is_ok_and(|block| !refused(rustix::io::pwrite(&file, block.bytes(), 0)))
        });
    unlinkat(dirfd, name, AtFlags::empty())?;
    Ok(works)
}

impl Backend for Fs {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn lookup_cached(&self, keys: &[ObjectKey], found: &mut [Found]) {
        if self.core.backlog.is_closed() {
            return found.fill(Found::Absent);
        }
        let other = if self.core.root.openers.may_store() { Found::Unknown } else { Found::Absent };
        self.core.root.index(|index| index.lookup(keys, found, other));
    }

    fn lookup(&self, lookup: LookupRequest) {
        if let Err((MaintenanceTask::Lookup(lookup), error)) =
            self.core.root.tasks.offer(MaintenanceTask::Lookup(lookup))
        {
            lookup.reply.send(Err(error));
        }
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.core.unpin(keys);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        let count = loads.len();
        match self.core.backlog.accept_loads(loads) {
            Ok(()) => self.core.wake(count),
            Err((loads, error)) => {
                for load in loads {
                    load.sink.loaded(load.index, load.buffer, Err(error.clone()));
                }
            }
        }
    }

    fn store(&self, mut stores: Vec<StoreRequest>) {
        // Here, so that the threads that move bytes make no checksums.
        for store in &mut stores {
            store.seal();
        }
        let count = stores.len();
        match self.core.backlog.accept_stores(stores) {
            Ok(()) => self.core.wake(count),
            Err((stores, error)) => stores.into_iter().for_each(|store| store.answer(Err(error.clone()))),
        }
    }

    fn touch(&self, keys: &[ObjectKey]) {
        let waiting = self.core.root.index(|index| {
            index.touch(keys);
            index.dirty()
        });
        self.core.root.tasks.used(waiting);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        if let Err(error) = self.core.root.tasks.admits() {
            return reply.send(Err(error));
        }
        let batch = DeleteBatch::new(reply);
        self.core.root.index(|index| keys.iter().for_each(|key| index.begin_delete(key)));
        let pending = keys.into_iter().map(|key| (key, Arc::clone(&batch))).collect();
        self.core.root.tasks.push(MaintenanceTask::Unlink(pending));
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        if let Err((MaintenanceTask::Sweep(sweep), error)) =
            self.core.root.tasks.offer(MaintenanceTask::Sweep(ForeignSweep::new(space, reply)))
        {
            sweep.refuse(error);
        }
    }

    fn quarantine(&self, key: ObjectKey) {
        self.core.quarantine(key);
    }

    fn name_space(&self, space: SpaceTag, names: &SpaceNames) {
        self.core.root.space_files.name(&self.core.root.tasks, space, names);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.core.root.index(|index| index.list(space))
    }

    fn set_observer(&self, observer: Observer) {
        self.core.root.index(|index| index.observe(observer));
    }

    fn usage(&self) -> Usage {
        let (short, io_uring_refused) = (self.core.free_space.is_short(), u64::from(self.uring_refused));
        Usage { short, io_uring_refused, ..self.core.root.index(|index| index.usage()) }
    }

    fn health(&self) -> Health {
        let notes: Vec<String> =
            [self.core.free_space.note(), self.core.eviction.note()].into_iter().flatten().collect();
        match self.core.root.failures.health() {
            Health::Good if !notes.is_empty() => Health::Noted(notes.join("; ")),
            health => health,
        }
    }

    fn close(&self) {
        if !self.core.backlog.close() {
            return;
        }
        self.core.backlog.stop();
        if let Some(engine) = self.core.engine.get() {
            engine.join();
        }
        self.core.root.tasks.close();
        if let Some(thread) = self.maintenance.lock().take() {
            // A thread that panicked was reported by the panic.
            let _ = thread.join();
        }
        self.core.root.openers.close();
        drop(self.core.writer_lock.lock().take());
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.close();
    }
}
