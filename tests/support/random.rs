//! Numbers by seed, for tests.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Sixty-four well mixed bits (splitmix64).
pub fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(STEP);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        let bits = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        bits
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len() as u64) as usize]
    }

    pub fn shuffle<T>(&mut self, some: &mut [T]) {
        for i in (1..some.len()).rev() {
            some.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// A number that the variable gives, or `otherwise`.
pub fn number(variable: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(variable).map_or_else(|_| otherwise(), |number| number.trim().parse().unwrap())
}

/// A seed from the variable, or a fresh one; said in any case.
pub fn seed(variable: &str) -> u64 {
    let seed = number(variable, || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    eprintln!("{variable}={seed}");
    seed
}

/// How often, from the variable.
pub fn rounds(variable: &str, default: u64) -> u64 {
    number(variable, || default)
}
