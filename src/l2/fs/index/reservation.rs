//! The answers to a store that asks to be written.

use crate::error::Error;
use crate::key::ObjectKey;
use crate::l2::StoreRequest;
use crate::l2::object_header::HeaderDetails;

/// The right to write one object.
pub struct Reservation {
    pub slot: u32,
    /// To be unlinked before the first byte is written.
    pub victims: Vec<ObjectKey>,
    pub bytes: u64,
    /// Bytes of its victims until they are unlinked, and those of them beyond its own.
    pub(super) freed: u64,
    pub(super) excess: u64,
    pub(super) known: Option<HeaderDetails>,
}

/// Whether an object may be written now.
pub enum Admit {
    /// Write it.
    Go(StoreRequest, Reservation),
    /// It is there.
    Already(StoreRequest),
    /// It cannot be written.
    Refused(StoreRequest, Error),
    /// It waits in the index for a write or an unlink to end, and comes back from the call that ends it.
    Waits,
}
