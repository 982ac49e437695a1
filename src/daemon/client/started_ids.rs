//! The sessions and jobs that a client began, so that it knows which of them it lost with its connection to a daemon that lives.

use std::collections::BTreeSet;

/// So many of each kind are remembered, the newest: a caller that never ends its sessions does not fill the memory.
const REMEMBERED: usize = 1 << 16;

/// Numbers of live and of lost sessions and jobs.
#[derive(Default)]
pub struct StartedIds {
    live: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

fn add(numbers: &mut BTreeSet<u64>, more: impl IntoIterator<Item = u64>) {
    for number in more {
        numbers.insert(number);
        if numbers.len() > REMEMBERED {
            // Numbers grow, but for some that were given at about the same time.
            numbers.pop_first();
        }
    }
}

impl StartedIds {
    /// Notes that a session was begun.
    pub fn began(&mut self, session: u64) {
        add(&mut self.live, [session]);
    }

    /// Notes that a session has ended.
    pub fn ended(&mut self, session: u64) {
        self.live.remove(&session);
    }

    /// Notes that all live sessions are lost.
    pub fn lose_all(&mut self) {
        let live = std::mem::take(&mut self.live);
        self.lose(live);
    }

    /// Notes that these sessions and jobs are lost.
    pub fn lose(&mut self, numbers: impl IntoIterator<Item = u64>) {
        add(&mut self.lost, numbers);
    }

    /// Whether a session or job was lost.
    pub fn is_lost(&self, number: u64) -> bool {
        self.lost.contains(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_when_a_connection_is_lost_is_lost_and_the_newest_are_remembered() {
        let mut started = StartedIds::default();
        (1..=REMEMBERED as u64 + 2).for_each(|session| started.began(session));
        started.ended(5);
        assert!(!started.is_lost(4));
        started.lose_all();
        assert!([2, 5].iter().all(|&number| !started.is_lost(number)) && started.is_lost(3));
        started.began(1 << 20);
        started.lose_all();
        started.lose([1 << 21]);
        assert!([1 << 20, 1 << 21].iter().all(|&number| started.is_lost(number)));
        assert_eq!((started.live.len(), started.lost.len()), (0, REMEMBERED));
    }
}
