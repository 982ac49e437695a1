//! The header of an object on its way to a backend.

use super::object_header::Header;
use crate::key::ObjectKey;
use crate::shape::ShapeTag;

/// A header whose checksum of the payload may still have to be made. A backend makes it when it is about to send the payload, which is
/// read from memory once then. A backend that makes a checksum of other bytes never asks for it.
#[derive(Clone, Copy, Debug)]
pub struct StoreHeader {
    header: Header,
    owes_checksum: bool,
}

impl From<Header> for StoreHeader {
    fn from(header: Header) -> StoreHeader {
        StoreHeader { header, owes_checksum: false }
    }
}

impl StoreHeader {
    /// The header of a payload of `length` bytes, the object `key` of a space with the layout `layout`. With `checksum` it owes one.
    pub fn new(key: &ObjectKey, layout: &[u8; 16], shape: ShapeTag, length: u64, checksum: bool) -> StoreHeader {
        let header = Header::unsummed(key, layout, length, checksum).of_shape(shape);
        StoreHeader { header, owes_checksum: checksum }
    }

    /// The header without the checksum that it may owe.
    pub fn identity(&self) -> &Header {
        &self.header
    }

    /// The header to store with `payload`.
    pub fn seal(&self, payload: &[u8]) -> Header {
        if self.owes_checksum { self.header.summed(payload) } else { self.header }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, SpaceTag};

    #[test]
    fn a_sealed_header_is_that_of_its_payload() {
        let key = ObjectKey { space: SpaceTag([9; 16]), key: Key { hash: [3; 32], rank: 1, group: 2 } };
        let (payload, shape) = ([5; 5000], ShapeTag([4; 16]));
        for checksum in [true, false] {
            let owing = StoreHeader::new(&key, &[7; 16], shape, 5000, checksum);
            let sealed = owing.seal(&payload);
            assert_eq!(sealed, Header::new(&key, &[7; 16], &payload, checksum).of_shape(shape));
            assert_eq!(sealed != *owing.identity(), checksum);
            // Made once: other bytes do not change it.
            assert_eq!(StoreHeader::from(sealed).seal(&[6; 5000]), sealed);
        }
    }
}
