//! One object on its way through io_uring.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::l2::fs::core::Core;
use crate::l2::fs::failures::IoFailure;
use crate::l2::fs::file_buffers::FileBuffers;
use crate::l2::fs::file_format::BLOCK;
use crate::l2::fs::load::ActiveLoad;
use crate::l2::fs::path::c;
use crate::l2::fs::store::ActiveStore;

/// Bytes of one read or write: an object of 1 MiB is one range.
pub const RANGE_BYTES: u64 = (1 << 20) + BLOCK as u64;

pub enum ActiveRequest {
    Read(ActiveLoad),
    Write(ActiveStore),
}

impl ActiveRequest {
    /// The file is allocated, or failed to be with `error`. Gives the error that the operation fails with.
    pub fn allocated(&mut self, core: &Core, error: Option<io::Error>) -> Option<io::Error> {
        match self {
            ActiveRequest::Read(_) => error,
            ActiveRequest::Write(active) => core.allocated(active, error.map_or(Ok(()), Err)).err(),
        }
    }

    /// Until when it waits for a descriptor.
    pub fn patience(&self) -> Instant {
        match self {
            ActiveRequest::Read(active) => active.patience,
            ActiveRequest::Write(active) => active.patience,
        }
    }
}

pub enum OperationStep {
    Evict,
    Open,
    Allocate,
    Move,
    Rename,
}

pub struct FileRange {
    pub at: u64,
    pub to: u64,
    pub parts: [libc::iovec; 3],
}

/// One object under way. Boxed, since the kernel holds addresses of its names and ranges.
pub struct Operation {
    pub request: ActiveRequest,
    pub buffers: FileBuffers,
    pub step: OperationStep,
    pub name: CString,
    pub temporary: CString,
    pub victims: Vec<CString>,
    pub file: Option<OwnedFd>,
    /// Never grown beyond its first capacity while the kernel may look at it.
    pub ranges: Vec<FileRange>,
    pub issued: u64,
    /// Requests in the kernel.
    pub pending: usize,
    pub made_tmp: bool,
    pub fault: Option<IoFailure>,
    pub renamed: io::Result<()>,
}

impl Operation {
    pub fn new(request: ActiveRequest, buffers: FileBuffers) -> Operation {
        let (name, temporary, victims) = match &request {
            ActiveRequest::Read(active) => (c(&active.path), CString::default(), Vec::new()),
            ActiveRequest::Write(active) => {
                let victims = active.victims.iter().map(|victim| c(victim)).collect();
                (c(&active.path), c(&active.temporary), victims)
            }
        };
        let issued = buffers.start();
        let ranges = Vec::with_capacity(buffers.span().div_ceil(RANGE_BYTES) as usize);
        Operation {
            request,
            buffers,
            step: OperationStep::Open,
            name,
            temporary,
            victims,
            file: None,
            ranges,
            issued,
            pending: 0,
            made_tmp: false,
            fault: None,
            renamed: Ok(()),
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self.request, ActiveRequest::Write(_))
    }
}
