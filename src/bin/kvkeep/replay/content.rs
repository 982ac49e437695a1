//! The bytes and the key of a block, made from its id alone, so that every byte read can be checked.

use kvkeep::key::Key;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finisher of SplitMix64: a bijection that mixes well.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn word(seed: u64, i: usize) -> u64 {
    mix(seed.wrapping_add(STEP.wrapping_mul(i as u64)))
}

fn seed(id: u64) -> u64 {
    mix(id ^ STEP)
}

/// The key of block `id`.
pub fn key(id: u64) -> Key {
    let mut hash = [0; 32];
    hash.as_chunks_mut().0.iter_mut().enumerate().for_each(|(i, part)| *part = word(mix(id), i).to_le_bytes());
    Key { hash, rank: 0, group: 0 }
}

/// Fills `bytes` with those of block `id`.
pub fn fill(id: u64, bytes: &mut [u8]) {
    let seed = seed(id);
    let (words, rest) = bytes.as_chunks_mut();
    let last = words.len();
    words.iter_mut().enumerate().for_each(|(i, place)| *place = word(seed, i).to_le_bytes());
    let tail = word(seed, last).to_le_bytes();
    rest.copy_from_slice(&tail[..rest.len()]);
}

/// How many of `bytes` are not those of block `id`.
pub fn wrong(id: u64, bytes: &[u8]) -> u64 {
    let seed = seed(id);
    let (words, rest) = bytes.as_chunks();
    let mut wrong = 0;
    for (i, have) in words.iter().enumerate() {
        let differ = u64::from_le_bytes(*have) ^ word(seed, i);
        if differ != 0 {
            wrong += differ.to_le_bytes().iter().filter(|&&byte| byte != 0).count() as u64;
        }
    }
    let tail = word(seed, words.len()).to_le_bytes();
    wrong + rest.iter().zip(tail).filter(|(have, want)| **have != *want).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_byte_is_counted() {
        for len in [1, 7, 8, 4096, 4099] {
            let mut bytes = vec![0; len];
            fill(5, &mut bytes);
            assert_eq!(wrong(5, &bytes), 0);
            assert!(wrong(6, &bytes) > 0);
            bytes[0] ^= 1;
            bytes[len - 1] ^= 0x80;
            assert_eq!(wrong(5, &bytes), 2.min(len as u64));
        }
        assert_ne!(key(0).hash, key(1).hash);
    }
}
