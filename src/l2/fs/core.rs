//! What both engines do with an object before its bytes move and after.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::frame::{BLOCK, Frame, Spare, is_small};
use super::index::{Admit, Index, Opening, Reservation};
use super::keeper::{Job, Keeper};
use super::options::FsOptions;
use super::path::{self, Temporaries};
use super::queue::Queue;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::object::Header;
use crate::l2::{Load, LoadSink, Reply, Store, Stored};
use crate::log::Log;

/// Moves bytes between files and buffers on threads of its own, taking its work from the core's queue.
pub trait Engine: Send + Sync {
    /// There are `count` more pieces of work.
    fn wake(&self, count: usize);
    /// Ends its threads. The queue is empty and stopped.
    fn join(&self);
}

/// Why bytes did not move.
pub enum Fault {
    /// The system call `.0` failed.
    Io(&'static str, io::Error),
    /// The file ended after this many bytes.
    Short(u64),
}

/// A load under way.
pub struct Reading {
    pub path: String,
    key: ObjectKey,
    /// Names the object, should another one take its key.
    born: u32,
    sink: Arc<dyn LoadSink>,
    index: u32,
}

/// A store under way.
pub struct Writing {
    pub path: String,
    /// Its name until it is whole.
    pub temporary: String,
    /// Objects to unlink first.
    pub victims: Vec<String>,
    key: ObjectKey,
    reply: Reply<Stored>,
    reservation: Reservation,
}

/// The state that the backend's threads share.
pub struct Core {
    pub dir: PathBuf,
    pub log: Log,
    pub dirfd: OwnedFd,
    /// Files are opened for direct I/O.
    pub direct: bool,
    /// Others may write to the directory.
    pub shared: bool,
    pub queue: Queue,
    pub keeper: Keeper,
    pub quarantined: AtomicU64,
    pub engine: OnceLock<Arc<dyn Engine>>,
    index: Mutex<Index>,
    temporaries: Temporaries,
    failing: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Core {
    pub fn new(options: &FsOptions, dirfd: OwnedFd, direct: bool, index: Index, names: Temporaries) -> Core {
        Core {
            dir: options.dir.clone(),
            log: options.log.clone(),
            dirfd,
            direct,
            shared: options.shared,
            queue: Queue::default(),
            keeper: Keeper::default(),
            quarantined: AtomicU64::new(0),
            engine: OnceLock::new(),
            index: Mutex::new(index),
            temporaries: names,
            failing: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// Runs `work` under the index's lock.
    pub fn index<T>(&self, work: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.lock();
        let result = work(&mut index);
        let shrink = index.begin_shrinking();
        drop(index);
        if shrink {
            self.keeper.insist(Job::Shrink);
        }
        result
    }

    /// Gives stores that waited in the index back to the engine.
    pub fn again(&self, stores: Vec<Store>) {
        if !stores.is_empty() {
            let count = stores.len();
            self.queue.again(stores);
            self.wake(count);
        }
    }

    /// Tells the engine of `count` new pieces of work.
    pub fn wake(&self, count: usize) {
        if let Some(engine) = self.engine.get() {
            engine.wake(count);
        }
    }

    /// An error of the file system while doing `what` to the relative path `path`.
    pub fn error(&self, what: &str, path: &str, error: &io::Error) -> Error {
        let error = Error::io(format!("{what} {}", self.dir.join(path).display()), error);
        *self.failure.lock() = Some(error.message.clone());
        self.failing.store(true, Ordering::Release);
        error
    }

    fn succeeded(&self) {
        if self.failing.swap(false, Ordering::AcqRel) {
            *self.failure.lock() = None;
        }
    }

    /// What the last transfer failed with, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Prepares a load, or answers it.
    pub fn begin_load(&self, load: Load, spare: &mut Spare) -> Option<(Reading, Frame)> {
        let Load { key, buffer, checksum, deadline, sink, index } = load;
        let mut reading = Reading { path: path::object(&key), key, born: 0, sink, index };
        let checked = in_time(deadline, "load").and_then(|()| self.index(|index| index.begin_load(&key, buffer.len())));
        let error = match checked {
            Ok(Opening { born, known, beside }) => match Frame::new(buffer, spare, self.direct) {
                Ok(mut frame) => {
                    reading.born = born;
                    // What is known stands for the seal only if the payload's sum tells that it is still the same object. Files that
                    // stand beside each other are read whole: of those the kernel makes one reading, and headers cost less than gaps.
                    if let Some(known) = known.filter(|_| checksum && !(beside && self.direct)) {
                        frame.know(&key, known);
                    }
                    return Some((reading, frame));
                }
                Err((buffer, error)) => (buffer, Error::io("a buffer for an unaligned load", &error)),
            },
            Err(error) => (buffer, error),
        };
        self.answer_load(reading, error.0, Err(error.1));
        None
    }

    /// Answers a load.
    pub fn end_load(&self, reading: Reading, frame: Frame, outcome: std::result::Result<(), Fault>, spare: &mut Spare) {
        let wanted = frame.file_bytes();
        let fault = match outcome {
            Ok(()) => {
                self.succeeded();
                let read = frame.start() == 0;
                let (header, buffer) = frame.opened(spare);
                let size = buffer.len() as u64;
                if read
                    && is_small(size)
                    && let Some(known) = header.known(&reading.key, size)
                {
                    self.index(|index| {
                        if index.is_still(&reading.key, reading.born) {
                            index.know(&reading.key, &known);
                        }
                    });
                }
                return self.answer_load(reading, buffer, Ok(header));
            }
            Err(fault) => fault,
        };
        let buffer = frame.abandoned(spare);
        let file = self.dir.join(&reading.path);
        let error = match fault {
            // Whatever is under the key now is another object.
            _ if !self.index(|index| index.is_still(&reading.key, reading.born)) => {
                Error::new(KVKEEP_ERR_NOT_FOUND, format!("{} was deleted while it was read", file.display()))
            }
            Fault::Io(what, error) if error.kind() == io::ErrorKind::NotFound => {
                self.index(|index| index.lost(&reading.key));
                Error::new(
                    KVKEEP_ERR_NOT_FOUND,
                    format!("{what} {}: {error} (removed by another process)", file.display()),
                )
            }
            Fault::Io(what, error) => {
                if is_unreadable(&error) {
                    self.quarantine(reading.key);
                }
                self.error(what, &reading.path, &error)
            }
            Fault::Short(got) => {
                self.quarantine(reading.key);
                let why = format!("{} ends after {got} of {wanted} bytes", file.display());
                Error::new(KVKEEP_ERR_CORRUPT, why)
            }
        };
        self.answer_load(reading, buffer, Err(error));
    }

    fn answer_load(&self, reading: Reading, buffer: Buffer, result: Result<Header>) {
        reading.sink.loaded(reading.index, buffer, result);
        self.queue.answered();
    }

    /// Takes an object out of sight at once, and has the keeper move it away.
    pub fn quarantine(&self, key: ObjectKey) {
        if self.index(|index| index.banish(&key)) {
            self.keeper.insist(Job::Quarantine(key));
        }
    }

    /// Prepares a store, or answers it, or leaves it in the index to come back.
    pub fn begin_store(&self, store: Store, spare: &mut Spare) -> Option<(Writing, Frame)> {
        if let Err(error) = in_time(store.deadline, "store") {
            self.answer_store(store, Err(error));
            return None;
        }
        let (store, reservation) = match self.index(|index| index.admit(store)) {
            Admit::Go(store, reservation) => (store, reservation),
            Admit::Parked => return None,
            Admit::Already(store) => {
                self.answer_store(store, Ok(Stored::Already));
                return None;
            }
            Admit::Refused(store, error) => {
                self.answer_store(store, Err(error));
                return None;
            }
        };
        let Store { key, header, buffer, reply, .. } = store;
        let writing = Writing {
            path: path::object(&key),
            temporary: format!("{}/{}", path::shard(&key), self.temporaries.name()),
            victims: reservation.victims.iter().map(path::object).collect(),
            key,
            reply,
            reservation,
        };
        match Frame::new(buffer, spare, self.direct) {
            Ok(mut frame) => {
                frame.seal(&header);
                Some((writing, frame))
            }
            Err((buffer, error)) => {
                let error = Error::io("a buffer for an unaligned store", &error);
                self.finish_store(writing, buffer, Err(error));
                None
            }
        }
    }

    /// Whether another process stored the object already.
    pub fn is_stored(&self, writing: &Writing, frame: &Frame) -> bool {
        self.shared && self.is_whole(writing, frame)
    }

    /// The victims of a store are unlinked.
    pub fn settle(&self, writing: &mut Writing) {
        if !writing.victims.is_empty() {
            writing.victims.clear();
            let stores = self.index(|index| index.settle(&mut writing.reservation));
            self.again(stores);
        }
    }

    /// Makes the directory that a store's file goes to.
    pub fn make_shard(&self, writing: &Writing) -> io::Result<()> {
        path::make_directory(&self.dir.join(path::shard(&writing.key)))
    }

    /// Concludes a store whose file was renamed with the result `renamed`, without replacing.
    pub fn conclude(&self, writing: Writing, frame: Frame, renamed: io::Result<()>, spare: &mut Spare) {
        let outcome =
            self.renamed(&writing, &frame, renamed).map_err(|error| self.error("publishing", &writing.path, &error));
        self.end_store(writing, frame, outcome, spare);
    }

    fn renamed(&self, writing: &Writing, frame: &Frame, renamed: io::Result<()>) -> io::Result<Stored> {
        let Err(error) = renamed else { return Ok(Stored::Written) };
        match error.raw_os_error() {
            Some(libc::EEXIST) if self.is_whole(writing, frame) => Ok(Stored::Already),
            // Either what is there is no object, or the file system cannot rename without replacing. Objects of one key
            // are alike, so replacing harms nobody.
            Some(libc::EEXIST | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                renameat(&self.dirfd, writing.temporary.as_str(), &self.dirfd, writing.path.as_str())?;
                Ok(Stored::Written)
            }
            _ => Err(error),
        }
    }

    fn is_whole(&self, writing: &Writing, frame: &Frame) -> bool {
        statat(&self.dirfd, writing.path.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_size as u64 == frame.file_bytes())
    }

    /// Renames without replacing.
    pub fn rename(&self, writing: &Writing) -> io::Result<()> {
        let (from, to) = (writing.temporary.as_str(), writing.path.as_str());
        Ok(renameat_with(&self.dirfd, from, &self.dirfd, to, RenameFlags::NOREPLACE)?)
    }

    /// Answers a store.
    pub fn end_store(&self, writing: Writing, frame: Frame, outcome: Result<Stored>, spare: &mut Spare) {
        match &outcome {
            Ok(Stored::Written) => self.succeeded(),
            // Best effort: what stays is removed as stale by a later open.
            Ok(Stored::Already) | Err(_) => {
                let _ = unlinkat(&self.dirfd, writing.temporary.as_str(), AtFlags::empty());
            }
        }
        self.finish_store(writing, frame.abandoned(spare), outcome);
    }

    fn finish_store(&self, mut writing: Writing, payload: Buffer, outcome: Result<Stored>) {
        // Where the store failed before it unlinked its victims: they are out of the index and must not stay on disk, nor be
        // forgotten where they do.
        let mut stay = Vec::new();
        if !writing.victims.is_empty() {
            let mut paths = writing.victims.iter();
            let unlink = |path: &String| unlinkat(&self.dirfd, path.as_str(), AtFlags::empty());
            let gone = |path| matches!(unlink(path), Ok(()) | Err(Errno::NOENT));
            stay.extend(writing.reservation.victims.extract_if(.., |_| !paths.next().is_none_or(gone)));
        }
        let stores = self.index(|index| index.finish(writing.reservation, outcome.as_ref().ok()));
        stay.iter().for_each(|victim| self.stays(victim));
        // Not before: whoever deletes the object as soon as nobody writes it must find it in the index.
        drop(payload);
        self.again(stores);
        writing.reply.send(outcome);
        self.queue.answered();
    }

    fn answer_store(&self, store: Store, outcome: Result<Stored>) {
        store.answer(outcome);
        self.queue.answered();
    }
}

/// Bytes of payload of a file, if it is long enough to be an object.
pub fn payload_of(file_bytes: u64) -> Option<u64> {
    file_bytes.checked_sub(BLOCK as u64)
}

/// Whether it is the file that cannot be read, now and later, not the process or the machine that is short of something.
fn is_unreadable(error: &io::Error) -> bool {
    use libc::{EACCES, EBADMSG, EIO, EISDIR, ELOOP, ENXIO, EPERM, EUCLEAN};
    matches!(error.raw_os_error(), Some(EACCES | EBADMSG | EIO | EISDIR | ELOOP | ENXIO | EPERM | EUCLEAN))
}

fn in_time(deadline: Instant, what: &str) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Error::new(KVKEEP_ERR_TIMEOUT, format!("the deadline passed before the {what} began")))
}
