//! The messages beside requests: pushes, the answer to hello, and views as they travel.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::frame::{Field, Fields, Frame};
use crate::abi::View;
use crate::arena::Arena;
use crate::error::Result;

/// Raised with every change of the messages.
pub const WIRE_VERSION: u32 = 20;

/// Push: the lookup of a job is answered.
pub const PUSH_LOOKED_UP: u32 = 1;
/// Push: a job is done.
pub const PUSH_DONE: u32 = 2;
/// Push: a job is forgotten.
pub const PUSH_RELEASED: u32 = 3;

/// Looks for the peer's next frame without sleeping, at most so long: waking up takes longer than most requests.
pub fn look_for(stream: &UnixStream, spin: Duration) {
    if spin.is_zero() {
        return;
    }
    let until = Instant::now() + spin;
    let mut byte = [0u8; 1];
    while recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_err() && Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// A view without an address: each process maps L1 elsewhere.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct WireView {
    /// Where its bytes begin in L1.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
    /// The status of the view.
    pub status: i32,
    /// Always 0: it fills the word.
    pub reserved: u32,
}

impl WireView {
    /// Where a view of `arena` lies.
    pub fn of(arena: &Arena, view: &View) -> WireView {
        let offset = (view.data as usize).saturating_sub(arena.at(0) as usize) as u64;
        WireView { offset, size: view.size, status: view.status, reserved: 0 }
    }

    /// The view in this process, if it lies inside `arena`.
    pub fn view(&self, arena: &Arena) -> Option<View> {
        if self.status != 0 {
            return Some(View { data: std::ptr::null_mut(), size: 0, status: self.status, reserved: 0 });
        }
        let inside = self.offset.checked_add(self.size).is_some_and(|end| end <= arena.bytes() as u64);
        inside.then(|| View { data: arena.at(self.offset).cast(), size: self.size, status: 0, reserved: 0 })
    }
}

/// The daemon's answer to hello. The descriptor of L1 travels with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The number of the client.
    pub client: u64,
    /// Proves that a request connection is this client's.
    pub secret: u64,
    /// This run of the daemon: the upper 16 bits of its numbers.
    pub boot: u16,
    /// Size of L1 in bytes.
    pub l1_bytes: u64,
    /// How long a session may be idle that has no time of its own.
    pub session_timeout_ms: u64,
    /// The client may only read.
    pub read_only: bool,
    /// Most bytes of a message that it takes.
    pub message_bytes_max: u32,
    /// Most request connections of one client.
    pub request_connections_max: u32,
    /// How long a reservation waits before L1 evicts unwritten objects, unless the client has a time of its own.
    pub store_wait_ms: u32,
}

impl<'a> Field<'a> for Welcome {
    fn put(&self, frame: &mut Frame) {
        frame.put(&self.client).put(&self.secret);
        frame.put(&u32::from(self.boot)).put(&self.l1_bytes).put(&self.session_timeout_ms).put(&self.read_only);
        frame.put(&self.message_bytes_max).put(&self.request_connections_max).put(&self.store_wait_ms);
    }

    fn take(fields: &mut Fields<'a>) -> Result<Welcome> {
        Ok(Welcome {
            client: fields.take()?,
            secret: fields.take()?,
            boot: fields.take::<u32>()? as u16,
            l1_bytes: fields.take()?,
            session_timeout_ms: fields.take()?,
            read_only: fields.take()?,
            message_bytes_max: fields.take()?,
            request_connections_max: fields.take()?,
            store_wait_ms: fields.take()?,
        })
    }
}
