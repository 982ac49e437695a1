//! Pauses between attempts to connect, which grow, and which differ between threads and processes.

use std::hash::{BuildHasher, RandomState};

const FIRST_MS: u64 = 50;
const DOUBLINGS_MAX: u32 = 6;

/// The pauses of one thread.
#[derive(Default)]
pub struct BackOff {
    failures: u32,
}

impl BackOff {
    /// It worked: the next failure is a first one.
    pub fn worked(&mut self) {
        self.failures = 0;
    }

    /// Milliseconds to wait after a failure: none after the first one.
    pub fn pause(&mut self) -> u64 {
        let failures = self.failures;
        self.failures = failures.saturating_add(1);
        match failures {
            0 => 0,
            _ => {
                let most = FIRST_MS << (failures - 1).min(DOUBLINGS_MAX);
                most / 2 + RandomState::new().hash_one(failures) % most
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut back_off = BackOff::default();
        assert_eq!(back_off.pause(), 0);
        for doublings in 0..12 {
            let most = FIRST_MS << doublings.min(DOUBLINGS_MAX);
            assert!((most / 2..most * 3 / 2).contains(&back_off.pause()));
        }
        back_off.worked();
        assert_eq!(back_off.pause(), 0);
    }
}
