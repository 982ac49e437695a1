//! One io_uring and what its thread keeps under way in it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::bell::Bell;
use super::operation::{ActiveRequest, FileRange, Operation, RANGE_BYTES};
use super::syncer::Syncer;
use crate::l2::Stored;
use crate::l2::fs::core::Core;
use crate::l2::fs::descriptor_wait;
use crate::l2::fs::file_buffers::Spare;

/// Places in a submission queue.
const ENTRIES: u32 = 256;
/// Marks the completion of the read that waits for the bell.
const BELL: u64 = u64::MAX;
/// Marks the completion of the pause after which operations without a descriptor try again.
pub(super) const PAUSED: u64 = u64::MAX - 1;
/// Objects at least this large are answered one at a time, with the ring fed in between: sinks check sums.
const LARGE: u64 = 256 << 10;

/// One ring and its thread's state. Used by that thread alone.
pub struct Ring {
    ring: IoUring,
    pub(super) core: Arc<Core>,
    /// Publishes what is written, where that is to survive a power cut.
    pub(super) syncer: Option<Arc<Syncer>>,
    bell: Arc<Bell>,
    /// Where the kernel puts the bell's count.
    rung: Box<[u8; 8]>,
    armed: bool,
    depth: usize,
    pub(super) operations: Vec<Option<Box<Operation>>>,
    free: Vec<usize>,
    live: usize,
    stores: usize,
    /// Operations with ranges to issue.
    pub(super) ready: VecDeque<usize>,
    /// Operations that wait for a descriptor.
    pub(super) starved: VecDeque<usize>,
    /// How long they wait before they try again, and whether that time runs.
    pub(super) pause: Box<types::Timespec>,
    pub(super) pausing: bool,
    /// Bytes under way, and how many may be.
    pub(super) bytes: u64,
    bytes_max: u64,
    pub(super) done: VecDeque<usize>,
    spare: Spare,
}

impl Ring {
    /// A ring of its own for the calling thread.
    pub fn new(
        core: Arc<Core>,
        syncer: Option<Arc<Syncer>>,
        bell: Arc<Bell>,
        depth: usize,
        bytes_max: u64,
    ) -> io::Result<Ring> {
        let mut ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(ENTRIES)
            .or_else(|_| IoUring::new(ENTRIES))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::OpenAt::CODE,
            opcode::Fallocate::CODE,
            opcode::RenameAt::CODE,
            opcode::UnlinkAt::CODE,
        ];
        if needed.into_iter().any(|code| !probe.is_supported(code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is too old"));
        }
        // Where making rings is allowed and entering them is not, nothing would ever complete.
        // SAFETY: a request without addresses.
        if unsafe { ring.submission().push(&opcode::Nop::new().build()) }.is_err() {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);
        Ok(Ring {
            ring,
            core,
            syncer,
            bell,
            rung: Box::new([0; 8]),
            armed: false,
            depth,
            operations: Vec::new(),
            free: Vec::new(),
            live: 0,
            stores: 0,
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            pause: Box::new(types::Timespec::from(descriptor_wait::PAUSE)),
            pausing: false,
            bytes: 0,
            bytes_max,
            done: VecDeque::new(),
            spare: Spare::new(),
        })
    }

    /// The thread: serves the backlog until the bell is stopped.
    pub fn run(&mut self) {
        loop {
            let stopped = self.bell.stopped.load(Ordering::SeqCst);
            if stopped && self.live == 0 && !self.armed && !self.pausing {
                return;
            }
            if !self.armed && !stopped {
                self.arm();
            }
            self.take();
            self.issue();
            self.submit();
            self.harvest();
            // Give the kernel what the completions made possible before sinks run: they verify, which takes long.
            self.issue();
            if !self.done.is_empty() && !self.ring.submission().is_empty() {
                let _ = self.ring.submit();
            }
            self.answer();
        }
    }

    /// Adds a request to the submission queue.
    pub(super) fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory that the entry points to lives in a boxed operation (its names, its ranges, the memory of its buffers) or in
        // this ring (`rung`, `pause`), and neither goes before the request's completion has been harvested.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // Full: hand over what is there. On an error the kernel is short of something, and completions free it.
            let _ = self.ring.submit();
        }
    }

    fn arm(&mut self) {
        let read = opcode::Read::new(types::Fd(self.bell.fd.as_raw_fd()), self.rung.as_mut_ptr(), 8);
        self.armed = true;
        self.push(&read.build().user_data(BELL));
    }

    /// Hands requests to the kernel, and waits for a completion if there is nothing else to do.
    fn submit(&mut self) {
        if !self.done.is_empty() || !self.ring.completion().is_empty() {
            let _ = self.ring.submit();
            return;
        }
        let hungry = self.live < self.depth;
        if hungry {
            self.bell.waiting.store(true, Ordering::SeqCst);
            if self.core.backlog.calls(true, self.stores < self.store_depth()) {
                self.bell.waiting.store(false, Ordering::SeqCst);
                let _ = self.ring.submit();
                return;
            }
        }
        if self.ring.submit_and_wait(1).is_err() {
            // Interrupted, or the kernel is short of something for a moment.
            thread::yield_now();
        }
        self.bell.waiting.store(false, Ordering::SeqCst);
    }

    /// Stores may not take all places: a load that comes later must find some.
    fn store_depth(&self) -> usize {
        self.depth.div_ceil(2)
    }

    fn take(&mut self) {
        if self.live == self.depth {
            return;
        }
        let mut loads = Vec::new();
        self.core.backlog.take_loads(self.depth - self.live, &mut loads);
        for load in loads {
            if let Some((active, buffers)) = self.core.begin_load(load, &mut self.spare) {
                self.launch(Operation::new(ActiveRequest::Read(active), buffers));
            }
        }
        let places = (self.depth - self.live).min(self.store_depth().saturating_sub(self.stores));
        let mut stores = Vec::new();
        self.core.backlog.take_stores(places, &mut stores);
        for store in stores {
            if let Some((active, buffers)) = self.core.begin_store(store, &mut self.spare) {
                match &self.syncer {
                    _ if !self.core.is_stored(&active, &buffers) => {
                        self.launch(Operation::new(ActiveRequest::Write(active), buffers));
                    }
                    Some(syncer) => syncer.take(active, buffers, None),
                    None => self.core.end_store(active, buffers, Ok(Stored::Already), &mut self.spare),
                }
            }
        }
    }

    fn launch(&mut self, operation: Operation) {
        self.live += 1;
        self.stores += usize::from(operation.is_write());
        let id = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        let mut operation = Box::new(operation);
        if operation.victims.is_empty() {
            self.open(id, &mut operation);
        } else {
            self.evict(id, &mut operation);
        }
        self.operations[id] = Some(operation);
    }

    pub(super) fn dir(&self) -> types::Fd {
        types::Fd(self.core.root.dirfd.as_raw_fd())
    }

    pub(super) fn request(&mut self, id: usize, range: usize, operation: &mut Operation, entry: squeue::Entry) {
        operation.pending += 1;
        self.push(&entry.user_data((id as u64) << 32 | range as u64));
    }

    /// Issues ranges of open files, in the order they were opened, while not too many bytes are under way.
    fn issue(&mut self) {
        while let Some(&id) = self.ready.front() {
            let Some(mut operation) = self.operations[id].take() else { return };
            let span = operation.buffers.span();
            while operation.issued < span && operation.fault.is_none() {
                let to = span.min(operation.issued + RANGE_BYTES);
                if self.bytes > 0 && self.bytes + (to - operation.issued) > self.bytes_max {
                    self.operations[id] = Some(operation);
                    return;
                }
                let at = operation.issued;
                operation.issued = to;
                let unset = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                operation.ranges.push(FileRange { at, to, parts: [unset; 3] });
                let range = operation.ranges.len() - 1;
                self.transfer(id, range, &mut operation);
            }
            self.ready.pop_front();
            self.operations[id] = Some(operation);
        }
    }

    /// Takes every completion there is.
    fn harvest(&mut self) {
        while let Some(entry) = { self.ring.completion().next() } {
            if entry.user_data() == BELL {
                self.armed = false;
                continue;
            }
            if entry.user_data() == PAUSED {
                self.pausing = false;
                (0..self.starved.len()).for_each(|_| self.open_starved());
                continue;
            }
            let (id, range) = ((entry.user_data() >> 32) as usize, entry.user_data() as u32 as usize);
            if let Some(mut operation) = self.operations[id].take() {
                operation.pending -= 1;
                self.advance(id, range, &mut operation, entry.result());
                self.operations[id] = Some(operation);
            }
        }
    }

    /// Answers what is done. Sinks run here.
    fn answer(&mut self) {
        while let Some(id) = self.done.pop_front() {
            let Some(operation) = self.operations[id].take() else { continue };
            // A fault may come before all ranges were issued.
            self.ready.retain(|&other| other != id);
            self.free.push(id);
            self.live -= 1;
            self.stores -= usize::from(operation.is_write());
            let Operation { request, buffers, file, fault, renamed, .. } = *operation;
            let (request, file) = match (request, file, &self.syncer) {
                (ActiveRequest::Write(active), Some(file), Some(syncer)) if fault.is_none() => {
                    syncer.take(active, buffers, Some(file));
                    continue;
                }
                (request, file, _) => (request, file),
            };
            if file.is_some() {
                drop(file);
                self.open_starved();
            }
            let large = buffers.span() >= LARGE;
            let anew = match (request, fault) {
                (ActiveRequest::Read(active), fault) => {
                    self.core.end_load(active, buffers, fault.map_or(Ok(()), Err), &mut self.spare);
                    None
                }
                (ActiveRequest::Write(active), None) => self.core.conclude(active, buffers, renamed, &mut self.spare),
                (ActiveRequest::Write(active), Some(fault)) => self.core.fail(active, buffers, fault, &mut self.spare),
            };
            if let Some((active, buffers)) = anew {
                self.launch(Operation::new(ActiveRequest::Write(active), buffers));
            }
            if large {
                return;
            }
        }
    }
}
