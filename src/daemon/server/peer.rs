//! The process at the other end of a socket, as the kernel knows it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A number that cannot be guessed. Read by the system call itself: a file would need a descriptor.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the place and its length are those of an array of ours.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // So few bytes come whole, or not at all.
    if got == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// The process that connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The process number, 0 if it has none here: it lives among the processes of another container.
    pub pid: u32,
    /// The effective user number.
    pub uid: u32,
    /// The effective group number.
    pub gid: u32,
}

impl Peer {
    /// The process that connected a socket. Read by the system call itself: its wrappers elsewhere know no process 0.
    pub fn of(stream: &UnixStream) -> io::Result<Peer> {
        let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the place and its length are those of one `ucred`, which any bytes make.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut cred).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Peer { pid: cred.pid.max(0) as u32, uid: cred.uid, gid: cred.gid })
    }

    /// A descriptor that is readable once the process has ended, even if another inherited its sockets. None if this system has
    /// none, an error if no descriptor is left.
    pub fn watch(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid as i32) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(error @ (Errno::MFILE | Errno::NFILE)) => Err(error.into()),
            watch => Ok(watch.ok()),
        }
    }
}
