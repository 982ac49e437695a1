//! Status numbers and the error that carries one with its message.

/// The result of a call, and of each key of a batch. 0 is success, a positive number is not an error, a
/// negative one is. Numbers are never reused.
#[repr(C)]
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// The call did what it was asked.
    KVKEEP_OK = 0,
    /// Not known yet: ask again, or wait for the completion.
    KVKEEP_PENDING = 1,
    /// The batch was carried out and at least one key has a status of its own that is not OK.
    KVKEEP_PARTIAL = 2,
    /// An argument is outside what the function takes; nothing was changed.
    KVKEEP_ERR_INVALID = -1,
    /// The handle was never given out, is closed, or was opened by the parent of a fork.
    KVKEEP_ERR_CLOSED = -2,
    /// No such key, session, space, job, pool or backend (or the key is only staged).
    KVKEEP_ERR_NOT_FOUND = -3,
    /// The key is ready already, or staged by the same session.
    KVKEEP_ERR_EXISTS = -4,
    /// The session does not hold as many shares of the key; nothing was changed.
    KVKEEP_ERR_NOT_HELD = -5,
    /// The session passed its deadline and was ended, or shares of it were revoked.
    KVKEEP_ERR_EXPIRED = -6,
    /// The object is shared, or under a copy or a transfer.
    KVKEEP_ERR_LOCKED = -7,
    /// L1 is full of memory in use, or the system refuses memory.
    KVKEEP_ERR_NO_MEMORY = -8,
    /// The space's quota is full of memory in use.
    KVKEEP_ERR_QUOTA = -9,
    /// A bound is reached: of sessions, jobs, spaces, backends, pools, or of another thing that the message names.
    KVKEEP_ERR_LIMIT = -10,
    /// The deadline passed first, or a daemon's client got no answer in time.
    KVKEEP_ERR_TIMEOUT = -11,
    /// Cancelled by the caller, by its session's abort, or by close.
    KVKEEP_ERR_CANCELLED = -12,
    /// The operating system or a backend failed.
    KVKEEP_ERR_IO = -13,
    /// Stored bytes do not match their identity or checksum.
    KVKEEP_ERR_CORRUPT = -14,
    /// This build, kernel or backend cannot do it.
    KVKEEP_ERR_UNSUPPORTED = -15,
    /// The header the caller was built with does not fit the library that was loaded.
    KVKEEP_ERR_VERSION = -16,
    /// Not allowed, by file mode, a read-only file system, peer credentials or KVKEEP_FLAG_READ_ONLY.
    KVKEEP_ERR_PERMISSION = -17,
    /// The daemon went away; all that it held for this connection is lost.
    KVKEEP_ERR_DISCONNECTED = -18,
    /// A bug in kvkeep was caught; the cache refuses further work. Pools still close, jobs can be waited for, cancelled and
    /// released, and completions taken.
    KVKEEP_ERR_INTERNAL = -19,
    /// A GPU or its driver failed.
    KVKEEP_ERR_DEVICE = -20,
}

pub use Status::*;

impl Status {
    /// The status with this number, if there is one.
    pub fn from_number(number: i32) -> Option<Status> {
        const ALL: [Status; 23] = [
            KVKEEP_OK,
            KVKEEP_PENDING,
            KVKEEP_PARTIAL,
            KVKEEP_ERR_INVALID,
            KVKEEP_ERR_CLOSED,
            KVKEEP_ERR_NOT_FOUND,
            KVKEEP_ERR_EXISTS,
            KVKEEP_ERR_NOT_HELD,
            KVKEEP_ERR_EXPIRED,
            KVKEEP_ERR_LOCKED,
            KVKEEP_ERR_NO_MEMORY,
            KVKEEP_ERR_QUOTA,
            KVKEEP_ERR_LIMIT,
            KVKEEP_ERR_TIMEOUT,
            KVKEEP_ERR_CANCELLED,
            KVKEEP_ERR_IO,
            KVKEEP_ERR_CORRUPT,
            KVKEEP_ERR_UNSUPPORTED,
            KVKEEP_ERR_VERSION,
            KVKEEP_ERR_PERMISSION,
            KVKEEP_ERR_DISCONNECTED,
            KVKEEP_ERR_INTERNAL,
            KVKEEP_ERR_DEVICE,
        ];
        ALL.into_iter().find(|status| *status as i32 == number)
    }
}

/// A status with the sentence that explains it: the cause first, then the remedy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The number that the caller gets.
    pub status: Status,
    /// The sentence that a person reads.
    pub message: String,
}

impl Error {
    /// An error of `status` with a message for a person.
    pub fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, message: message.into() }
    }

    /// An argument that the function does not take.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(KVKEEP_ERR_INVALID, message)
    }

    /// The system refuses `bytes` of memory for `what`.
    pub fn no_memory(bytes: usize, what: &str) -> Error {
        Error::new(
            KVKEEP_ERR_NO_MEMORY,
            format!("the system refuses {bytes} bytes of memory for {what}: give this process more, or free some"),
        )
    }

    /// An operating-system failure while doing `what`.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Error {
        let status = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => KVKEEP_ERR_PERMISSION,
            _ => KVKEEP_ERR_IO,
        };
        Error::new(status, format!("{what}: {error}{}", remedy(error.kind())))
    }
}

/// The remedy for a failure of the operating system, as far as its kind has one.
pub(crate) fn remedy(kind: std::io::ErrorKind) -> &'static str {
    use std::io::ErrorKind;
    match kind {
        ErrorKind::PermissionDenied => "; let this user do that, or name another place",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists | ErrorKind::ReadOnlyFilesystem => "; name another place",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room there",
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => "; leave this process more threads and memory",
        _ => "",
    }
}

/// The result of kvkeep's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;
