//! Accounts of writers: the bytes that each client of a daemon has staged, in its own sessions and in those of others.
//!
//! A staging remembers its writer. It leaves the account when it is committed or aborted, whichever process does that. When a
//! writer ends, only its own staging is dropped: another client may have staged the same key since, in the same session.

use hashbrown::HashMap;

use crate::error::{Error, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, Result};

/// The writer of a cache in this process, which has no account and no bound.
pub const THIS_PROCESS: u64 = 0;

struct Account {
    bytes: u64,
    bytes_max: u64,
}

/// All accounts, by writer.
#[derive(Default)]
pub(super) struct WriterAccounts(HashMap<u64, Account>);

impl WriterAccounts {
    /// Refuses a call that would stage `sizes`, if a writer may not stage so much, or has ended.
    pub fn check(&self, writer: u64, sizes: &[u64]) -> Result<()> {
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

    /// A writer staged bytes.
    pub fn add(&mut self, writer: u64, bytes: u64) {
        if let Some(account) = self.0.get_mut(&writer) {
            account.bytes += bytes;
        }
    }

    /// Staging of a writer was committed or dropped.
    pub fn subtract(&mut self, writer: u64, bytes: u64) {
        if let Some(account) = self.0.get_mut(&writer) {
            account.bytes -= bytes;
        }
    }

    /// Opens the account of a writer, which may have `bytes_max` bytes staged at once.
    pub fn open(&mut self, writer: u64, bytes_max: u64) {
        self.0.insert(writer, Account { bytes: 0, bytes_max });
    }

    /// Closes an account, so that later stagings are refused. True if bytes are staged in it: the caller drops them.
    pub fn close(&mut self, writer: u64) -> bool {
        self.0.remove(&writer).is_some_and(|account| account.bytes > 0)
    }
}
