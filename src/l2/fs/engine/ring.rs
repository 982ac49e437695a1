//! One io_uring and what its thread keeps under way in it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::operation::{Flight, Job, PIECE, Piece, Step};
use super::uring::Bell;
use crate::l2::Stored;
use crate::l2::fs::descriptor_wait;
use crate::l2::fs::failures::{EVICTING, OPENING, READING};
use crate::l2::fs::file_format::{BLOCK, Spare};
use crate::l2::fs::object_io::{Core, Fault};
use crate::l2::fs::path;

/// Places in a submission queue.
const ENTRIES: u32 = 256;
/// Marks the completion of the read that waits for the bell.
const BELL: u64 = u64::MAX;
/// Marks the completion of the pause after which flights without a descriptor try again.
const PAUSED: u64 = u64::MAX - 1;
/// Objects at least this large are answered one at a time, with the ring fed in between: sinks check sums.
const LARGE: u64 = 256 << 10;

/// One ring and its thread's state.
pub struct Ring {
    ring: IoUring,
    core: Arc<Core>,
    bell: Arc<Bell>,
    /// Where the kernel puts the bell's count.
    rung: Box<[u8; 8]>,
    armed: bool,
    depth: usize,
    flights: Vec<Option<Box<Flight>>>,
    free: Vec<usize>,
    live: usize,
    stores: usize,
    /// Flights with pieces to issue.
    ready: VecDeque<usize>,
    /// Flights that wait for a descriptor.
    starved: VecDeque<usize>,
    /// How long they wait before they try again, and whether that time runs.
    pause: Box<types::Timespec>,
    pausing: bool,
    /// Bytes under way, and how many may be.
    bytes: u64,
    bytes_max: u64,
    done: VecDeque<usize>,
    spare: Spare,
}

impl Ring {
    /// A ring of its own for the calling thread.
    pub fn new(core: Arc<Core>, bell: Arc<Bell>, depth: usize, bytes_max: u64) -> io::Result<Ring> {
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
            bell,
            rung: Box::new([0; 8]),
            armed: false,
            depth,
            flights: Vec::new(),
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

    /// Serves the queue until the bell says stop.
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
            // Give the kernel what the completions made possible before anyone's code runs: a sink verifies, which takes long.
            self.issue();
            if !self.done.is_empty() && !self.ring.submission().is_empty() {
                let _ = self.ring.submit();
            }
            self.answer();
        }
    }

    /// Adds a request to the submission queue.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points to lives in a boxed flight (its names, its pieces, the memory of its frame) or in
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
            if self.core.queue.calls(true, self.stores < self.store_depth()) {
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
        self.core.queue.take_loads(self.depth - self.live, &mut loads);
        for load in loads {
            if let Some((reading, frame)) = self.core.begin_load(load, &mut self.spare) {
                self.launch(Flight::new(Job::Read(reading), frame));
            }
        }
        let room = (self.depth - self.live).min(self.store_depth().saturating_sub(self.stores));
        let mut stores = Vec::new();
        self.core.queue.take_stores(room, &mut stores);
        for store in stores {
            if let Some((writing, frame)) = self.core.begin_store(store, &mut self.spare) {
                if self.core.is_stored(&writing, &frame) {
                    self.core.end_store(writing, frame, Ok(Stored::Already), &mut self.spare);
                } else {
                    self.launch(Flight::new(Job::Write(writing), frame));
                }
            }
        }
    }

    fn launch(&mut self, flight: Flight) {
        self.live += 1;
        self.stores += usize::from(flight.is_write());
        let id = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        let mut flight = Box::new(flight);
        if flight.victims.is_empty() {
            self.open(id, &mut flight);
        } else {
            self.evict(id, &mut flight);
        }
        self.flights[id] = Some(flight);
    }

    fn dir(&self) -> types::Fd {
        types::Fd(self.core.dirfd.as_raw_fd())
    }

    fn request(&mut self, id: usize, piece: usize, flight: &mut Flight, entry: squeue::Entry) {
        flight.pending += 1;
        self.push(&entry.user_data((id as u64) << 32 | piece as u64));
    }

    fn evict(&mut self, id: usize, flight: &mut Flight) {
        flight.step = Step::Evict;
        for at in 0..flight.victims.len() {
            let unlink = opcode::UnlinkAt::new(self.dir(), flight.victims[at].as_ptr());
            self.request(id, 0, flight, unlink.build());
        }
    }

    fn open(&mut self, id: usize, flight: &mut Flight) {
        flight.step = Step::Open;
        let direct = if self.core.direct { libc::O_DIRECT } else { 0 };
        let (name, flags) = match flight.job {
            Job::Read(_) => (&flight.name, libc::O_RDONLY),
            Job::Write(_) => (&flight.temporary, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL),
        };
        let open = opcode::OpenAt::new(self.dir(), name.as_ptr())
            .flags(flags | direct | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .mode(path::FILE_MODE);
        self.request(id, 0, flight, open.build());
    }

    /// Issues pieces of open objects, in the order they were opened, while there is room for their bytes.
    fn issue(&mut self) {
        while let Some(&id) = self.ready.front() {
            let Some(mut flight) = self.flights[id].take() else { return };
            let span = flight.frame.span();
            while flight.issued < span && flight.fault.is_none() {
                let to = span.min(flight.issued + PIECE);
                if self.bytes > 0 && self.bytes + (to - flight.issued) > self.bytes_max {
                    self.flights[id] = Some(flight);
                    return;
                }
                let at = flight.issued;
                flight.issued = to;
                let unset = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
                flight.pieces.push(Piece { at, to, parts: [unset; 3] });
                let piece = flight.pieces.len() - 1;
                self.transfer(id, piece, &mut flight);
            }
            self.ready.pop_front();
            self.flights[id] = Some(flight);
        }
    }

    /// Requests what is left of a piece.
    fn transfer(&mut self, id: usize, piece: usize, flight: &mut Flight) {
        let Some(file) = &flight.file else { return };
        let fd = types::Fd(file.as_raw_fd());
        let Piece { at, to, parts } = &mut flight.pieces[piece];
        let (pointers, count) = flight.frame.pointers(*at, *to);
        for (part, (base, len)) in parts.iter_mut().zip(pointers) {
            *part = libc::iovec { iov_base: base.cast(), iov_len: len };
        }
        self.bytes += *to - *at;
        let (parts, at) = (parts.as_ptr(), *at);
        let entry = if flight.is_write() {
            opcode::Writev::new(fd, parts, count as u32).offset(at).build()
        } else {
            opcode::Readv::new(fd, parts, count as u32).offset(at).build()
        };
        self.request(id, piece, flight, entry);
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
            let (id, piece) = ((entry.user_data() >> 32) as usize, entry.user_data() as u32 as usize);
            if let Some(mut flight) = self.flights[id].take() {
                flight.pending -= 1;
                self.advance(id, piece, &mut flight, entry.result());
                self.flights[id] = Some(flight);
            }
        }
    }

    fn advance(&mut self, id: usize, piece: usize, flight: &mut Flight, result: i32) {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        match flight.step {
            Step::Evict => {
                if let Some(error) = error.filter(|error| error.kind() != io::ErrorKind::NotFound) {
                    flight.fault = Some(Fault::Io(EVICTING, error));
                }
                if flight.pending > 0 {
                    return;
                }
                if flight.fault.is_some() {
                    return self.done.push_back(id);
                }
                if let Job::Write(writing) = &mut flight.job {
                    self.core.settle(writing);
                }
                self.open(id, flight);
            }
            Step::Open => self.opened(id, flight, result, error),
            Step::Allocate => match flight.job.allocated(&self.core, error) {
                None => self.start_moving(id, flight),
                error => self.failed(id, flight, "allocating", error),
            },
            Step::Move => {
                self.moved(id, piece, flight, result);
                if flight.pending == 0 && (flight.issued == flight.frame.span() || flight.fault.is_some()) {
                    self.all_moved(id, flight);
                }
            }
            Step::Rename => {
                flight.renamed = error.map_or(Ok(()), Err);
                if let (Err(error), Job::Write(writing)) = (&mut flight.renamed, &mut flight.job)
                    && self.core.made_shard(writing, error)
                {
                    return self.rename(id, flight);
                }
                self.done.push_back(id);
            }
        }
    }

    fn failed(&mut self, id: usize, flight: &mut Flight, what: &'static str, error: Option<io::Error>) {
        flight.fault = error.map(|error| Fault::Io(what, error));
        self.done.push_back(id);
    }

    fn opened(&mut self, id: usize, flight: &mut Flight, result: i32, error: Option<io::Error>) {
        match (error, &flight.job) {
            (None, _) => {
                // SAFETY: the kernel just gave us this descriptor, and nobody else has its number.
                flight.file = Some(unsafe { OwnedFd::from_raw_fd(result) });
                if flight.is_write() {
                    flight.step = Step::Allocate;
                    let allocate = opcode::Fallocate::new(types::Fd(result), flight.frame.span());
                    self.request(id, 0, flight, allocate.build());
                } else {
                    self.start_moving(id, flight);
                }
            }
            (Some(error), job) if self.core.waits_for_descriptor(&error, job.patience()) => {
                self.starved.push_back(id);
                self.start_pause();
            }
            (Some(error), Job::Write(_)) => {
                let missing = error.kind() == io::ErrorKind::NotFound && !flight.made_tmp;
                match if missing { self.core.make_tmp() } else { Err(error) } {
                    Ok(()) => {
                        flight.made_tmp = true;
                        self.open(id, flight);
                    }
                    Err(error) => self.failed(id, flight, "creating", Some(error)),
                }
            }
            (Some(error), Job::Read(_)) => self.failed(id, flight, OPENING, Some(error)),
        }
    }

    /// Has the flights that wait for a descriptor try again in a moment: nobody announces a file that others close.
    fn start_pause(&mut self) {
        if !std::mem::replace(&mut self.pausing, true) {
            let pause = opcode::Timeout::new(std::ptr::from_ref(self.pause.as_ref()));
            self.push(&pause.build().user_data(PAUSED));
        }
    }

    fn open_starved(&mut self) {
        let Some(id) = self.starved.pop_front() else { return };
        if let Some(mut flight) = self.flights[id].take() {
            self.open(id, &mut flight);
            self.flights[id] = Some(flight);
        }
    }

    fn start_moving(&mut self, id: usize, flight: &mut Flight) {
        flight.step = Step::Move;
        self.ready.push_back(id);
    }

    /// A piece moved, or part of it did.
    fn moved(&mut self, id: usize, piece: usize, flight: &mut Flight, result: i32) {
        let write = flight.is_write();
        let end = if write { flight.frame.span() } else { flight.frame.file_bytes() };
        let Piece { at, to, .. } = &mut flight.pieces[piece];
        self.bytes -= *to - *at;
        let fault = match result {
            count if count > 0 => {
                *at += count as u64;
                if *at >= end.min(*to) {
                    return;
                }
                // Only the end of a file cuts a block.
                (!write && self.core.direct && !at.is_multiple_of(BLOCK as u64)).then_some(Fault::Short(*at))
            }
            0 if write => Some(Fault::Io("writing", io::Error::from_raw_os_error(libc::ENOSPC))),
            0 => Some(Fault::Short(*at)),
            error if -error == libc::EINTR || -error == libc::EAGAIN => None,
            error => {
                let what = if write { "writing" } else { READING };
                Some(Fault::Io(what, io::Error::from_raw_os_error(-error)))
            }
        };
        match fault {
            None => self.transfer(id, piece, flight),
            // The first fault is the cause; of two short pieces the earlier tells where the file ends.
            Some(Fault::Short(at)) => match flight.fault {
                Some(Fault::Short(earlier)) if earlier <= at => {}
                Some(Fault::Io(..)) => {}
                _ => flight.fault = Some(Fault::Short(at)),
            },
            fault => flight.fault = fault,
        }
    }

    fn all_moved(&mut self, id: usize, flight: &mut Flight) {
        if !flight.is_write() && flight.frame.mistaken(flight.fault.is_none()) {
            flight.fault = None;
            flight.pieces.clear();
            flight.issued = flight.frame.start();
            return self.ready.push_back(id);
        }
        if flight.fault.is_some() || !flight.is_write() {
            return self.done.push_back(id);
        }
        let bytes = flight.frame.file_bytes();
        if bytes < flight.frame.span()
            && let Some(file) = &flight.file
            && let Err(error) = rustix::fs::ftruncate(file, bytes)
        {
            return self.failed(id, flight, "trimming", Some(error.into()));
        }
        self.rename(id, flight);
    }

    fn rename(&mut self, id: usize, flight: &mut Flight) {
        flight.step = Step::Rename;
        let rename = opcode::RenameAt::new(self.dir(), flight.temporary.as_ptr(), self.dir(), flight.name.as_ptr())
            .flags(libc::RENAME_NOREPLACE);
        self.request(id, 0, flight, rename.build());
    }

    /// Answers what is done. Sinks run here.
    fn answer(&mut self) {
        while let Some(id) = self.done.pop_front() {
            let Some(flight) = self.flights[id].take() else { continue };
            // A fault may come before all pieces were issued.
            self.ready.retain(|&other| other != id);
            self.free.push(id);
            self.live -= 1;
            self.stores -= usize::from(flight.is_write());
            let Flight { job, frame, file, fault, renamed, .. } = *flight;
            if file.is_some() {
                drop(file);
                self.open_starved();
            }
            let large = frame.span() >= LARGE;
            let anew = match (job, fault) {
                (Job::Read(reading), fault) => {
                    self.core.end_load(reading, frame, fault.map_or(Ok(()), Err), &mut self.spare);
                    None
                }
                (Job::Write(writing), None) => self.core.conclude(writing, frame, renamed, &mut self.spare),
                (Job::Write(writing), Some(fault)) => self.core.fail(writing, frame, fault, &mut self.spare),
            };
            if let Some((writing, frame)) = anew {
                self.launch(Flight::new(Job::Write(writing), frame));
            }
            if large {
                return;
            }
        }
    }
}
