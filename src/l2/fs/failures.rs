//! Failures in the directory: messages that name the file and fit a completion, and the backend's health.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::abi::KVKEEP_MESSAGE_BYTES;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, remedy};
use crate::l2::Health;

/// Reads that fail in a row before the backend counts as unhealthy: fewer may be a few bad files.
const READS_MAX: u32 = 8;
/// Bytes of a path that are shown at least.
const PATH_MIN: usize = 30;

/// `path` in at most `most` bytes. The middle is left out: the beginning is the directory, the end the file.
pub fn shortened(path: &str, most: usize) -> String {
    const GAP: &str = "…";
    if path.len() <= most {
        return path.to_owned();
    }
    let shown = most.saturating_sub(GAP.len());
    let head = path.floor_char_boundary(shown * 2 / 5);
    let tail = path.ceil_char_boundary(path.len() - (shown - head));
    format!("{}{GAP}{}", &path[..head], &path[tail..])
}

/// `what` about the file `path`, in as many bytes as a completion has where `what` leaves room for a path.
pub fn about(what: &str, path: &Path) -> String {
    let room = (KVKEEP_MESSAGE_BYTES - 1).saturating_sub(what.len() + 1).max(PATH_MIN);
    format!("{what} {}", shortened(&path.to_string_lossy(), room))
}

/// The operating system failed while doing `what` to the file `path`: the cause comes first, the path last.
pub fn file_error(what: &str, path: &Path, error: &io::Error) -> Error {
    let remedy = if what == READING || what == OPENING { "" } else { remedy(error.kind()) };
    let message = about(&format!("{error}{remedy}: {what}"), path);
    Error { message, ..Error::io("", error) }
}

/// The action of an engine that failed, as errors name it.
pub const OPENING: &str = "opening";
/// As [`OPENING`], of a load's bytes.
pub const READING: &str = "reading";
/// As [`OPENING`], of a victim.
pub const EVICTING: &str = "evicting";

/// Why bytes did not move.
pub enum IoFailure {
    /// The system call `.0` failed.
    Io(&'static str, io::Error),
    /// The file ended after this many bytes.
    Short(u64),
}

/// The answer to every request after close.
pub fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the fs backend is closed")
}

/// The answer to a request that would make a queue too long.
pub fn full(most: usize) -> Error {
    Error::new(KVKEEP_ERR_LIMIT, format!("the fs backend has {most} requests waiting already; try again later"))
}

/// Failures without a success in between.
#[derive(Default)]
struct Streak {
    failures: AtomicU32,
    last: Mutex<String>,
}

impl Streak {
    fn failed(&self, error: &Error) {
        self.last.lock().clone_from(&error.message);
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Release);
        }
    }

    /// The last failure, if there were at least `most`.
    fn last_of(&self, most: u32) -> Option<String> {
        (self.failures.load(Ordering::Acquire) >= most).then(|| self.last.lock().clone())
    }
}

/// The failures that make the backend unhealthy.
#[derive(Default)]
pub struct Failures {
    reads: Streak,
    writes: Streak,
    /// A sentence about the directories that recovery could not read.
    unlisted: Mutex<Option<String>>,
}

impl Failures {
    pub fn read_failed(&self, error: &Error) {
        self.reads.failed(error);
    }

    pub fn read(&self) {
        self.reads.succeeded();
    }

    pub fn write_failed(&self, error: &Error) {
        self.writes.failed(error);
    }

    pub fn written(&self) {
        self.writes.succeeded();
    }

    /// Sets the sentence about directories that cannot be listed, if there are any.
    pub fn set_unlisted(&self, why: Option<String>) {
        *self.unlisted.lock() = why;
    }

    /// Bad once a write failed and none succeeded since, once many reads in a row failed, or while part of the directory cannot
    /// be listed.
    pub fn health(&self) -> Health {
        let reads = self.reads.last_of(READS_MAX).map(|why| format!("reads fail: {why}"));
        let writes = self.writes.last_of(1).map(|why| format!("writes fail: {why}"));
        let all: Vec<String> = [writes, reads, self.unlisted.lock().clone()].into_iter().flatten().collect();
        if all.is_empty() { Health::Good } else { Health::Bad(all.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/var/lib/a/rather/long/directory/that/an/operator/chose/ab01ab01ab01ab01ab01ab01ab01ab01";

    #[test]
    fn a_message_gives_the_cause_first_and_ends_with_the_end_of_the_path() {
        let hash = "0123456789abcdef".repeat(4);
        let path = format!("{DIR}/01/{hash}-3-11");
        for errno in [libc::EACCES, libc::EIO, libc::ESTALE, libc::EMFILE, libc::EROFS, libc::ENOSPC] {
            for what in [OPENING, READING, "creating", "publishing"] {
                let error = io::Error::from_raw_os_error(errno);
                let message = file_error(what, Path::new(&path), &error).message;
                assert!(message.len() < KVKEEP_MESSAGE_BYTES, "{message}");
                assert!(message.starts_with(&error.to_string()), "{message}");
                assert!(message.contains(what) && message.ends_with("89abcdef-3-11"), "{message}");
            }
        }
        let short = file_error(OPENING, Path::new("/c/x"), &io::Error::from_raw_os_error(libc::EIO)).message;
        assert!(short.ends_with("opening /c/x"), "{short}");
        assert_eq!(shortened("ééééééééééé", 12), "é…ééé");
    }

    #[test]
    fn one_failed_write_is_unhealthy_and_many_reads_are_until_one_succeeds() {
        let (condition, error) = (Failures::default(), Error::invalid("broken"));
        for _ in 1..READS_MAX {
            condition.read_failed(&error);
        }
        assert_eq!(condition.health(), Health::Good);
        condition.read_failed(&error);
        assert_eq!(condition.health(), Health::Bad("reads fail: broken".to_owned()));
        condition.read();
        assert_eq!(condition.health(), Health::Good);
        condition.write_failed(&error);
        condition.read();
        assert_eq!(condition.health(), Health::Bad("writes fail: broken".to_owned()));
        condition.written();
        assert_eq!(condition.health(), Health::Good);
    }
}
