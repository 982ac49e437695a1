//! The gains of the last answer on a request connection, to be undone if its caller did not wait for it.
//!
//! A client that gives up a call ends its half of the connection. Its caller got TIMEOUT and cannot return what the answer gave,
//! so the daemon takes it back. The next request on a connection shows that the answer before was read.

use super::client_state::ClientState;
use crate::abi::View;
use crate::cache::Cache;
use crate::error::KVKEEP_OK;
use crate::key::Key;
use crate::node::Node;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Given {
    #[default]
    Nothing,
    Session,
    Backend,
    Staging,
    DescriptorShares,
    Job,
}

/// Sessions, shares, staging, a backend or a job that the last answer gave. Its memory is used again and again.
#[derive(Default)]
pub struct UndoLog {
    given: Given,
    /// The session in which it was given.
    session: u64,
    /// The session, backend or job that was given.
    number: u64,
    extra: u32,
    keys: Vec<Key>,
}

/// Most keys whose memory is kept for the next answer.
const KEYS_KEPT: usize = 1 << 16;

impl UndoLog {
    fn set(&mut self, given: Given, session: u64, number: u64) {
        (self.given, self.session, self.number) = (given, session, number);
        self.keys.clear();
        self.keys.shrink_to(KEYS_KEPT);
    }

    /// Forgets the last answer: it was read, or gave nothing.
    pub fn clear(&mut self) {
        self.set(Given::Nothing, 0, 0);
    }

    /// A session was begun.
    pub fn session(&mut self, session: u64) {
        self.set(Given::Session, session, 0);
    }

    /// A backend was added.
    pub fn backend(&mut self, backend: u64) {
        self.set(Given::Backend, 0, backend);
    }

    /// Keys were staged, where their views are OK.
    pub fn staging(&mut self, session: u64, keys: &[Key], views: &[View]) {
        self.set(Given::Staging, session, 0);
        self.take(keys, views);
    }

    /// Shares were taken, `1 + extra` of each key whose view is OK.
    pub fn shares(&mut self, session: u64, keys: &[Key], views: &[View], extra: u32) {
        self.set(Given::DescriptorShares, session, 0);
        self.extra = extra;
        self.take(keys, views);
    }

    fn take(&mut self, keys: &[Key], views: &[View]) {
        let given = keys.iter().zip(views).filter(|(_, view)| view.status == KVKEEP_OK as i32);
        self.keys.extend(given.map(|(key, _)| *key));
    }

    /// A job was accepted.
    pub fn job(&mut self, session: u64, job: u64, keys: &[Key], extra: u32) {
        self.set(Given::Job, session, job);
        self.extra = extra;
        self.keys.extend_from_slice(keys);
    }

    /// Takes back what the last answer gave. Parts of it may be gone already, by their session's end or by other calls.
    pub fn take_back(&mut self, node: &Node, client: &ClientState) {
        match self.given {
            Given::Nothing => {}
            Given::Session => {
                let _ = node.abort_session(self.session);
                client.end_session(self.session);
            }
            Given::Backend => {
                let _ = node.remove_backend(self.number);
            }
            Given::Staging => {
                let _ = node.abort_write(self.session, &self.keys, None);
            }
            Given::DescriptorShares => self.return_shares(node),
            Given::Job => {
                let mut held = vec![0; self.keys.len().div_ceil(8)];
                // A job that was done keeps its shares; a job that was not has none now.
                let _ = node.cancel(self.number);
                if matches!(node.query_bitmap(self.number, &mut held), Ok(KVKEEP_OK)) {
                    let mut index = 0;
                    self.keys.retain(|_| {
                        index += 1;
                        held[(index - 1) / 8] >> ((index - 1) % 8) & 1 == 1
                    });
                    self.return_shares(node);
                }
                let _ = node.release_job(self.number);
            }
        }
        self.clear();
    }

    fn return_shares(&self, node: &Node) {
        node.l1.return_unread(self.session, self.keys.iter().copied(), self.extra + 1);
    }
}
