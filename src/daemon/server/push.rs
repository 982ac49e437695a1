//! Pushes to a client: any thread queues them, the thread of the client's connection sends them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::descriptors::failed;
use crate::daemon::wire::{Frame, KEPT_BYTES};
use crate::error::Result;

/// A client with so many unread bytes is not listening any more.
const BYTES_MAX: usize = 64 << 20;

struct Pending {
    bytes: Vec<u8>,
    frame: Frame,
    overflowed: bool,
}

/// Pushes on their way to one client.
pub struct PushQueue {
    pending: Mutex<Pending>,
    fd: File,
}

impl PushQueue {
    /// An empty queue, with an event descriptor of its own.
    pub fn new() -> Result<PushQueue> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed("making a client's event descriptor", &error.into()))?;
        let pending = Pending { bytes: Vec::new(), frame: Frame::default(), overflowed: false };
        Ok(PushQueue { pending: Mutex::new(pending), fd: fd.into() })
    }

    /// Adds a push. Never blocks.
    pub fn push(&self, kind: u32, write: impl FnOnce(&mut Frame)) {
        let mut pending = self.pending.lock();
        let Pending { bytes, frame, overflowed } = &mut *pending;
        write(frame.begin(kind));
        let first = bytes.is_empty();
        *overflowed |= bytes.len() > BYTES_MAX;
        if !*overflowed {
            bytes.extend_from_slice(frame.finish());
        }
        if first {
            // It can only fail when the descriptor is readable already.
            let _ = (&self.fd).write(&1u64.to_ne_bytes());
        }
    }

    /// Drops all pushes, those to come included.
    pub fn close(&self) {
        let mut pending = self.pending.lock();
        pending.overflowed = true;
        pending.bytes = Vec::new();
    }

    /// Everything to be sent now, in `into`, whose memory the next pushes use, unless a rare pile made it large. False if too
    /// much piled up.
    pub fn take(&self, into: &mut Vec<u8>) -> bool {
        let _ = (&self.fd).read(&mut [0; 8]);
        into.clear();
        into.shrink_to(KEPT_BYTES);
        let mut pending = self.pending.lock();
        std::mem::swap(into, &mut pending.bytes);
        !pending.overflowed
    }

    /// Readable while there is something to send.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
