//! Random keys, orders and bytes.

use kvkeep::key::Key;

/// SplitMix64, and a pool of its bytes to fill objects from quickly.
pub struct Random {
    state: u64,
    pool: Vec<u8>,
}

const POOL_BYTES: usize = 32 << 20;

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random { state: seed, pool: Vec::new() };
        random.pool = (0..POOL_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes that nothing compresses; any two objects differ.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut rest = &mut *bytes;
        while !rest.is_empty() {
            let part = rest.len().min(POOL_BYTES / 2);
            let from = self.below(POOL_BYTES - part);
            let (now, after) = rest.split_at_mut(part);
            now.copy_from_slice(&self.pool[from..from + part]);
            rest = after;
        }
        let stamp = self.next().to_le_bytes();
        bytes.iter_mut().zip(stamp).for_each(|(byte, stamp)| *byte = stamp);
    }

    pub fn keys(&mut self, count: usize) -> Vec<Key> {
        (0..count)
            .map(|_| {
                let mut hash = [0; 32];
                hash.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()));
                Key { hash, rank: 0, group: 0 }
            })
            .collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
