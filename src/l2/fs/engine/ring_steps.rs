//! The steps of an operation: each completion of the kernel moves it from one [`OperationStep`] to the next. All of them run on the
//! ring's thread.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use io_uring::{opcode, types};

use super::operation::{ActiveRequest, FileRange, Operation, OperationStep};
use super::ring::{PAUSED, Ring};
use crate::l2::fs::failures::{EVICTING, IoFailure, OPENING, READING};
use crate::l2::fs::file_format::BLOCK;
use crate::l2::fs::path;

impl Ring {
    pub(super) fn evict(&mut self, id: usize, operation: &mut Operation) {
        operation.step = OperationStep::Evict;
        for at in 0..operation.victims.len() {
            let unlink = opcode::UnlinkAt::new(self.dir(), operation.victims[at].as_ptr());
            self.request(id, 0, operation, unlink.build());
        }
    }

    pub(super) fn open(&mut self, id: usize, operation: &mut Operation) {
        operation.step = OperationStep::Open;
        let direct = if self.core.root.direct { libc::O_DIRECT } else { 0 };
        let (name, flags) = match operation.request {
            ActiveRequest::Read(_) => (&operation.name, libc::O_RDONLY),
            ActiveRequest::Write(_) => (&operation.temporary, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL),
        };
        let open = opcode::OpenAt::new(self.dir(), name.as_ptr())
            .flags(flags | direct | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .mode(path::FILE_MODE);
        self.request(id, 0, operation, open.build());
    }

    /// Requests the bytes that are left of a range.
    pub(super) fn transfer(&mut self, id: usize, range: usize, operation: &mut Operation) {
        let Some(file) = &operation.file else { return };
        let fd = types::Fd(file.as_raw_fd());
        let FileRange { at, to, parts } = &mut operation.ranges[range];
        let (pointers, count) = operation.buffers.pointers(*at, *to);
        for (part, (base, len)) in parts.iter_mut().zip(pointers) {
            *part = libc::iovec { iov_base: base.cast(), iov_len: len };
        }
        self.bytes += *to - *at;
        let (parts, at) = (parts.as_ptr(), *at);
        let entry = if operation.is_write() {
            opcode::Writev::new(fd, parts, count as u32).offset(at).build()
        } else {
            opcode::Readv::new(fd, parts, count as u32).offset(at).build()
        };
        self.request(id, range, operation, entry);
    }

    pub(super) fn advance(&mut self, id: usize, range: usize, operation: &mut Operation, result: i32) {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        match operation.step {
            OperationStep::Evict => {
                if let Some(error) = error.filter(|error| error.kind() != io::ErrorKind::NotFound) {
                    operation.fault = Some(IoFailure::Io(EVICTING, error));
                }
                if operation.pending > 0 {
                    return;
                }
                if operation.fault.is_some() {
                    return self.done.push_back(id);
                }
                if let ActiveRequest::Write(active) = &mut operation.request {
                    self.core.settle(active);
                }
                self.open(id, operation);
            }
            OperationStep::Open => self.opened(id, operation, result, error),
            OperationStep::Allocate => match operation.request.allocated(&self.core, error) {
                None => self.start_moving(id, operation),
                error => self.failed(id, operation, "allocating", error),
            },
            OperationStep::Move => {
                self.moved(id, range, operation, result);
                if operation.pending == 0 && (operation.issued == operation.buffers.span() || operation.fault.is_some())
                {
                    self.all_moved(id, operation);
                }
            }
            OperationStep::Rename => {
                operation.renamed = error.map_or(Ok(()), Err);
                if let (Err(error), ActiveRequest::Write(active)) = (&mut operation.renamed, &mut operation.request)
                    && self.core.made_shard(active, error)
                {
                    return self.rename(id, operation);
                }
                self.done.push_back(id);
            }
        }
    }

    fn failed(&mut self, id: usize, operation: &mut Operation, what: &'static str, error: Option<io::Error>) {
        operation.fault = error.map(|error| IoFailure::Io(what, error));
        self.done.push_back(id);
    }

    fn opened(&mut self, id: usize, operation: &mut Operation, result: i32, error: Option<io::Error>) {
        match (error, &operation.request) {
            (None, _) => {
                // SAFETY: the kernel just gave us this descriptor, and no other code has its number.
                operation.file = Some(unsafe { OwnedFd::from_raw_fd(result) });
                if operation.is_write() {
                    operation.step = OperationStep::Allocate;
                    let allocate = opcode::Fallocate::new(types::Fd(result), operation.buffers.span());
                    self.request(id, 0, operation, allocate.build());
                } else {
                    self.start_moving(id, operation);
                }
            }
            (Some(error), request) if self.core.waits_for_descriptor(&error, request.patience()) => {
                self.starved.push_back(id);
                self.start_pause();
            }
            (Some(error), ActiveRequest::Write(_)) => {
                let missing = error.kind() == io::ErrorKind::NotFound && !operation.made_tmp;
                match if missing { self.core.root.make_tmp() } else { Err(error) } {
                    Ok(()) => {
                        operation.made_tmp = true;
                        self.open(id, operation);
                    }
                    Err(error) => self.failed(id, operation, "creating", Some(error)),
                }
            }
            (Some(error), ActiveRequest::Read(_)) => self.failed(id, operation, OPENING, Some(error)),
        }
    }

    /// Has the operations that wait for a descriptor try again in a moment: a file that another closes is not announced.
    fn start_pause(&mut self) {
        if !std::mem::replace(&mut self.pausing, true) {
            let pause = opcode::Timeout::new(std::ptr::from_ref(self.pause.as_ref()));
            self.push(&pause.build().user_data(PAUSED));
        }
    }

    pub(super) fn open_starved(&mut self) {
        let Some(id) = self.starved.pop_front() else { return };
        if let Some(mut operation) = self.operations[id].take() {
            self.open(id, &mut operation);
            self.operations[id] = Some(operation);
        }
    }

    fn start_moving(&mut self, id: usize, operation: &mut Operation) {
        operation.step = OperationStep::Move;
        self.ready.push_back(id);
    }

    /// A range moved, or part of it did.
    fn moved(&mut self, id: usize, range: usize, operation: &mut Operation, result: i32) {
        let write = operation.is_write();
        let end = if write { operation.buffers.span() } else { operation.buffers.file_bytes() };
        let FileRange { at, to, .. } = &mut operation.ranges[range];
        self.bytes -= *to - *at;
        let fault = match result {
            count if count > 0 => {
                *at += count as u64;
                if *at >= end.min(*to) {
                    return;
                }
                // Only the end of a file cuts a block.
                (!write && self.core.root.direct && !at.is_multiple_of(BLOCK as u64)).then_some(IoFailure::Short(*at))
            }
            0 if write => Some(IoFailure::Io("writing", io::Error::from_raw_os_error(libc::ENOSPC))),
            0 => Some(IoFailure::Short(*at)),
            error if -error == libc::EINTR || -error == libc::EAGAIN => None,
            error => {
                let what = if write { "writing" } else { READING };
                Some(IoFailure::Io(what, io::Error::from_raw_os_error(-error)))
            }
        };
        match fault {
            None => self.transfer(id, range, operation),
            // The first fault is the cause; of two short ranges the earlier is where the file ends.
            Some(IoFailure::Short(at)) => match operation.fault {
                Some(IoFailure::Short(earlier)) if earlier <= at => {}
                Some(IoFailure::Io(..)) => {}
                _ => operation.fault = Some(IoFailure::Short(at)),
            },
            fault => operation.fault = fault,
        }
    }

    fn all_moved(&mut self, id: usize, operation: &mut Operation) {
        if !operation.is_write() && operation.buffers.mistaken(operation.fault.is_none()) {
            operation.fault = None;
            operation.ranges.clear();
            operation.issued = operation.buffers.start();
            return self.ready.push_back(id);
        }
        if operation.fault.is_some() || !operation.is_write() {
            return self.done.push_back(id);
        }
        let bytes = operation.buffers.file_bytes();
        if bytes < operation.buffers.span()
            && let Some(file) = &operation.file
            && let Err(error) = rustix::fs::ftruncate(file, bytes)
        {
            return self.failed(id, operation, "trimming", Some(error.into()));
        }
        if self.syncer.is_some() {
            return self.done.push_back(id);
        }
        self.rename(id, operation);
    }

    fn rename(&mut self, id: usize, operation: &mut Operation) {
        operation.step = OperationStep::Rename;
        let rename =
            opcode::RenameAt::new(self.dir(), operation.temporary.as_ptr(), self.dir(), operation.name.as_ptr())
                .flags(libc::RENAME_NOREPLACE);
        self.request(id, 0, operation, rename.build());
    }
}
