//! The answers to a store that asks to be written.

use crate::error::Error;
use crate::key::ObjectKey;
use crate::l2::StoreRequest;
use crate::l2::object_header::HeaderDetails;

/// The right to write one object.
pub struct Reservation {
    pub slot: u32,
    /// Evicted for it; unlinked before the first byte is written.
    pub victims: Vec<ObjectKey>,
    pub bytes: u64,
    /// Bytes of its victims until they are unlinked, and those of them beyond its own.
    pub(super) freed: u64,
    pub(super) excess: u64,
    pub(super) known: Option<HeaderDetails>,
}

/// Whether an object may be written now.
pub enum Admit {
    /// The caller writes it.
    Go(StoreRequest, Reservation),
    /// The object is there already.
    Already(StoreRequest),
    /// It cannot be written, for this reason.
    Refused(StoreRequest, Error),
    /// The index keeps it until a write or an unlink ends; the call that ends that gives it back.
    Waits,
}
