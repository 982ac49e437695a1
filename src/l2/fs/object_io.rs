//! The state that the backend's threads share, and what both engines do with an object that they load before its bytes move and after.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use super::descriptor_wait::{Descriptors, is_out_of_descriptors};
use super::directories::Directories;
use super::engine::backlog::Queue;
#[cfg(test)]
use super::failures::READING;
use super::failures::{Condition, OPENING, about, file_error};
use super::file_format::{BLOCK, Frame, Spare, is_small};
use super::free_space::Space;
use super::index::{Index, Opening};
use super::maintenance::{Job, Keeper};
use super::options::FsOptions;
use super::path;
use super::path::{Temporaries, Writer};
use super::recover;
use super::recover::{Place, Scan};
use super::shrink::Shrinking;
use super::writers::Claim;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::object_header::Header;
use crate::l2::{LoadRequest, LoadSink, StoreRequest};
use crate::log::{Log, LogLevel};

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
    /// A descriptor is waited for until then.
    pub patience: Instant,
    key: ObjectKey,
    /// Names the object, should another one take its key.
    born: u32,
    sink: Arc<dyn LoadSink>,
    index: u32,
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
    /// The room that the file system has.
    pub space: Space,
    pub shrinking: Shrinking,
    pub condition: Condition,
    pub descriptors: Descriptors,
    pub writer: Writer,
    pub temporaries: Temporaries,
    /// Tells others that this writer lives; none where the file system has no locks.
    pub claim: Mutex<Option<Claim>>,
    pub directories: Directories,
    pub count_directories: bool,
    pub tidy_every: Duration,
    /// What the scan could not list.
    unlisted: Mutex<Vec<Place>>,
    /// The error with which every read fails.
    #[cfg(test)]
    pub reads_fail_with: Mutex<Option<i32>>,
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
            space: Space::new(options.min_free),
            shrinking: Shrinking::default(),
            condition: Condition::default(),
            descriptors: Descriptors::default(),
            writer: Writer::this(),
            claim: Mutex::new(Claim::new(&options.dir, &names).ok()),
            temporaries: names,
            directories: Directories::default(),
            count_directories: options.count_directories,
            tidy_every: options.tidy_every,
            unlisted: Mutex::default(),
            #[cfg(test)]
            reads_fail_with: Mutex::default(),
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
    pub fn again(&self, stores: Vec<StoreRequest>) {
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

    /// An error of the file system while changing something by doing `what` to the relative path `path`.
    pub fn error(&self, what: &str, path: &str, error: &io::Error) -> Error {
        let error = file_error(what, &self.dir.join(path), error);
        self.condition.write_failed(&error);
        error
    }

    /// An error of the file system while reading something by doing `what` to the relative path `path`.
    pub fn unread(&self, what: &str, path: &str, error: &io::Error) -> Error {
        let error = file_error(what, &self.dir.join(path), error);
        self.condition.read_failed(&error);
        error
    }

    /// Whether to try again what failed with `error`: there was no descriptor, and time is left to wait for one.
    pub fn waits_for_descriptor(&self, error: &io::Error, patience: Instant) -> bool {
        let waits = is_out_of_descriptors(error) && Instant::now() < patience && !self.queue.is_closed();
        if waits {
            self.log.often("fs descriptors", LogLevel::Warn, || {
                let limit = getrlimit(Resource::Nofile).current.map_or("none".to_owned(), |limit| limit.to_string());
                format!(
                    "fs: loads and stores wait for a descriptor ({error}; this process may have {limit}): \
                     raise its limit (ulimit -n, LimitNOFILE=)"
                )
            });
        }
        waits
    }

    /// Remembers what a scan could not do, and says so.
    pub fn set_unlisted(&self, scan: Scan) {
        if let Some(error) = &scan.unremoved {
            self.log.often("fs unremoved", LogLevel::Warn, || format!("fs: some leftovers cannot be removed: {error}"));
        }
        let missing = scan.missing(&self.dir);
        if let Some(why) = &missing {
            let line = || format!("fs: {why}; of what is there, only what is looked up by name is found");
            self.log.often("fs unlisted", LogLevel::Warn, line);
        }
        self.condition.set_unlisted(missing);
        *self.unlisted.lock() = scan.unlisted;
    }

    /// Tries again to list what could not be listed.
    pub fn list_again(&self) {
        let places = std::mem::take(&mut *self.unlisted.lock());
        if !places.is_empty() {
            let mut scan = recover::read(places, &self.writer);
            let seen = std::mem::take(&mut scan.seen);
            self.index(|index| {
                index.restore(seen);
                index.check_bounds();
            });
            self.set_unlisted(scan);
        }
    }

    /// Prepares a load, or answers it.
    pub fn begin_load(&self, load: LoadRequest, spare: &mut Spare) -> Option<(Reading, Frame)> {
        let LoadRequest { key, buffer, checksum, deadline, sink, index } = load;
        let mut reading = Reading { path: path::object(&key), patience: patience(deadline), key, born: 0, sink, index };
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
        #[cfg(test)]
        let outcome = self
            .reads_fail_with
            .lock()
            .map_or(outcome, |errno| Err(Fault::Io(READING, io::Error::from_raw_os_error(errno))));
        let fault = match outcome {
            Ok(()) => {
                self.condition.read();
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
        let error = match fault {
            // Whatever is under the key now is another object.
            _ if !self.index(|index| index.is_still(&reading.key, reading.born)) => {
                Error::new(KVKEEP_ERR_NOT_FOUND, about("deleted while it was read:", &self.dir.join(&reading.path)))
            }
            Fault::Io(what, error) if error.kind() == io::ErrorKind::NotFound => {
                self.index(|index| index.lost(&reading.key));
                let why = format!("{error}, another process removed it: {what}");
                Error::new(KVKEEP_ERR_NOT_FOUND, about(&why, &self.dir.join(&reading.path)))
            }
            // The file may be whole, and readable later or for others: it stays.
            Fault::Io(what, error) => {
                if is_no_file(&error) {
                    self.index(|index| index.lost(&reading.key));
                } else if what == OPENING && concerns_file(&error) {
                    self.index(|index| index.unreadable(&reading.key));
                }
                self.unread(what, &reading.path, &error)
            }
            Fault::Short(got) => {
                self.quarantine(reading.key);
                let why = format!("the file ends after {got} of {wanted} bytes:");
                Error::new(KVKEEP_ERR_CORRUPT, about(&why, &self.dir.join(&reading.path)))
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
}

/// Bytes of payload of a file, if it is long enough to be an object.
pub fn payload_of(file_bytes: u64) -> Option<u64> {
    file_bytes.checked_sub(BLOCK as u64)
}

/// Whether what has the object's name is no file: a link, a directory, a device.
fn is_no_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EISDIR | libc::ELOOP | libc::ENOTDIR | libc::ENXIO))
}

/// Whether an error tells of the file, not of something that the process or the machine is short of.
fn concerns_file(error: &io::Error) -> bool {
    use libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM};
    !matches!(error.raw_os_error(), None | Some(EAGAIN | EINTR | EMFILE | ENFILE | ENOMEM))
}

/// How long a request with this deadline waits for a descriptor: some time is left for the transfer.
pub fn patience(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

pub fn in_time(deadline: Instant, what: &str) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Error::new(KVKEEP_ERR_TIMEOUT, format!("the deadline passed before the {what} began")))
}
