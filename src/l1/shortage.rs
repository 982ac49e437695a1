//! Who holds the memory that a reservation was refused, for people.

use hashbrown::HashSet;

use super::session::Session;
use super::{L1, State};
use crate::error::Result;

/// Characters of a request id that are shown.
const REQUEST_SHOWN: usize = 24;

impl L1 {
    /// Which session holds most of L1, or with `of_space` of the quota of the space of `session`, and what can be done. Sessions are
    /// looked at one by one, so that nobody waits for it.
    pub fn largest_holder(&self, session: u64, of_space: bool) -> Result<String> {
        let (whole, sessions) = self.with(|state| {
            let index = state.sessions.index(session)?;
            let &mut Session { space, user, .. } = state.sessions.at_mut(index);
            let copies = user != 0;
            let quota = state.spaces[space as usize].quota;
            let whole = if of_space { quota } else { state.alloc.capacity() };
            // What a copy itself has staged before is not in its way.
            let holding = |other: &Session| {
                let passed = other.idle() || of_space && other.space != space || copies && other.id == session;
                !passed
            };
            let sessions: Vec<u64> =
                state.sessions.live().filter(|(_, session)| holding(session)).map(|(_, session)| session.id).collect();
            Ok::<_, crate::error::Error>((whole, sessions))
        })?;
        let held = |session: &u64| self.with(|state| state.bytes_held(*session));
        let holders: Vec<(u64, String)> = sessions.iter().filter_map(held).collect();
        let in_use = self.with(|state| state.tally.locked_bytes());
        let moving = in_use.saturating_sub(holders.iter().map(|(bytes, _)| bytes).sum());
        let moving = if of_space { 0 } else { moving };
        let largest = holders.into_iter().max_by_key(|(bytes, _)| *bytes).filter(|(bytes, _)| *bytes > 0);
        let (what, larger) = if of_space { ("the space's quota", "raise the quota") } else { ("L1", "make L1 larger") };
        Ok(match largest {
            Some((bytes, who)) if bytes >= moving => format!(
                "{who} holds {bytes} of the {whole} bytes of {what}: return its shares, commit or abort its writes, or {larger}"
            ),
            _ if !self.with(|state| state.writes_what_is_stored()) => format!(
                "the {whole} bytes of {what} are full, and no backend is given what is stored, which would make room: add one, or \
                 {larger}"
            ),
            _ if moving > 0 => format!(
                "writes and copies under way hold {moving} of the {whole} bytes of {what}: try again when they are done, or {larger}"
            ),
            _ => format!("no object of this size fits into the {whole} bytes of {what}: {larger}"),
        })
    }
}

impl State {
    /// How many bytes a session holds by shares and staging, and who it is.
    fn bytes_held(&self, session: u64) -> Option<(u64, String)> {
        let index = self.sessions.index(session).ok()?;
        let session = self.sessions.at(index);
        let mut seen = HashSet::new();
        let shared = session.used.iter().filter(|name| {
            self.slots.find(**name).is_some() && self.shares_of(index, name.slot) > 0 && seen.insert(name.slot)
        });
        let bytes = shared.map(|name| name.slot).chain(session.staged.iter().map(|staged| staged.id));
        let bytes = bytes.map(|id| self.slots[id].size()).sum();
        let shown: String = session.request_id.chars().take(REQUEST_SHOWN).collect();
        Some((bytes, format!("session {} (\"{shown}\", pid {})", session.id, session.owner_pid)))
    }
}
