//! Reads of one key at a time: as those of many (`read.rs`), without lists to make and to walk, which would take half their time.

use super::counters::ReadCounts;
use super::session::sessions::{LastRead, Session};
use super::slot::NONE;
use super::tier::L1;
use super::{count_lookups, share, share_return};
use crate::abi::View;
use crate::error::{Result, Status};
use crate::key::Key;
use crate::misses::MissContext;

/// Takes `count` shares of a key, if it is ready.
#[inline]
pub(super) fn reserve(l1: &L1, session: u64, key: &Key, count: u32) -> Result<View> {
    let fingerprint = l1.fingerprinter.fingerprint(key);
    l1.with(|state| {
        let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let in_space = fingerprint.within(space);
        let id = state.find_fingerprint(in_space).unwrap_or(NONE);
        if id != NONE {
            state.sessions.at_mut(index).last_read = Some(LastRead { key: *key, fingerprint: in_space, id });
        }
        let (mut read, mut fresh) = (ReadCounts::default(), None);
        let view = share::read_one(state, index, id, count, &mut read, |id| fresh = Some(id));
        if let Some(id) = fresh {
            share::note_all(state, index, &[id]);
        }
        read.chunks = read.hits * u64::from(key.stands_for_chunk());
        let of_space = &mut state.spaces[space as usize];
        of_space.lookups.hits[0] += read.hits;
        state.counts.read(read, of_space.spec.chunk_tokens);
        if read.misses > 0 {
            count_lookups::count_misses(state, space, &[fingerprint], MissContext::READ);
        }
        Ok(view)
    })
}

/// Returns `count` shares of a key.
#[inline]
pub(super) fn finish(l1: &L1, session: u64, key: &Key, count: u32) -> Result<Status> {
    l1.with(|state| {
        let (index, Session { space, last_read, .. }) = state.sessions.use_now(session, state.now_ms)?;
        let (fingerprint, id) = match last_read {
            Some(last) if last.key == *key => (last.fingerprint, last.id),
            _ => (l1.fingerprinter.fingerprint(key).within(*space), NONE),
        };
        let (space, mut id) = (*space, state.find_again(id, fingerprint));
        let status = share_return::return_key(state, index, key, &mut id, count);
        share::count_reads(state, space, &mut [id]);
        Ok(status)
    })
}
