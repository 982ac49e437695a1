//! One object on its way through io_uring.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::l2::fs::file_format::{BLOCK, Frame};
use crate::l2::fs::object_io::{Core, Fault, Reading};
use crate::l2::fs::path::c;
use crate::l2::fs::store::Writing;

/// Bytes of one read or write: an object of 1 MiB is one.
pub const PIECE: u64 = (1 << 20) + BLOCK as u64;

pub enum Job {
    Read(Reading),
    Write(Writing),
}

impl Job {
    /// The file has its room, unless for this error. Gives the error that it fails with.
    pub fn allocated(&mut self, core: &Core, error: Option<io::Error>) -> Option<io::Error> {
        match self {
            Job::Read(_) => error,
            Job::Write(writing) => core.allocated(writing, error.map_or(Ok(()), Err)).err(),
        }
    }

    /// Until when it waits for a descriptor.
    pub fn patience(&self) -> Instant {
        match self {
            Job::Read(reading) => reading.patience,
            Job::Write(writing) => writing.patience,
        }
    }
}

pub enum Step {
    Evict,
    Open,
    Allocate,
    Move,
    Rename,
}

pub struct Piece {
    pub at: u64,
    pub to: u64,
    pub parts: [libc::iovec; 3],
}

/// One object under way. Boxed, since the kernel holds addresses of its names and pieces.
pub struct Flight {
    pub job: Job,
    pub frame: Frame,
    pub step: Step,
    pub name: CString,
    pub temporary: CString,
    pub victims: Vec<CString>,
    pub file: Option<OwnedFd>,
    /// Never grown beyond its first capacity while the kernel may look at it.
    pub pieces: Vec<Piece>,
    pub issued: u64,
    /// Requests in the kernel.
    pub pending: usize,
    pub made_tmp: bool,
    pub fault: Option<Fault>,
    pub renamed: io::Result<()>,
}

impl Flight {
    pub fn new(job: Job, frame: Frame) -> Flight {
        let (name, temporary, victims) = match &job {
            Job::Read(reading) => (c(&reading.path), CString::default(), Vec::new()),
            Job::Write(writing) => {
                let victims = writing.victims.iter().map(|victim| c(victim)).collect();
                (c(&writing.path), c(&writing.temporary), victims)
            }
        };
        let issued = frame.start();
        let pieces = Vec::with_capacity(frame.span().div_ceil(PIECE) as usize);
        Flight {
            job,
            frame,
            step: Step::Open,
            name,
            temporary,
            victims,
            file: None,
            pieces,
            issued,
            pending: 0,
            made_tmp: false,
            fault: None,
            renamed: Ok(()),
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self.job, Job::Write(_))
    }
}
