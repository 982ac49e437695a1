//! The life of a load, from its request to its answer: every engine calls [`Core::begin_load`] before the bytes move and
//! [`Core::end_load`] after, on its own threads and under no lock.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
#[cfg(test)]
use super::failures::READING;
use super::failures::{IoFailure, OPENING, about};
use super::file_buffers::{FileBuffers, Spare};
use super::file_format::is_small;
use super::index::Opening;
use super::path;
use super::tasks::MaintenanceTask;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::object_header::Header;
use crate::l2::{LoadRequest, LoadSink};

/// A load under way.
pub struct ActiveLoad {
    pub path: String,
    /// Until then it waits for a descriptor, where there is none.
    pub patience: Instant,
    key: ObjectKey,
    /// Names the object, should another one take its key.
    born: u32,
    sink: Arc<dyn LoadSink>,
    index: u32,
}

impl Core {
    /// Prepares a load and counts it as a use, or answers it.
    pub fn begin_load(&self, load: LoadRequest, spare: &mut Spare) -> Option<(ActiveLoad, FileBuffers)> {
        let LoadRequest { key, buffer, checksum, deadline, sink, index } = load;
        let mut active =
            ActiveLoad { path: path::object(&key), patience: patience(deadline), key, born: 0, sink, index };
        let checked =
            in_time(deadline, "load").and_then(|()| self.root.index(|index| index.begin_load(&key, buffer.len())));
        let error = match checked {
            Ok(Opening { born, known, follows }) => match FileBuffers::new(buffer, spare, self.root.direct) {
                Ok(mut buffers) => {
                    active.born = born;
                    // Known fields stand for the header only if the payload's checksum proves that it is still the same object. Files
                    // that lie next to each other are read whole: the kernel joins those reads, and headers cost less than gaps.
                    if let Some(known) = known.filter(|_| checksum && !(follows && self.root.direct)) {
                        buffers.know(&key, known);
                    }
                    return Some((active, buffers));
                }
                Err((buffer, error)) => (buffer, Error::io("a buffer for an unaligned load", &error)),
            },
            Err(error) => (buffer, error),
        };
        self.answer_load(active, error.0, Err(error.1));
        None
    }

    /// Answers a load whose bytes moved, or did not for the reason in `outcome`.
    pub fn end_load(
        &self,
        active: ActiveLoad,
        buffers: FileBuffers,
        outcome: std::result::Result<(), IoFailure>,
        spare: &mut Spare,
    ) {
        let wanted = buffers.file_bytes();
        #[cfg(test)]
        let outcome = self
            .reads_fail_with
            .lock()
            .map_or(outcome, |errno| Err(IoFailure::Io(READING, io::Error::from_raw_os_error(errno))));
        let fault = match outcome {
            Ok(()) => {
                self.root.failures.read();
                let read = buffers.start() == 0;
                let (header, buffer) = buffers.opened(spare);
                let size = buffer.len() as u64;
                if read
                    && is_small(size)
                    && let Some(known) = header.known(&active.key, size)
                {
                    self.root.index(|index| {
                        if index.is_still(&active.key, active.born) {
                            index.know(&active.key, &known);
                        }
                    });
                }
                return self.answer_load(active, buffer, Ok(header));
            }
            Err(fault) => fault,
        };
        let buffer = buffers.abandoned(spare);
        let error = match fault {
            // The object that is under the key now is another one.
            _ if !self.root.index(|index| index.is_still(&active.key, active.born)) => {
                Error::new(KVKEEP_ERR_NOT_FOUND, about("deleted while it was read:", &self.root.dir.join(&active.path)))
            }
            IoFailure::Io(what, error) if error.kind() == io::ErrorKind::NotFound => {
                self.root.index(|index| index.lost(&active.key));
                let why = format!("{error}, another process removed it: {what}");
                Error::new(KVKEEP_ERR_NOT_FOUND, about(&why, &self.root.dir.join(&active.path)))
            }
            // The file may be whole, and readable later or for others: it stays.
            IoFailure::Io(what, error) => {
                if is_no_file(&error) {
                    self.root.index(|index| index.lost(&active.key));
                } else if what == OPENING && concerns_file(&error) {
                    self.root.index(|index| index.unreadable(&active.key));
                }
                self.root.unread(what, &active.path, &error)
            }
            IoFailure::Short(got) => {
                self.quarantine(active.key);
                let why = format!("the file ends after {got} of {wanted} bytes:");
                Error::new(KVKEEP_ERR_CORRUPT, about(&why, &self.root.dir.join(&active.path)))
            }
        };
        self.answer_load(active, buffer, Err(error));
    }

    fn answer_load(&self, active: ActiveLoad, buffer: Buffer, result: Result<Header>) {
        active.sink.loaded(active.index, buffer, result);
        self.backlog.answered();
    }

    /// Hides an object at once, and has the maintenance thread move its file into quarantine.
    pub fn quarantine(&self, key: ObjectKey) {
        if self.root.index(|index| index.hide(&key)) {
            self.root.tasks.push(MaintenanceTask::Quarantine(key));
        }
    }
}

/// Whether the error is that of an object's name on a link, a directory or a device.
fn is_no_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EISDIR | libc::ELOOP | libc::ENOTDIR | libc::ENXIO))
}

/// Whether an error is about the file, and not about a lack in the process or the machine.
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
