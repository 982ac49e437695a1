//! The file of one object. Offsets and lengths are in bytes, numbers are little endian.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 160 | the object header, field by field in [`object_header`](crate::l2::object_header) |
//! | 160 | 3936 | zeros, so that the payload begins at a block |
//! | 4096 | payload bytes | the payload |
//!
//! The file ends with the payload: its length is 4096 and the payload's length, which need not be a multiple of anything. Its name
//! gives the key ([`path`](super::path)), its time of modification is that of the last use.

/// Unit of direct I/O, and the room in front of the payload.
pub const BLOCK: usize = 4096;

/// Bytes of disk that a payload of `size` bytes takes.
pub const fn disk_bytes(size: u64) -> u64 {
    (BLOCK as u64).saturating_add(size).next_multiple_of(BLOCK as u64)
}

/// Whether the header's block is much of an object whose payload has `size` bytes.
pub const fn is_small(size: u64) -> bool {
    0 < size && size <= 16 * BLOCK as u64
}

/// Bytes of payload of a file, if it is long enough to be an object.
pub fn payload_of(file_bytes: u64) -> Option<u64> {
    file_bytes.checked_sub(BLOCK as u64)
}
