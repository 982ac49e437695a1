//! The keys and values of objects on a server.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>{<space>:<hash>:<rank>:<group>}` | the header, then the payload; or a manifest |
//! | `<that>/<nonce>/<number>` | a part of the payload |
//!
//! A payload above a bound is stored in parts, and a manifest of 192 bytes last, so that an object is found whole or not at all. The
//! nonce keeps the parts of two writers apart. The braces have a cluster keep all keys of an object on one server.
//!
//! | offset | bytes | field of a manifest, numbers in little endian |
//! |---|---|---|
//! | 0 | 8 | magic, `KVKEEPPT` |
//! | 8 | 4 | version of the manifest, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 8 | bytes of each part but the last |
//! | 24 | 8 | nonce |
//! | 32 | 160 | header of the object |

use std::ops::Range;

use crate::key::{Key, ObjectKey, SpaceTag, hex, unhex};
use crate::l2::object_header::{HEADER_BYTES, Header};

const MAGIC: [u8; 8] = *b"KVKEEPPT";
const VERSION: u32 = 1;
/// Bytes of a [`Manifest`].
pub const MANIFEST_BYTES: usize = 32 + HEADER_BYTES;
/// No part but the last is shorter.
pub const PART_MIN: usize = 1 << 20;

/// The list of an object's parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manifest {
    pub header: Header,
    /// Bytes of the payload.
    pub length: usize,
    pub part: usize,
    pub nonce: u64,
}

/// An object as the first [`MANIFEST_BYTES`] bytes of the value under its key show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoredHead {
    /// There is no value.
    Absent,
    /// The value is not an object, or not this one.
    Foreign,
    /// Its payload, of this many bytes, is behind its header.
    Whole(u64),
    Parts(Manifest),
}

/// The key of an object.
pub fn object_name(prefix: &str, key: &ObjectKey) -> String {
    format!("{prefix}{{{}:{}}}", hex(&key.space.0), key.key)
}

/// The key of a part of the object that has the key `name`.
pub fn part_name(name: &str, nonce: u64, number: usize) -> String {
    format!("{name}/{nonce:016x}/{number}")
}

/// The object that a key names, itself or a part of it; true for a part.
pub fn parse_name(prefix: &str, name: &[u8]) -> Option<(ObjectKey, bool)> {
    let name = std::str::from_utf8(name).ok()?.strip_prefix(prefix)?.strip_prefix('{')?;
    let (object, part) = name.split_once('}')?;
    let (space, key) = object.split_once(':')?;
    Some((ObjectKey { space: SpaceTag(unhex(space)?), key: Key::parse(key)? }, !part.is_empty()))
}

/// The pattern that matches the keys of a space, or of all spaces.
pub fn name_pattern(prefix: &str, space: Option<SpaceTag>) -> String {
    let mut pattern = String::new();
    for letter in prefix.chars() {
        if "*?[]\\^".contains(letter) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern + "{" + &space.map_or(String::new(), |space| hex(&space.0) + ":") + "*"
}

impl Manifest {
    /// How many parts it has.
    pub fn parts(&self) -> usize {
        self.length.div_ceil(self.part)
    }

    /// The bytes of the payload that a part has.
    pub fn range(&self, number: usize) -> Range<usize> {
        let from = number * self.part;
        from..self.length.min(from + self.part)
    }

    pub fn write(&self) -> [u8; MANIFEST_BYTES] {
        let mut bytes = [0; MANIFEST_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&(self.part as u64).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[32..].copy_from_slice(&self.header.0);
        bytes
    }

    fn parse(bytes: &[u8], key: &ObjectKey) -> Option<Manifest> {
        let (fields, header) = bytes.split_first_chunk::<32>()?;
        let header = Header(*header.first_chunk()?);
        let number = |at: usize| Some(u64::from_le_bytes(*fields[at..].first_chunk()?));
        let version = u32::from_le_bytes(*fields[8..].first_chunk()?);
        let (found, length) = header.open().ok()?;
        let (length, part) = (usize::try_from(length).ok()?, usize::try_from(number(16)?).ok()?);
        let fits = fields[..8] == MAGIC && version == VERSION && found == *key && part >= PART_MIN && length > 0;
        fits.then_some(Manifest { header, length, part, nonce: number(24)? })
    }
}

impl StoredHead {
    /// The head of the object `key`, of which `bytes` are the first [`MANIFEST_BYTES`], or all if there are fewer.
    pub fn parse(bytes: &[u8], key: &ObjectKey) -> StoredHead {
        if bytes.is_empty() {
            return StoredHead::Absent;
        }
        if let Some(manifest) = Manifest::parse(bytes, key) {
            return StoredHead::Parts(manifest);
        }
        match bytes.first_chunk().map(|header| Header(*header).open()) {
            Some(Ok((found, length))) if found == *key => StoredHead::Whole(length),
            _ => StoredHead::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey { space: SpaceTag([0xab; 16]), key: Key { hash: [0xcd; 32], rank: 3, group: 4 } }
    }

    #[test]
    fn a_name_reads_back() {
        let name = object_name("kv:", &key());
        assert_eq!(name, format!("kv:{{{}:{}:3:4}}", "ab".repeat(16), "cd".repeat(32)));
        assert_eq!(parse_name("kv:", name.as_bytes()), Some((key(), false)));
        let part = part_name(&name, 7, 12);
        assert_eq!(part, format!("{name}/0000000000000007/12"));
        assert_eq!(parse_name("kv:", part.as_bytes()), Some((key(), true)));
        assert_eq!(parse_name("kx:", name.as_bytes()), None);
        assert_eq!(parse_name("kv:", b"kv:{abc:1}"), None);
        assert_eq!(name_pattern("a*[b]\\", None), "a\\*\\[b\\]\\\\{*");
        assert_eq!(name_pattern("kv:", Some(key().space)), format!("kv:{{{}:*", "ab".repeat(16)));
    }

    #[test]
    fn the_head_of_a_value_tells_which_object_it_is() {
        let header = Header::new(&key(), &[1; 16], &[9; 50], true);
        let whole = [&header.0[..], &[9; 32]].concat();
        assert_eq!(StoredHead::parse(&whole, &key()), StoredHead::Whole(50));
        let other = ObjectKey { space: SpaceTag([0; 16]), ..key() };
        assert_eq!(StoredHead::parse(&whole, &other), StoredHead::Foreign);
        for bytes in [&b"hello"[..], &whole[1..], &whole[..100]] {
            assert_eq!(StoredHead::parse(bytes, &key()), StoredHead::Foreign);
        }
        assert_eq!(StoredHead::parse(b"", &key()), StoredHead::Absent);
        let manifest = Manifest { header, length: 50, part: PART_MIN, nonce: 77 };
        let bytes = manifest.write();
        assert_eq!(StoredHead::parse(&bytes, &key()), StoredHead::Parts(manifest));
        assert_eq!(StoredHead::parse(&bytes, &other), StoredHead::Foreign);
        for at in [0, 8, 16, 40] {
            let mut torn = bytes;
            torn[at] ^= 0xff;
            torn[18] = 0;
            assert_eq!(StoredHead::parse(&torn, &key()), StoredHead::Foreign, "{at}");
        }
    }

    #[test]
    fn parts_cover_the_payload() {
        let header = Header::new(&key(), &[1; 16], &[], true);
        let manifest = Manifest { header, length: 2 * PART_MIN + 5, part: PART_MIN, nonce: 1 };
        let ranges: Vec<_> = (0..manifest.parts()).map(|number| manifest.range(number)).collect();
        assert_eq!(ranges, [0..PART_MIN, PART_MIN..2 * PART_MIN, 2 * PART_MIN..2 * PART_MIN + 5]);
    }
}
