//! The `fs` backend: one file per object in a directory, on a local disk or a shared file system.
//!
//! A file is a block of 4096 bytes that begins with the header, then the payload ([`file_format`]). It is written under a
//! temporary name and renamed when it is whole. A process that dies at any instant leaves either an object or rubbish that the
//! next open removes. Nothing is synced: a power cut may cost the newest objects, and the header's checksums find what it tore.
//!
//! One of two engines moves the bytes ([`engine`]): io_uring or threads. [`object_io`] and [`store`] do what both need before and
//! after. The [`index`] answers lookups without I/O. [`maintenance`] is a thread for work that needs I/O but moves no payload.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::{Log, LogLevel};
use crate::policy;
use crate::threads;

mod cleanup;
mod descriptor_wait;
mod directories;
mod engine;
mod failures;
mod file_format;
mod foreign;
mod free_space;
mod index;
pub mod inspect;
mod maintenance;
mod object_io;
mod objects;
mod options;
mod path;
mod recover;
mod shrink;
mod store;
#[cfg(test)]
mod tests;
mod writers;

pub use options::{EngineKind, FsOptions, MinFree};

use self::engine::thread_pool::Pool;
use self::engine::uring::Uring;
use self::file_format::BLOCK;
use self::foreign::Sweep;
use self::index::Index;
use self::maintenance::{Deletion, Job, Keeper};
use self::object_io::{Core, Engine};
use self::path::{Temporaries, Writer};

/// A directory of objects.
pub struct Fs {
    core: Arc<Core>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    engine: &'static str,
    uring_refused: bool,
}

impl Fs {
    /// Opens the directory that the URL `fs://<path>?<params>` names.
    pub fn open_url(path: &str, params: &[(String, String)], log: &Log) -> Result<Arc<Fs>> {
        Fs::open(FsOptions { log: log.clone(), ..FsOptions::from_url(path, params)? })
    }

    /// Opens a directory: finds what is in it and starts the threads. What is above its capacity is evicted afterwards,
    /// oldest first, in the background. Blocks.
    pub fn open(options: FsOptions) -> Result<Arc<Fs>> {
        let dir = options.dir.as_path();
        let policy = policy::by_name(&options.policy).ok_or_else(|| {
            Error::invalid(format!("fs: no policy '{}'; there are {}", options.policy, policy::NAMES.join(", ")))
        })?;
        let at = |what: &'static str| move |error| Error::io(format!("{what} {}", dir.display()), &error);
        path::make_directory(dir).map_err(at("making"))?;
        let dirfd: OwnedFd = std::fs::File::open(dir).map_err(at("opening"))?.into();
        let writer = Writer::this();
        let names = Temporaries::new(&writer);
        let tmp = path::make_directory(&dir.join(path::TMP));
        let probed = format!("{}/{}", path::TMP, names.name());
        let direct = tmp.and_then(|()| Ok(probe(&dirfd, &probed, options.direct)?));

        let mut index = Index::new(policy, options.capacity);
        let mut scan = recover::scan(dir, &writer)?;
        index.restore(std::mem::take(&mut scan.seen));
        let core = Arc::new(Core::new(&options, dirfd, *direct.as_ref().unwrap_or(&false), index, names));
        core.set_unlisted(scan);
        core.tidy();
        core.measure_directories();
        if let Err(error) = direct {
            let error = core.error("writing to", "", &error);
            core.log.say(LogLevel::Warn, || format!("fs: objects are loaded, but none is stored: {error}"));
        }
        let (engine, uring_refused) = start(&core, &options)?;
        let fs = Fs { core: Arc::clone(&core), keeper: Mutex::new(None), engine, uring_refused };
        let keeper = threads::spawn("kvkeep-fs-keep", move || Keeper::run(&core));
        match keeper {
            Ok(thread) => *fs.keeper.lock() = Some(thread),
            Err(error) => return Err(Error::io("starting a thread of the fs backend", &error)),
        }
        fs.core.log.say(LogLevel::Info, || {
            let usage = fs.usage();
            format!("fs: {} has {} objects, {} bytes (engine {})", dir.display(), usage.objects, usage.bytes, fs.engine)
        });
        Ok(Arc::new(fs))
    }

    /// The engine in use: `uring` or `pool`.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Whether files are read and written around the page cache.
    pub fn is_direct(&self) -> bool {
        self.core.direct
    }

    /// Objects quarantined since it was opened.
    pub fn quarantined(&self) -> u64 {
        self.core.quarantined.load(Ordering::Relaxed)
    }
}

/// Starts the engine, and gives its name and whether it stands in for io_uring, which the kernel refuses.
fn start(core: &Arc<Core>, options: &FsOptions) -> Result<(&'static str, bool)> {
    let uring = || Uring::start(core, options.threads, options.depth).map(|uring| uring as Arc<dyn Engine>);
    let pool = || Pool::start(core, options.threads).map(|pool| pool as Arc<dyn Engine>);
    let (engine, name, refused) = match options.engine {
        EngineKind::Pool => (pool()?, "pool", false),
        EngineKind::Uring => match uring() {
            Ok(uring) => (uring, "uring", false),
            Err(error) => {
                let why = format!("fs: io_uring cannot be used here ({error}); open with engine=pool or engine=auto");
                return Err(Error::new(KVKEEP_ERR_UNSUPPORTED, why));
            }
        },
        EngineKind::Auto => {
            match uring() {
                Ok(uring) => (uring, "uring", false),
                Err(error) => {
                    core.log.say(LogLevel::Warn, || {
                    // Kernels before 5.12 count the memory of a ring as locked.
                    let locked = error.raw_os_error() == Some(libc::ENOMEM);
                    let remedy = if locked { "the limit on locked memory (ulimit -l)" } else { "seccomp, io_uring_disabled" };
                    format!("fs: io_uring is refused here ({error}): threads read and write instead, slower; see {remedy}")
                });
                    (pool()?, "pool", true)
                }
            }
        }
    };
    // Set once: the core was just made.
    let _ = core.engine.set(engine);
    Ok((name, refused))
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
        if self.core.queue.is_closed() {
            return found.fill(Found::Absent);
        }
        let other = if self.core.shared { Found::Unknown } else { Found::Absent };
        self.core.index(|index| index.lookup(keys, found, other));
    }

    fn lookup(&self, lookup: LookupRequest) {
        if let Err((Job::Lookup(lookup), error)) = self.core.keeper.offer(Job::Lookup(lookup)) {
            lookup.reply.send(Err(error));
        }
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.core.unpin(keys);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        let count = loads.len();
        match self.core.queue.accept_loads(loads) {
            Ok(()) => self.core.wake(count),
            Err((loads, error)) => {
                for load in loads {
                    load.sink.loaded(load.index, load.buffer, Err(error.clone()));
                }
            }
        }
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        let count = stores.len();
        match self.core.queue.accept_stores(stores) {
            Ok(()) => self.core.wake(count),
            Err((stores, error)) => stores.into_iter().for_each(|store| store.answer(Err(error.clone()))),
        }
    }

    fn touch(&self, keys: &[ObjectKey]) {
        let waiting = self.core.index(|index| {
            index.touch(keys);
            index.dirty()
        });
        self.core.keeper.used(waiting);
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        if let Err(error) = self.core.keeper.admits() {
            return reply.send(Err(error));
        }
        let deletion = Deletion::new(reply);
        self.core.index(|index| keys.iter().for_each(|key| index.doom(key)));
        let departures = keys.into_iter().map(|key| (key, Arc::clone(&deletion))).collect();
        self.core.keeper.insist(Job::Unlink(departures));
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        if let Err((Job::Sweep(sweep), error)) = self.core.keeper.offer(Job::Sweep(Sweep::new(space, reply))) {
            sweep.refuse(error);
        }
    }

    fn quarantine(&self, key: ObjectKey) {
        self.core.quarantine(key);
    }

    fn list(&self, space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        self.core.index(|index| index.list(space))
    }

    fn set_observer(&self, observer: Observer) {
        self.core.index(|index| index.observe(observer));
    }

    fn usage(&self) -> Usage {
        let (short, io_uring_refused) = (self.core.space.is_short(), u64::from(self.uring_refused));
        Usage { short, io_uring_refused, ..self.core.index(|index| index.usage()) }
    }

    fn health(&self) -> Health {
        let notes: Vec<String> = [self.core.space.note(), self.core.shrinking.note()].into_iter().flatten().collect();
        match self.core.condition.health() {
            Health::Good if !notes.is_empty() => Health::Noted(notes.join("; ")),
            health => health,
        }
    }

    fn close(&self) {
        if !self.core.queue.close() {
            return;
        }
        self.core.queue.stop();
        if let Some(engine) = self.core.engine.get() {
            engine.join();
        }
        self.core.keeper.close();
        if let Some(thread) = self.keeper.lock().take() {
            // A thread that panicked was reported by the panic.
            let _ = thread.join();
        }
        drop(self.core.claim.lock().take());
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.close();
    }
}
