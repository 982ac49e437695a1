//! The answers to requests: the memory that they are made in, and those that many requests have.

use super::undo::UndoLog;
use crate::abi::{KeyState, View};
use crate::daemon::wire::Frame;
use crate::error::{KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};
use crate::key::Key;

/// Longest time that a request waits: a client asks again for the rest of its own time.
pub(super) const WAIT_MS_MAX: u32 = 1000;

/// Memory that the answers on one connection use again and again.
#[derive(Default)]
pub struct AnswerScratch {
    pub(super) views: Vec<View>,
    pub(super) statuses: Vec<i32>,
    pub(super) keys: Vec<Key>,
    pub(super) states: Vec<KeyState>,
    /// The gains of the last answer.
    pub undo: UndoLog,
}

impl AnswerScratch {
    /// `count` views, all OK.
    pub(super) fn views(&mut self, count: usize) -> &mut [View] {
        self.views.clear();
        self.views.resize(count, View::none(KVKEEP_OK));
        &mut self.views
    }

    /// `count` statuses, if the client wants them.
    pub(super) fn statuses(&mut self, count: usize, wanted: bool) -> Option<&mut [i32]> {
        self.statuses.clear();
        self.statuses.resize(if wanted { count } else { 0 }, 0);
        wanted.then_some(&mut self.statuses)
    }
}

/// The status of a batch.
pub(super) fn batch(all_ok: bool) -> Status {
    if all_ok { KVKEEP_OK } else { KVKEEP_PARTIAL }
}

/// Writes an answer without fields.
pub(super) fn done(frame: &mut Frame) -> Result<()> {
    frame.begin(KVKEEP_OK as u32);
    Ok(())
}

/// Writes an answer of one number.
pub(super) fn number(frame: &mut Frame, number: u64) -> Result<()> {
    frame.begin(KVKEEP_OK as u32).put(&number);
    Ok(())
}

/// Writes an answer of one text.
pub(super) fn text(frame: &mut Frame, text: &str) -> Result<()> {
    frame.begin(KVKEEP_OK as u32).put(&text);
    Ok(())
}
