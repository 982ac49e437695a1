//! The engine for where io_uring is not allowed: threads that read and write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, fallocate, ftruncate, openat, unlinkat};
use rustix::io::{Errno, preadv, pwritev};

use super::IoEngine;
use super::backlog::BacklogItem;
use super::syncer::Syncer;
use crate::error::{Error, Result};
use crate::l2::fs::core::Core;
use crate::l2::fs::failures::{EVICTING, IoFailure, OPENING, READING};
use crate::l2::fs::file_buffers::{FileBuffers, Spare};
use crate::l2::fs::file_format::BLOCK;
use crate::l2::fs::path;
use crate::l2::fs::store::ActiveStore;
use crate::l2::{LoadRequest, StoreRequest, Stored};
use crate::threads;

/// Threads by default: small objects want many reads under way.
const THREADS: usize = 16;
/// Bytes of one system call.
const PIECE: u64 = 2 << 20;
/// Bytes under way at once; more only makes each wait longer.
const BYTES_MAX: u64 = 16 << 20;

/// Bounds the bytes under way.
struct ByteGate {
    free: Mutex<u64>,
    freed: Condvar,
}

impl ByteGate {
    fn pass<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> T {
        let mut free = self.free.lock();
        while *free < bytes {
            self.freed.wait(&mut free);
        }
        *free -= bytes;
        drop(free);
        let result = work();
        *self.free.lock() += bytes;
        self.freed.notify_all();
        result
    }
}

/// The threads, and the core that they serve.
pub struct ThreadPool {
    core: std::sync::Weak<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    syncer: Option<Arc<Syncer>>,
}

impl ThreadPool {
    /// Starts `threads` threads, or the default for 0.
    pub fn start(core: &Arc<Core>, syncer: &Option<Arc<Syncer>>, threads: usize) -> Result<Arc<ThreadPool>> {
        let gate = Arc::new(ByteGate { free: Mutex::new(BYTES_MAX), freed: Condvar::new() });
        let pool = Arc::new(ThreadPool {
            core: Arc::downgrade(core),
            threads: Mutex::new(Vec::new()),
            syncer: syncer.clone(),
        });
        for number in 0..if threads == 0 { THREADS } else { threads } {
            let (theirs, gate, syncer) = (Arc::clone(core), Arc::clone(&gate), syncer.clone());
            let thread = threads::spawn(&format!("kvkeep-fs-{number}"), move || run(&theirs, &gate, syncer.as_deref()));
            match thread {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(error) => {
                    core.backlog.stop();
                    pool.join();
                    return Err(Error::io("starting a thread of the fs backend", &error));
                }
            }
        }
        Ok(pool)
    }
}

impl IoEngine for ThreadPool {
    fn wake(&self, count: usize) {
        if let Some(core) = self.core.upgrade() {
            core.backlog.notify(count.min(self.threads.lock().len()));
        }
    }

    fn join(&self) {
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked was reported by the panic.
            let _ = thread.join();
        }
        if let Some(syncer) = &self.syncer {
            syncer.join();
        }
    }
}

fn run(core: &Core, gate: &ByteGate, syncer: Option<&Syncer>) {
    let mut spare = Spare::new();
    while let Some(task) = core.backlog.wait() {
        match task {
            BacklogItem::Load(load) => self::load(core, gate, load, &mut spare),
            BacklogItem::Store(store) => self::store(core, gate, syncer, store, &mut spare),
        }
    }
}

fn load(core: &Core, gate: &ByteGate, load: LoadRequest, spare: &mut Spare) {
    let Some((active, mut buffers)) = core.begin_load(load, spare) else { return };
    let outcome = open(core, &active.path, OFlags::RDONLY, active.patience)
        .map_err(|error| IoFailure::Io(OPENING, error.into()))
        .and_then(|file| {
            let result = read(gate, &file, &mut buffers);
            if buffers.mistaken(result.is_ok()) { read(gate, &file, &mut buffers) } else { result }
        });
    core.descriptors.freed();
    core.end_load(active, buffers, outcome, spare);
}

fn open(core: &Core, path: &str, flags: OFlags, patience: Instant) -> rustix::io::Result<OwnedFd> {
    let direct = if core.root.direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = flags | direct | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        match openat(&core.root.dirfd, path, flags, Mode::from_raw_mode(path::FILE_MODE)) {
            Err(error) if core.waits_for_descriptor(&error.into(), patience) => core.descriptors.wait(),
            result => return result,
        }
    }
}

fn read(gate: &ByteGate, file: &impl AsFd, buffers: &mut FileBuffers) -> std::result::Result<(), IoFailure> {
    let (mut at, span, end) = (buffers.start(), buffers.span(), buffers.file_bytes());
    while at < end {
        let to = span.min(at + PIECE);
        match gate.pass(to - at, || preadv(file, &mut buffers.slices_mut(at, to), at)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(IoFailure::Io(READING, error.into())),
            Ok(count) => {
                at += count as u64;
                if count == 0 || (at < end && !at.is_multiple_of(BLOCK as u64)) {
                    return Err(IoFailure::Short(at));
                }
            }
        }
    }
    Ok(())
}

fn store(core: &Core, gate: &ByteGate, syncer: Option<&Syncer>, store: StoreRequest, spare: &mut Spare) {
    let mut next = core.begin_store(store, spare);
    if let Some((active, buffers)) = next.take_if(|(active, buffers)| core.is_stored(active, buffers)) {
        match syncer {
            Some(syncer) => syncer.take(active, buffers, None),
            None => core.end_store(active, buffers, Ok(Stored::Already), spare),
        }
    }
    while let Some((mut active, buffers)) = next {
        next = match (write(core, gate, &mut active, &buffers), syncer) {
            (Ok(file), Some(syncer)) => return syncer.take(active, buffers, Some(file)),
            (Ok(file), None) => {
                drop(file);
                core.descriptors.freed();
                let renamed = core.rename(&mut active);
                core.conclude(active, buffers, renamed, spare)
            }
            (Err((what, error)), _) => {
                core.descriptors.freed();
                core.fail(active, buffers, IoFailure::Io(what, error), spare)
            }
        };
    }
}

type StepResult<T> = std::result::Result<T, (&'static str, io::Error)>;

/// Gives the temporary file, whole.
fn write(core: &Core, gate: &ByteGate, active: &mut ActiveStore, buffers: &FileBuffers) -> StepResult<OwnedFd> {
    for victim in &active.victims {
        match unlinkat(&core.root.dirfd, victim.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err((EVICTING, error.into())),
        }
    }
    core.settle(active);
    let file = create(core, active).map_err(|error| ("creating", error.into()))?;
    let given = fallocate(&file, FallocateFlags::empty(), 0, buffers.span()).map_err(io::Error::from);
    core.allocated(active, given).map_err(|error| ("allocating", error))?;
    let (mut at, span) = (0, buffers.span());
    while at < span {
        let to = span.min(at + PIECE);
        match gate.pass(to - at, || pwritev(&file, &buffers.slices(at, to), at)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(("writing", error.into())),
            Ok(0) => return Err(("writing", Errno::NOSPC.into())),
            Ok(count) => at += count as u64,
        }
    }
    if buffers.file_bytes() < span {
        ftruncate(&file, buffers.file_bytes()).map_err(|error| ("trimming", error.into()))?;
    }
    Ok(file)
}

fn create(core: &Core, active: &ActiveStore) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match open(core, &active.temporary, flags, active.patience) {
        Err(Errno::NOENT) => {
            core.root.make_tmp().map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
            open(core, &active.temporary, flags, active.patience)
        }
        result => result,
    }
}
