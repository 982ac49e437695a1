//! Reads of one key at a time: as those of many (`share.rs`), without lists to make and to walk, which would take half their time.

use super::L1;
use super::counters::Read;
use super::session::{Session, Single};
use super::slot::NONE;
use crate::abi::View;
use crate::error::{Result, Status};
use crate::key::Key;

impl L1 {
    /// Takes `count` shares of a key, if it is ready.
    #[inline]
    pub(super) fn reserve_single(&self, session: u64, key: &Key, count: u32, now_ms: u64) -> Result<View> {
        let fingerprint = self.fingerprinter.fingerprint(key);
        self.with_at(now_ms, |state| {
            let (index, &mut Session { space, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let fingerprint = fingerprint.within(space);
            let id = state.find_fingerprint(fingerprint).unwrap_or(NONE);
            if id != NONE {
                state.sessions.at_mut(index).last = Some(Single { key: *key, fingerprint, id });
            }
            let (mut read, mut fresh) = (Read::default(), None);
            let view = state.read_one(index, id, count, &mut read, |id| fresh = Some(id));
            if let Some(id) = fresh {
                state.note_all(index, &[id]);
            }
            state.tally.read(read);
            Ok(view)
        })
    }

    /// Returns `count` shares of a key.
    #[inline]
    pub(super) fn finish_single(&self, session: u64, key: &Key, count: u32, now_ms: u64) -> Result<Status> {
        self.with_at(now_ms, |state| {
            let (index, Session { space, last, .. }) = state.sessions.use_now(session, state.now_ms)?;
            let (fingerprint, id) = match last {
                Some(last) if last.key == *key => (last.fingerprint, last.id),
                _ => (self.fingerprinter.fingerprint(key).within(*space), NONE),
            };
            let (space, mut id) = (*space, state.find_again(id, fingerprint));
            let status = state.finish_one(index, key, &mut id, count);
            state.read_all(space, &mut [id]);
            Ok(status)
        })
    }
}
