//! Accounts of writers: the bytes that each client of a daemon has staged, in its own sessions and in those of others.
//!
//! A staging remembers its writer. It leaves the account when it is committed or aborted, whichever process does that. When a
//! writer ends, only its own staging is dropped: another client may have staged the same key since, in the same session.

use hashbrown::HashMap;

use super::session::Staged;
use super::{L1, State};
use crate::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, Result};

/// The writer of a cache in this process, which has no account and no bound.
pub const THIS_PROCESS: u64 = 0;

struct Account {
    bytes: u64,
    bytes_max: u64,
}

/// All accounts, by writer.
#[derive(Default)]
pub(super) struct Writers(HashMap<u64, Account>);

impl Writers {
    /// Refuses a call that would stage `sizes`, if a writer may not stage so much, or has ended.
    pub(super) fn check(&self, writer: u64, sizes: &[u64]) -> Result<()> {
        if writer == THIS_PROCESS {
            return Ok(());
        }
        let Some(account) = self.0.get(&writer) else {
            return Err(Error::new(KVKEEP_ERR_DISCONNECTED, "the client's connection is being ended"));
        };
        let Account { bytes, bytes_max } = *account;
        let more = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
        if bytes.saturating_add(more) > bytes_max {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!(
                    "this client has {bytes} bytes staged and asks for {more} more, of at most {bytes_max}: commit or abort some, or \
                     raise staged_bytes_per_client_max of kvkeep serve"
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn add(&mut self, writer: u64, bytes: u64) {
        if let Some(account) = self.0.get_mut(&writer) {
            account.bytes += bytes;
        }
    }

    pub(super) fn subtract(&mut self, writer: u64, bytes: u64) {
        if let Some(account) = self.0.get_mut(&writer) {
            account.bytes -= bytes;
        }
    }
}

impl L1 {
    /// Opens the account of a writer, which may have `bytes_max` bytes staged at once.
    pub fn open_writer(&self, writer: u64, bytes_max: u64) {
        self.with(|state| state.writers.0.insert(writer, Account { bytes: 0, bytes_max }));
    }

    /// Drops all that a writer has staged and not committed, and refuses its later stagings.
    pub fn close_writer(&self, writer: u64) {
        self.with(|state| {
            if state.writers.0.remove(&writer).is_some_and(|account| account.bytes > 0) {
                state.drop_staged_by(writer);
            }
        });
    }
}

impl State {
    fn drop_staged_by(&mut self, writer: u64) {
        let sessions = self.sessions.live().filter(|(_, session)| !session.staged.is_empty());
        let sessions: Vec<u32> = sessions.map(|(index, _)| index).collect();
        for index in sessions {
            let staged = &mut self.sessions.at_mut(index).staged;
            let dropped: Vec<Staged> = staged.extract_if(|staged| staged.writer == writer).collect();
            dropped.into_iter().for_each(|staged| self.unstage(staged.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::View;
    use crate::config::StoreMode;
    use crate::error::{KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
    use crate::key::Key;
    use crate::l1::tests::{key, l1, session, space};

    const A: u64 = 11;
    const B: u64 = 12;
    const SIZE: u64 = 4096;

    fn stage(l1: &L1, writer: u64, session: u64, key: Key) -> Result<bool> {
        l1.reserve_write_by(writer, session, &[key], &[SIZE], false, &mut [View::none(KVKEEP_OK)])
    }

    fn staged(l1: &L1) -> u64 {
        l1.gauges().1.staged
    }

    #[test]
    fn a_writers_end_drops_its_own_staging_and_no_later_one_of_the_same_key() {
        let l1 = l1(StoreMode::Never, 8);
        l1.open_writer(A, u64::MAX);
        l1.open_writer(B, u64::MAX);
        let (space, shared) = (space(&l1, 0), session(&l1, space(&l1, 0)));
        assert!(stage(&l1, B, shared, key(1)).unwrap());
        assert!(stage(&l1, B, shared, key(2)).unwrap());
        assert!(stage(&l1, A, shared, key(3)).unwrap());
        // Another client commits it, it goes, and is staged anew.
        assert!(l1.finish_write(shared, &[key(1)], None).unwrap());
        assert!(l1.evict(space, &[key(1)], None).unwrap());
        assert!(stage(&l1, A, shared, key(1)).unwrap());
        l1.close_writer(B);
        assert_eq!(staged(&l1), 2);
        let mut statuses = [0; 3];
        l1.finish_write(shared, &[key(1), key(2), key(3)], Some(&mut statuses)).unwrap();
        assert_eq!(statuses, [0, KVKEEP_ERR_NOT_FOUND as i32, 0]);
        assert_eq!(stage(&l1, B, shared, key(4)).unwrap_err().status, KVKEEP_ERR_DISCONNECTED);
    }

    #[test]
    fn staging_leaves_its_writers_account_when_anyone_commits_aborts_or_ends_its_session() {
        let l1 = l1(StoreMode::Never, 8);
        l1.open_writer(B, SIZE);
        let space = space(&l1, 0);
        let ends: [fn(&L1, u64, Key); 4] = [
            |l1, session, key| assert!(l1.finish_write(session, &[key], None).unwrap()),
            |l1, session, key| assert!(l1.abort_write(session, &[key], None).unwrap()),
            |l1, session, _| l1.end_session(session, false).unwrap(),
            |l1, session, key| {
                assert!(l1.finish_write_and_reserve_read(session, &[key], 1, &mut [View::none(KVKEEP_OK)]).unwrap());
            },
        ];
        for (number, end) in ends.into_iter().enumerate() {
            let shared = session(&l1, space);
            let key = key(number as u32);
            assert!(stage(&l1, B, shared, key).unwrap());
            let error = stage(&l1, B, shared, crate::l1::tests::key(99)).unwrap_err();
            assert_eq!(error.status, KVKEEP_ERR_LIMIT);
            assert!(error.message.contains("raise staged_bytes_per_client_max"), "{error}");
            end(&l1, shared, key);
        }
        l1.close_writer(B);
        assert_eq!(staged(&l1), 0);
    }
}
