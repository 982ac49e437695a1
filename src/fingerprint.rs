//! Fingerprints of keys: eighty bits that stand for a key and its space where the key itself lies too far away to be compared.
//!
//! They are of a hash that is multilinear modulo a Mersenne prime, with secret random multipliers (Carter and Wegman 1979): a caller
//! that chooses two keys without knowing the multipliers gets one fingerprint for both with a chance of 2^-79. Fingerprints are compared
//! only where other bits of the hash brought them to the same bucket of a table under the same tag, a tenth of an object for a key that is not there. So of
//! a trillion keys asked for, one is taken for another with a chance of less than one in a trillion.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use crate::ablation::{self, Optimization};
use crate::hash::KeyHasher;
use crate::key::Key;

/// The prime, 2^127 - 1.
const PRIME: u128 = u128::MAX >> 1;
/// Odd, so that it makes different numbers of different ones: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Stands for a key in a space of a tier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fingerprint {
    /// Of the key alone, for tables. Made of none of the fingerprint's bits.
    pub hash: u64,
    /// The fingerprint's first 64 bits.
    pub low: u64,
    /// The other 16 bits.
    pub high: u16,
}

impl Fingerprint {
    /// The fingerprint of the same key in the space of this index. From a fingerprint that no space is in yet.
    #[inline]
    pub fn within(self, space: u32) -> Fingerprint {
        Fingerprint { low: self.low ^ u64::from(space).wrapping_mul(SPREAD), ..self }
    }
}

/// Makes fingerprints, with the multipliers of this process.
#[derive(Clone)]
pub struct Fingerprinter {
    multipliers: [u128; 5],
    summand: u128,
}

impl Fingerprinter {
    /// The one of this process: a thread takes the fingerprints that it remembers from one cache to the next.
    pub fn of_process() -> Fingerprinter {
        static FINGERPRINTER: LazyLock<Fingerprinter> = LazyLock::new(Fingerprinter::new);
        FINGERPRINTER.clone()
    }

    fn new() -> Fingerprinter {
        let state = RandomState::new();
        let random = |i: u32| (u128::from(state.hash_one(2 * i)) << 64 | u128::from(state.hash_one(2 * i + 1))) & PRIME;
        Fingerprinter { multipliers: [0, 1, 2, 3, 4].map(random), summand: random(5) }
    }

    /// The fingerprint of a key, of no space yet.
    #[inline]
    pub fn fingerprint(&self, key: &Key) -> Fingerprint {
        if ablation::is_off(Optimization::KeyFingerprint) {
            let hash = const { KeyHasher::fixed() }.hash(key);
            return Fingerprint { hash, low: hash, high: 0 };
        }
        // Sums of the products with the lower and the upper halves of the multipliers, and the carries beyond 128 bits.
        let (mut low, mut low_carry) = (self.summand, 0_u64);
        let (mut high, mut high_carry) = (0_u128, 0_u64);
        for (word, multiplier) in key.words().into_iter().zip(&self.multipliers) {
            let (sum, carry) = low.overflowing_add(u128::from(word) * u128::from(*multiplier as u64));
            (low, low_carry) = (sum, low_carry + u64::from(carry));
            let (sum, carry) = high.overflowing_add(u128::from(word) * (multiplier >> 64));
            (high, high_carry) = (sum, high_carry + u64::from(carry));
        }
        // The upper sum has the weight 2^64. 2^127 is 1, 2^128 is 2, and 2^192 is 2^65.
        let (sum, carry) = low.overflowing_add(high << 64);
        let above = (high >> 64) + u128::from(low_carry) + u128::from(carry);
        let sum = (sum & PRIME) + (sum >> 127) + 2 * above + (u128::from(high_carry) << 65);
        let sum = (sum & PRIME) + (sum >> 127);
        // Numbers in a row make sums in a row.
        let spread = ((sum >> 80) as u64).wrapping_mul(SPREAD);
        Fingerprint { hash: spread ^ spread >> 32, low: sum as u64, high: (sum >> 64) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long multiplication, bit by bit.
    fn times(word: u64, multiplier: u128) -> u128 {
        let (mut sum, mut power) = (0, multiplier % PRIME);
        for bit in 0..64 {
            if word >> bit & 1 == 1 {
                sum = (sum + power) % PRIME;
            }
            power = 2 * power % PRIME;
        }
        sum
    }

    fn key(words: [u64; 4], rank: u32, group: u32) -> Key {
        let mut hash = [0; 32];
        hash.chunks_exact_mut(8).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_ne_bytes()));
        Key { hash, rank, group }
    }

    proptest::proptest! {
        #[test]
        fn it_is_the_sum_of_products_modulo_the_prime(words: [u64; 4], rank: u32, group: u32, edge in 0..3_usize) {
            let mut fingerprinter = Fingerprinter::new();
            // Where carries are likeliest.
            if edge > 0 {
                fingerprinter.multipliers = [PRIME - edge as u128; 5];
                fingerprinter.summand = PRIME - 1;
            }
            let [a, b, c, d] = words;
            let last = u64::from(rank) << 32 | u64::from(group);
            let products = [a, b, c, d, last].into_iter().zip(fingerprinter.multipliers).map(|(word, by)| times(word, by));
            let sum = products.fold(fingerprinter.summand % PRIME, |sum, product| (sum + product) % PRIME);
            let fingerprint = fingerprinter.fingerprint(&key(words, rank, group));
            proptest::prop_assert_eq!((fingerprint.low, fingerprint.high), (sum as u64, (sum >> 64) as u16));
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let fingerprinter = Fingerprinter { multipliers: [PRIME; 5], summand: PRIME };
        let fingerprint = fingerprinter.fingerprint(&key([u64::MAX; 4], u32::MAX, u32::MAX));
        // All is a multiple of the prime, which stands for 0.
        assert!([(0, 0), (u64::MAX, u16::MAX)].contains(&(fingerprint.low, fingerprint.high)));
    }

    #[test]
    fn every_bit_of_a_key_and_its_space_count() {
        let fingerprinter = Fingerprinter::new();
        let nothing = fingerprinter.fingerprint(&key([0; 4], 0, 0));
        let mut fingerprints = vec![nothing];
        for bit in 0..256 {
            let mut words = [0; 4];
            words[bit / 64] = 1 << (bit % 64);
            fingerprints.push(fingerprinter.fingerprint(&key(words, 0, 0)));
        }
        for bit in 0..32 {
            fingerprints.push(fingerprinter.fingerprint(&key([0; 4], 1 << bit, 0)));
            fingerprints.push(fingerprinter.fingerprint(&key([0; 4], 0, 1 << bit)));
        }
        fingerprints.extend((1..1 << 16).map(|space| nothing.within(space)));
        let all: std::collections::HashSet<(u64, u16)> =
            fingerprints.iter().map(|fingerprint| (fingerprint.low, fingerprint.high)).collect();
        assert_eq!(fingerprints.len(), all.len());
        assert!(
            fingerprints.iter().map(|fingerprint| fingerprint.high).collect::<std::collections::HashSet<_>>().len()
                > 300
        );
    }

    #[test]
    fn hashes_of_keys_in_a_row_are_spread() {
        let fingerprinter = Fingerprinter::new();
        let mut counts = [0_u32; 1024];
        for n in 0..10 * counts.len() as u64 {
            let hash = fingerprinter.fingerprint(&key([n, 0, 0, 0], 0, 0)).hash;
            counts[(hash as u32 >> 22) as usize] += 1;
        }
        assert!(counts.iter().all(|count| *count < 50), "{:?}", counts.iter().max());
    }
}
