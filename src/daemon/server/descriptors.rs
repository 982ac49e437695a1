//! How many file descriptors the daemon may open, and how they are divided.
//!
//! Backends, the HTTP port and the daemon itself have their shares first. Clients have the rest, so that no number of
//! connections makes a load or a store fail, or silences `/healthz`.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, KVKEEP_ERR_LIMIT};

/// Most descriptors set aside for backends: more are of use to none.
const BACKENDS_MAX: u64 = 1024;
/// Most connections to the HTTP port.
const HTTP_MAX: u64 = 64;
/// Most connections that have made no request yet.
const SILENT_MAX: u64 = 32;
/// Most observers: `kvkeep stat`, `top` and `explain`.
const OBSERVERS_MAX: u64 = 4;
/// A descriptor to refuse a connection with, one to answer a reader with, and some for files that are read in passing.
const SPARE: u64 = 8;

/// Descriptors of one client: its connection for pushes, the event that wakes its thread, its process, and its first request
/// connection.
pub const OF_CLIENT: usize = 4;

/// The soft limit on open files of this process.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit on open files to the hard one. Gives the soft limit before and after.
pub fn raise_limit() -> io::Result<(u64, u64)> {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum })?;
    }
    Ok((before.current.unwrap_or(u64::MAX), before.maximum.unwrap_or(u64::MAX)))
}

/// How many this process has open.
fn open() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(64, |entries| entries.count() as u64)
}

/// How the descriptors of a process are divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorShares {
    /// For clients and their request connections.
    pub clients: usize,
    /// How many observers may be connected, whose descriptors are set aside.
    pub observers: usize,
    /// For connections that have made no request yet.
    pub silent: usize,
    /// For connections to the HTTP port.
    pub http: usize,
    /// Set aside for backends.
    pub backends: usize,
}

impl DescriptorShares {
    /// Of a process that may open `limit` files, and has `open` of them.
    fn of(limit: u64, open: u64) -> DescriptorShares {
        let share = |part: u64, most: u64| (limit / part).min(most).max(1);
        let (backends, http, silent) = (share(4, BACKENDS_MAX), share(8, HTTP_MAX), share(10, SILENT_MAX));
        let observers = share(40, OBSERVERS_MAX);
        let clients = limit.saturating_sub(open + backends + http + silent + observers * OF_CLIENT as u64 + SPARE);
        let count = |share: u64| usize::try_from(share).unwrap_or(usize::MAX);
        // One client can always be served: without one the daemon is of no use.
        let clients = count(clients).max(OF_CLIENT);
        DescriptorShares {
            clients,
            observers: count(observers),
            silent: count(silent),
            http: count(http),
            backends: count(backends),
        }
    }

    /// Of this process as it is now. The HTTP port's share does not depend on what is open.
    pub fn now() -> DescriptorShares {
        DescriptorShares::of(limit(), open())
    }
}

/// The error of a call for which the daemon has no descriptor.
pub fn none_left() -> Error {
    Error::new(
        KVKEEP_ERR_LIMIT,
        format!(
            "the daemon has no descriptor left for another connection, of {} that it may have: close some, or raise the limit \
             on open files that kvkeep serve is started with (ulimit -n, LimitNOFILE=)",
            limit()
        ),
    )
}

/// Whether a failure means that no descriptor was left.
pub fn is_none_left(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// The error of an operation of the daemon for a client, which may have needed a descriptor.
pub fn failed(given: &str, error: &io::Error) -> Error {
    if is_none_left(error) { none_left() } else { Error::io(given, error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_and_http_have_their_shares_before_clients() {
        for (limit, open) in [(40, 18), (256, 30), (1024, 40), (524_288, 40), (u64::MAX, 40)] {
            let shares = DescriptorShares::of(limit, open);
            let taken = [shares.clients, shares.observers * OF_CLIENT, shares.silent, shares.http, shares.backends];
            assert!(taken.iter().all(|&share| share > 0), "{limit}: {shares:?}");
            let sum = taken.iter().fold(open, |sum, &share| sum.saturating_add(share as u64));
            assert!(shares.clients == OF_CLIENT || sum.saturating_add(SPARE) <= limit, "{limit}: {shares:?}");
        }
        assert_eq!(
            DescriptorShares::of(1024, 40),
            DescriptorShares { clients: 608, observers: 4, silent: 32, http: 64, backends: 256 }
        );
        assert_eq!(DescriptorShares::of(0, 0).clients, OF_CLIENT);
    }

    #[test]
    fn a_missing_descriptor_is_a_limit_with_its_remedy() {
        for (errno, status) in [(Errno::MFILE, KVKEEP_ERR_LIMIT), (Errno::NFILE, KVKEEP_ERR_LIMIT)] {
            let error = failed("doing it", &errno.into());
            assert!(error.status == status && error.message.contains("ulimit -n"), "{error}");
        }
        assert_ne!(failed("doing it", &Errno::IO.into()).status, KVKEEP_ERR_LIMIT);
    }
}
