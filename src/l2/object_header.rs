//! The header of every object below L1: its identity, and a checksum of its payload. 160 bytes, numbers in little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic, `KVKEEPOB` |
//! | 8 | 4 | version of the header: 1, or 2 if the payload is encrypted |
//! | 12 | 4 | kind of the payload's checksum: 0 none, 1 CRC-32C |
//! | 16 | 8 | bytes of payload |
//! | 24 | 4 | CRC-32C of the payload, as it is stored |
//! | 28 | 4 | 0 |
//! | 32 | 16 | space tag |
//! | 48 | 16 | layout tag |
//! | 64 | 32 | hash of the key |
//! | 96 | 4 | rank of the key |
//! | 100 | 4 | group of the key |
//! | 104 | 16 | shape tag, 0 where the shape is unknown |
//! | 120 | 8 | id of the master key; this and the next two are 0 in version 1 |
//! | 128 | 12 | nonce |
//! | 140 | 16 | tag of AES-256-GCM; bytes 0 to 139 are its associated data, with a payload's checksum of 0 |
//! | 156 | 4 | CRC-32C of bytes 0 to 155 |

use std::io::{self, Read};

use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::shape::ShapeTag;

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 160;
const MAGIC: [u8; 8] = *b"KVKEEPOB";
const VERSION: u32 = 1;
const ENCRYPTED_VERSION: u32 = 2;
/// Bytes of a payload read at a time.
const PIECE_BYTES: u64 = 1 << 20;
const SHAPE_AT: usize = 104;
const KEY_ID_AT: usize = 120;
const NONCE_AT: usize = 128;
const TAG_AT: usize = 140;
const KIND_NONE: u32 = 0;
const KIND_CRC32C: u32 = 1;

/// The header as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header(pub [u8; HEADER_BYTES]);

/// CRC-32C (Castagnoli, RFC 3720) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The fields of a header beyond the object's key and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderDetails {
    /// Tag of the layout of its space.
    pub layout: [u8; 16],
    /// Tag of its shape.
    pub shape: ShapeTag,
    /// CRC-32C of the payload.
    pub crc: u32,
}

impl HeaderDetails {
    /// Whether `payload` has the checksum.
    pub fn fits(&self, payload: &[u8]) -> bool {
        crc32c(payload) == self.crc
    }
}

/// What the header of an encrypted object has besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encryption {
    /// Names the master key.
    pub key_id: [u8; 8],
    /// Random bits of this object alone.
    pub nonce: [u8; 12],
    /// Proves that neither ciphertext nor header was changed.
    pub tag: [u8; 16],
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn array_at<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

impl Header {
    /// The header of `payload`, the object `key` of a space with the layout `layout`. Without `checksum` only identity and length can
    /// be verified later.
    pub fn new(key: &ObjectKey, layout: &[u8; 16], payload: &[u8], checksum: bool) -> Header {
        let header = Header::unsummed(key, layout, payload.len() as u64, checksum);
        if checksum { header.summed(payload) } else { header }
    }

    /// The header of a payload of `length` bytes. The payload's checksum, if it is to have one, is 0 still.
    pub(super) fn unsummed(key: &ObjectKey, layout: &[u8; 16], length: u64, checksum: bool) -> Header {
        Header::write(key, layout, length, if checksum { KIND_CRC32C } else { KIND_NONE }, 0)
    }

    /// The same header, with the checksum of `payload`.
    pub(super) fn summed(mut self, payload: &[u8]) -> Header {
        self.0[24..28].copy_from_slice(&crc32c(payload).to_le_bytes());
        self.sum_up();
        self
    }

    /// The same header, with the shape's tag.
    pub fn of_shape(mut self, shape: ShapeTag) -> Header {
        self.0[SHAPE_AT..SHAPE_AT + 16].copy_from_slice(&shape.0);
        self.sum_up();
        self
    }

    /// The tag of the object's shape. The caller has verified the header.
    pub fn shape(&self) -> ShapeTag {
        ShapeTag(array_at(&self.0, SHAPE_AT))
    }

    /// The header of an object of which all fields are known.
    pub fn again(key: &ObjectKey, length: u64, known: &HeaderDetails) -> Header {
        Header::write(key, &known.layout, length, KIND_CRC32C, known.crc).of_shape(known.shape)
    }

    fn write(key: &ObjectKey, layout: &[u8; 16], length: u64, kind: u32, crc: u32) -> Header {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        bytes[16..24].copy_from_slice(&length.to_le_bytes());
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        bytes[32..48].copy_from_slice(&key.space.0);
        bytes[48..64].copy_from_slice(layout);
        bytes[64..96].copy_from_slice(&key.key.hash);
        bytes[96..100].copy_from_slice(&key.key.rank.to_le_bytes());
        bytes[100..104].copy_from_slice(&key.key.group.to_le_bytes());
        let mut header = Header(bytes);
        header.sum_up();
        header
    }

    /// Writes the header's own checksum.
    pub(super) fn sum_up(&mut self) {
        let own = crc32c(&self.0[..HEADER_BYTES - 4]);
        self.0[HEADER_BYTES - 4..].copy_from_slice(&own.to_le_bytes());
    }

    /// The header of the object whose payload is about to be encrypted: its checksum and its tag are 0 still.
    pub fn encrypting(mut self, key_id: &[u8; 8], nonce: &[u8; 12]) -> Header {
        self.0[8..12].copy_from_slice(&ENCRYPTED_VERSION.to_le_bytes());
        self.0[12..16].copy_from_slice(&KIND_CRC32C.to_le_bytes());
        self.0[24..28].fill(0);
        self.0[KEY_ID_AT..NONCE_AT].copy_from_slice(key_id);
        self.0[NONCE_AT..TAG_AT].copy_from_slice(nonce);
        self
    }

    /// The header of the object whose payload is encrypted to `ciphertext`.
    pub fn encrypted(mut self, tag: &[u8; 16], ciphertext: &[u8]) -> Header {
        self.0[24..28].copy_from_slice(&crc32c(ciphertext).to_le_bytes());
        self.0[TAG_AT..TAG_AT + 16].copy_from_slice(tag);
        self.sum_up();
        self
    }

    /// The bytes of an encrypted object's header that are authenticated with the payload.
    pub fn associated_data(&self) -> [u8; TAG_AT] {
        let mut data = [0; TAG_AT];
        data.copy_from_slice(&self.0[..TAG_AT]);
        data[24..28].fill(0);
        data
    }

    /// How the payload is encrypted, if it is.
    pub fn encryption(&self) -> Option<Encryption> {
        (u32_at(&self.0, 8) == ENCRYPTED_VERSION).then(|| Encryption {
            key_id: array_at(&self.0, KEY_ID_AT),
            nonce: array_at(&self.0, NONCE_AT),
            tag: array_at(&self.0, TAG_AT),
        })
    }

    /// The header of the object once its payload is decrypted. It has no checksum.
    pub fn decrypted(&self) -> Header {
        let mut header = *self;
        header.0[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header.0[12..16].copy_from_slice(&KIND_NONE.to_le_bytes());
        header.0[24..28].fill(0);
        header.0[KEY_ID_AT..HEADER_BYTES - 4].fill(0);
        header.sum_up();
        header
    }

    /// Checks the header's magic, version and own checksum. Gives the object's key and bytes of payload.
    pub fn open(&self) -> Result<(ObjectKey, u64)> {
        let bytes = &self.0;
        if bytes[0..8] != MAGIC {
            return Err(corrupt("the object has no kvkeep header (torn write or foreign file)"));
        }
        let version = u32_at(bytes, 8);
        if !matches!(version, VERSION | ENCRYPTED_VERSION) {
            return Err(corrupt(format!(
                "the object has header version {version}, this build reads {VERSION} and {ENCRYPTED_VERSION}"
            )));
        }
        if crc32c(&bytes[..HEADER_BYTES - 4]) != u32_at(bytes, HEADER_BYTES - 4) {
            return Err(corrupt("the object's header does not match its checksum"));
        }
        let key = ObjectKey {
            space: SpaceTag(array_at(bytes, 32)),
            key: Key { hash: array_at(bytes, 64), rank: u32_at(bytes, 96), group: u32_at(bytes, 100) },
        };
        Ok((key, u64::from_le_bytes(array_at(bytes, 16))))
    }

    /// The fields of the header beyond `key` and `length`, if it is theirs, whole, not that of an encrypted object, and has a
    /// checksum of the payload.
    pub fn known(&self, key: &ObjectKey, length: u64) -> Option<HeaderDetails> {
        if self.encryption().is_some() {
            return None;
        }
        self.identify(key, None, length).ok()?;
        let crc = self.payload_crc().ok()??;
        Some(HeaderDetails { layout: array_at(&self.0, 48), shape: self.shape(), crc })
    }

    /// Checks identity, length, layout (if the caller knows it) and, unless `checksum` is off, the payload's bytes. An encrypted
    /// payload is none that can be used: UNSUPPORTED.
    pub fn verify(&self, key: &ObjectKey, layout: Option<&[u8; 16]>, payload: &[u8], checksum: bool) -> Result<()> {
        self.identify(key, layout, payload.len() as u64)?;
        if self.encryption().is_some() {
            let why =
                "the object is encrypted: name its key in the URL of the backend (key_file=, key_env=, key_from=)";
            return Err(Error::new(KVKEEP_ERR_UNSUPPORTED, why));
        }
        match self.payload_crc()? {
            Some(crc) if checksum && crc32c(payload) != crc => Err(changed()),
            _ => Ok(()),
        }
    }

    /// As [`verify`](Header::verify), of a payload of `length` bytes that is read piece by piece. `Err` outside: it cannot
    /// be read.
    pub fn verify_read(&self, key: &ObjectKey, length: u64, payload: &mut dyn Read) -> io::Result<Result<()>> {
        let crc = match self.identify(key, None, length).and_then(|()| self.payload_crc()) {
            Ok(Some(crc)) => crc,
            other => return Ok(other.map(drop)),
        };
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut piece = vec![0; PIECE_BYTES.min(length) as usize];
        let mut left = length;
        while left > 0 {
            let now = &mut piece[..PIECE_BYTES.min(left) as usize];
            payload.read_exact(now)?;
            digest.update(now);
            left -= now.len() as u64;
        }
        Ok(if digest.finalize() as u32 == crc { Ok(()) } else { Err(changed()) })
    }

    fn identify(&self, key: &ObjectKey, layout: Option<&[u8; 16]>, read: u64) -> Result<()> {
        let (found, length) = self.open()?;
        if found.space != key.space {
            return Err(corrupt("the object belongs to another space (model, layout or tenant)"));
        }
        if found.key != key.key {
            return Err(corrupt(format!("the object is that of key {}", found.key)));
        }
        if layout.is_some_and(|layout| *layout != self.0[48..64]) {
            return Err(corrupt("the object was written with another layout"));
        }
        if length != read {
            return Err(corrupt(format!("the object has {length} bytes, {read} were read")));
        }
        Ok(())
    }

    /// The checksum of the payload, if the header has one.
    fn payload_crc(&self) -> Result<Option<u32>> {
        match u32_at(&self.0, 12) {
            KIND_CRC32C => Ok(Some(u32_at(&self.0, 24))),
            KIND_NONE => Ok(None),
            other => Err(corrupt(format!("the object has an unknown checksum kind {other}"))),
        }
    }
}

fn changed() -> Error {
    corrupt("the object's bytes do not match their checksum")
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(KVKEEP_ERR_CORRUPT, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> (ObjectKey, Vec<u8>) {
        let key = Key { hash: [3; 32], rank: 1, group: 2 };
        (ObjectKey { space: SpaceTag([9; 16]), key }, (0..5000u32).map(|i| i as u8).collect())
    }

    #[test]
    fn crc32c_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn p7_any_flipped_bit_is_found() {
        let (key, mut payload) = object();
        let header = Header::new(&key, &[7; 16], &payload, true);
        assert!(header.verify(&key, Some(&[7; 16]), &payload, true).is_ok());
        for bit in 0..HEADER_BYTES * 8 {
            let mut torn = header;
            torn.0[bit / 8] ^= 1 << (bit % 8);
            assert!(torn.verify(&key, None, &payload, true).is_err(), "header bit {bit}");
        }
        for bit in (0..payload.len() * 8).step_by(13) {
            payload[bit / 8] ^= 1 << (bit % 8);
            assert!(header.verify(&key, None, &payload, true).is_err(), "payload bit {bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_seal_says_of_which_shape_the_object_is() {
        let (key, payload) = object();
        let plain = Header::new(&key, &[7; 16], &payload, true);
        assert_eq!(plain.shape(), ShapeTag::UNKNOWN);
        let shaped = plain.of_shape(ShapeTag([5; 16]));
        assert!(shaped.verify(&key, Some(&[7; 16]), &payload, true).is_ok());
        let known = shaped.known(&key, payload.len() as u64).unwrap();
        assert_eq!((shaped.shape(), known.shape), (ShapeTag([5; 16]), ShapeTag([5; 16])));
        assert_eq!(Header::again(&key, payload.len() as u64, &known), shaped);
    }

    #[test]
    fn a_payload_read_in_pieces_is_verified_alike() {
        let key = object().0;
        let mut payload: Vec<u8> = (0..2 * PIECE_BYTES as u32 + 77).map(|i| (i >> 3) as u8).collect();
        let length = payload.len() as u64;
        for checksum in [true, false] {
            let header = Header::new(&key, &[7; 16], &payload, checksum);
            assert!(header.verify_read(&key, length, &mut &payload[..]).unwrap().is_ok());
            assert!(header.verify_read(&key, length - 1, &mut &payload[..]).unwrap().is_err());
            *payload.last_mut().unwrap() ^= 1;
            assert_eq!(header.verify_read(&key, length, &mut &payload[..]).unwrap().is_err(), checksum);
            *payload.last_mut().unwrap() ^= 1;
        }
        let header = Header::new(&key, &[7; 16], &payload, true);
        assert!(header.verify_read(&key, length, &mut &payload[1..]).is_err());
    }

    #[test]
    fn p7_identity_and_length_are_verified_without_a_checksum_too() {
        let (key, payload) = object();
        let header = Header::new(&key, &[7; 16], &payload, false);
        let mut other = key;
        other.key.rank += 1;
        assert!(header.verify(&other, None, &payload, true).is_err());
        let other = ObjectKey { space: SpaceTag([8; 16]), ..key };
        assert!(header.verify(&other, None, &payload, true).is_err());
        assert!(header.verify(&key, Some(&[6; 16]), &payload, true).is_err());
        assert!(header.verify(&key, None, &payload[1..], true).is_err());
        assert!(header.verify(&key, None, &payload, true).is_ok());
    }
}
