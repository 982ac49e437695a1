//! When nobody comes back: sessions that passed their deadline holding nothing, or that keep others out.

use std::time::Duration;

use crate::l1::{L1, State};

/// Sessions are looked through for idle ones no more often than this, and again after that for one that was not.
const RECLAIM_PAUSE_MS: u64 = 50;
const HELD_AGAIN_MS: u64 = 1000;

impl L1 {
    /// Ends sessions that passed their deadline holding nothing, and gives their numbers and when to look again.
    pub fn reclaim_sessions(&self) -> (Vec<u64>, Option<Duration>) {
        self.with(|state| {
            let now_ms = state.now_ms;
            let wait = |until: u64| (until != u64::MAX).then(|| Duration::from_millis(until.saturating_sub(now_ms)));
            let mut told = std::mem::take(&mut state.reclaimed);
            if now_ms < state.reclaim_ms {
                return (told, wait(state.reclaim_ms));
            }
            let mut gone = Vec::new();
            let mut next = u64::MAX;
            for (index, session) in state.sessions.live() {
                if !session.is_expired(now_ms) {
                    next = next.min(session.deadline_ms + 1);
                } else if session.idle() {
                    gone.push((index, session.id));
                } else {
                    next = next.min(now_ms + HELD_AGAIN_MS);
                }
            }
            for &(index, _) in &gone {
                state.end(index, true, true);
                state.counts.sessions_reclaimed += 1;
            }
            state.reclaim_ms = next.max(now_ms + RECLAIM_PAUSE_MS);
            let wait = wait(state.reclaim_ms);
            told.extend(gone.into_iter().map(|(_, id)| id));
            (told, wait)
        })
    }
}

impl State {
    /// Makes place for a session when there is none: ends the one that expired first and stages nothing, though it holds
    /// shares. Sessions that their callers forgot must not keep others out forever.
    pub(in crate::l1) fn reclaim_oldest(&mut self) {
        let expired = self
            .sessions
            .live()
            .filter(|(_, session)| session.is_expired(self.now_ms) && session.staged.is_empty() && session.jobs == 0);
        let first = expired.map(|(index, session)| (session.deadline_ms, index, session.id, session.shares)).min();
        let Some((_, index, id, shares)) = first else { return };
        self.counts.shares_revoked += shares;
        self.reclaimed.push(id);
        self.end(index, true, true);
        self.counts.sessions_reclaimed += 1;
    }
}
