//! Hashes: of token chains (BLAKE3, the same everywhere) and of keys in tables (fast, seeded, this process only).

use std::hash::{BuildHasher, RandomState};

use crate::config::SpaceSpec;
use crate::key::{Key, SpaceTag};
use crate::space_names::SpaceNames;

fn blake3_of_texts(texts: &[&str], chunk_tokens: u32, generation: u64) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update(&chunk_tokens.to_le_bytes());
    // The first generation has the tags that spaces had before there were generations.
    if generation != 0 {
        hasher.update(&generation.to_le_bytes());
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

/// The tag of a space, as the header of the C ABI defines it.
pub fn space_tag(spec: &SpaceSpec) -> SpaceTag {
    SpaceTag(blake3_of_texts(&[&spec.model, &spec.layout, &spec.tenant], spec.chunk_tokens, spec.generation))
}

/// The tag of a space that has these names.
pub fn tag_of_names(names: &SpaceNames) -> SpaceTag {
    let SpaceNames { model, layout, tenant, chunk_tokens, generation } = names;
    SpaceTag(blake3_of_texts(&[model, layout, tenant], *chunk_tokens, *generation))
}

/// The tag of a space's layout alone.
pub fn layout_tag(spec: &SpaceSpec) -> [u8; 16] {
    blake3_of_texts(&[&spec.layout], spec.chunk_tokens, 0)
}

/// The hash that stands for the chunk before the first one of a space.
pub fn chain_seed(space: SpaceTag) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"kvkeep space");
    hasher.update(&space.0);
    *hasher.finalize().as_bytes()
}

/// The hash of a chunk of `tokens` that follows the chunk hashed `before`.
pub fn chain_next(before: &[u8; 32], tokens: &[u32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    let mut bytes = [0; 1024];
    for part in tokens.chunks(bytes.len() / 4) {
        for (place, token) in bytes.chunks_exact_mut(4).zip(part) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        hasher.update(&bytes[..part.len() * 4]);
    }
    *hasher.finalize().as_bytes()
}

/// Hashes keys for tables. Engines make their own keys, so every word counts and the seed is secret.
#[derive(Clone)]
pub struct KeyHasher {
    seeds: [u64; 5],
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl KeyHasher {
    /// With a seed of this process.
    pub fn new() -> KeyHasher {
        let state = RandomState::new();
        KeyHasher { seeds: std::array::from_fn(|i| state.hash_one(i) | 1) }
    }

    /// With the same seed everywhere, for results that have to be the same in every run and may be guessed.
    pub const fn fixed() -> KeyHasher {
        // The first digits of pi.
        let (a, b, c) = (0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1);
        KeyHasher { seeds: [a, b, c, 0x082e_fa98_ec4e_6c89, 0x4528_21e6_38d0_1377] }
    }

    /// The hash of a key, whatever its space.
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        let [a, b, c, d, e] = self.seeds;
        let [first, second, third, fourth, tail] = key.words();
        let low = fold(first ^ a, second ^ b);
        let high = fold(third ^ c, fourth ^ d);
        fold(low ^ tail ^ e, high ^ a.rotate_left(32))
    }

    /// The hash of a key in one of a tier's spaces: the same key has another hash in another space.
    pub fn hash_in(&self, space: u32, key: &Key) -> u64 {
        self.hash(key) ^ u64::from(space).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Default for KeyHasher {
    fn default() -> KeyHasher {
        KeyHasher::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_differ_by_every_part() {
        let of_generation = |generation, (model, layout, tenant): (&str, &str, &str), chunk_tokens| {
            let (model, layout, tenant) = (model.to_owned(), layout.to_owned(), tenant.to_owned());
            space_tag(&SpaceSpec { generation, model, layout, tenant, chunk_tokens, quota_bytes: 0 })
        };
        let spec = |model, layout, tenant, chunk_tokens| of_generation(0, (model, layout, tenant), chunk_tokens);
        let tags = [
            of_generation(1, ("m", "l", "t"), 256),
            of_generation(1 << 63, ("m", "l", "t"), 256),
            spec("m", "l", "t", 256),
            spec("ml", "", "t", 256),
            spec("m", "lt", "", 256),
            spec("m", "l", "u", 256),
            spec("m", "l", "t", 128),
        ];
        for (i, tag) in tags.iter().enumerate() {
            assert!(!tags[i + 1..].contains(tag), "{i}");
        }
    }

    #[test]
    fn a_chain_depends_on_all_tokens_before() {
        let seed = chain_seed(SpaceTag([1; 16]));
        let tokens: Vec<u32> = (0..600).collect();
        let one = chain_next(&chain_next(&seed, &tokens[..300]), &tokens[300..]);
        let mut changed = tokens.clone();
        changed[0] += 1;
        assert_ne!(one, chain_next(&chain_next(&seed, &changed[..300]), &changed[300..]));
        let mut plain = blake3::Hasher::new();
        plain.update(&seed);
        tokens[..300].iter().for_each(|token| {
            plain.update(&token.to_le_bytes());
        });
        assert_eq!(chain_next(&seed, &tokens[..300]), *plain.finalize().as_bytes());
    }

    #[test]
    fn every_word_of_a_key_counts() {
        let hasher = KeyHasher::new();
        let key = Key { hash: [0; 32], rank: 0, group: 0 };
        let mut seen = vec![hasher.hash(&key)];
        for byte in 0..32 {
            let mut other = key;
            other.hash[byte] = 1;
            seen.push(hasher.hash(&other));
        }
        seen.push(hasher.hash(&Key { rank: 1, ..key }));
        seen.push(hasher.hash(&Key { group: 1, ..key }));
        seen.push(hasher.hash_in(1, &key));
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }
}
