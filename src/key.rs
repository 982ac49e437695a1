//! The name of an object: a chunk's hash, a rank and a group, inside a space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names an object inside a space. Plain data, 40 bytes, so that arrays of it cross the ABI uncopied.
///
/// Below L1, whole keys are compared. L1 knows a key by a fingerprint: 80 bits of a universal hash of all its bytes, which each process
/// seeds from the operating system's randomness. Two keys have one fingerprint with a chance of at most 2^-79, also if a caller
/// chooses them, and a call that looks a key up gets the object of another key with a chance of less than 2^-80.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// Hash of all tokens up to the end of the chunk.
    pub hash: [u8; 32],
    /// Slice of the KV cache (tensor or pipeline parallel rank) that the object holds.
    pub rank: u32,
    /// Set of layers cached alike (full attention, sliding window, state).
    pub group: u32,
}

const _: () = assert!(size_of::<Key>() == 40);

/// Fingerprint of a space: model, layout, chunk tokens and tenant. Objects of two tags never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SpaceTag(pub [u8; 16]);

impl SpaceTag {
    /// The number that callers know the space by: the same in every process and after every restart, never 0.
    pub fn number(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
    }
}

/// Names an object everywhere below L1, across processes and restarts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The space the object belongs to.
    pub space: SpaceTag,
    /// Its key inside that space.
    pub key: Key,
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// The bytes of `text`, which is exactly `N` of them in hexadecimal; else None.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16)?;
        let low = (pair[1] as char).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", hex(&self.hash), self.rank, self.group)
    }
}

impl Key {
    /// Whether it is the one of its chunk's keys that counts the chunk: that of rank 0 and group 0.
    #[inline]
    pub fn stands_for_chunk(&self) -> bool {
        self.rank | self.group == 0
    }

    /// All of it as numbers: the hash, then rank and group.
    #[inline]
    pub fn words(&self) -> [u64; 5] {
        let word = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.hash[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(bytes)
        };
        [word(0), word(1), word(2), word(3), u64::from(self.rank) << 32 | u64::from(self.group)]
    }

    /// The key that [`Display`](std::fmt::Display) wrote as `text`.
    pub fn parse(text: &str) -> Option<Key> {
        let mut parts = text.split(':');
        let hash = unhex(parts.next()?)?;
        let rank = parts.next()?.parse().ok()?;
        let group = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Key { hash, rank, group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_key_reads_back() {
        let mut key = Key { hash: [0xa5; 32], rank: 7, group: 2 };
        key.hash[0] = 0;
        assert_eq!(Key::parse(&key.to_string()), Some(key));
        assert_eq!(Key::parse("a5:0:0"), None);
        assert_eq!(Key::parse(&format!("{key}:1")), None);
    }
}
