//! Requests that have an answer for each key, carried out on the node.

use std::sync::Arc;
use std::time::Duration;

use super::answers::{AnswerScratch, WAIT_MS_MAX, batch, number, text};
use super::client_state::ClientState;
use super::dispatch::Handler;
use crate::abi::{KeyState, View};
use crate::cache::Cache;
use crate::daemon::wire::frame::malformed;
use crate::daemon::wire::{Frame, Request, WireView};
use crate::error::{KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status};
use crate::key::Key;

impl Handler {
    /// The requests that have one answer for each key.
    pub(super) fn answer_batch(
        &self,
        client: &Arc<ClientState>,
        request: Request<'_>,
        scratch: &mut AnswerScratch,
        frame: &mut Frame,
    ) -> Result<()> {
        let node = &*self.node;
        match request {
            Request::ReserveWrite { session, keys, sizes, temporary } => {
                client.may_write()?;
                self.grants.check_session(client, session)?;
                if sizes.len() != keys.len() {
                    return Err(malformed("not every key has a size"));
                }
                let views = scratch.views(keys.len());
                let reserved = node.reserve_write_by(client.number, session, keys, sizes, temporary, views)?;
                scratch.undo.staging(session, keys, &scratch.views);
                self.views(frame, batch(reserved), &scratch.views)
            }
            Request::ReserveWaiting { session, keys, sizes, wait_ms } => {
                client.may_write()?;
                self.grants.check_session(client, session)?;
                if sizes.len() != keys.len() {
                    return Err(malformed("not every key has a size"));
                }
                let wait = Duration::from_millis(u64::from(wait_ms.min(WAIT_MS_MAX)));
                let views = scratch.views(keys.len());
                let status = node.reserve_waiting_by(client.number, session, keys, sizes, wait, views)?;
                scratch.undo.staging(session, keys, &scratch.views);
                self.views(frame, status, &scratch.views)
            }
            Request::ExplainRefusal { session, of_space } => {
                self.grants.check_session(client, session)?;
                text(frame, &node.explain_refusal(session, of_space)?)
            }
            Request::FinishWrite { session, keys, statuses } => {
                client.may_write()?;
                self.grants.check_session(client, session)?;
                let all_ok = node.finish_write(session, keys, scratch.statuses(keys.len(), statuses))?;
                self.recording.committed(session, keys);
                self.statuses(frame, all_ok, scratch)
            }
            Request::AbortWrite { session, keys, statuses } => {
                client.may_write()?;
                self.grants.check_session(client, session)?;
                let all_ok = node.abort_write(session, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::FinishWriteAndReserveRead { session, keys, extra } => {
                client.may_write()?;
                self.grants.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.finish_write_and_reserve_read(session, keys, extra.0, views)?;
                self.recording.committed_and_read(session, keys, views);
                scratch.undo.shares(session, keys, &scratch.views, extra.0);
                self.views(frame, batch(all_ok), &scratch.views)
            }
            Request::ReserveRead { session, keys, extra } => {
                self.grants.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.reserve_read(session, keys, extra.0, views)?;
                self.recording.read(session, keys, views);
                scratch.undo.shares(session, keys, &scratch.views, extra.0);
                self.views(frame, batch(all_ok), &scratch.views)?;
                frame.put(&self.stager_of_first(session, keys, &scratch.views).as_str());
                Ok(())
            }
            Request::GetViews { session, keys } => {
                self.grants.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.get_views(session, keys, views)?;
                self.views(frame, batch(all_ok), views)
            }
            Request::FinishRead { session, keys, extra, statuses } => {
                self.grants.check_session(client, session)?;
                let all_ok = node.finish_read(session, keys, extra.0, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::FinishReadTokens { session, first_token, last_token, ranks, extra } => {
                self.grants.check_session(client, session)?;
                number(frame, node.finish_read_tokens(session, first_token..last_token, ranks, extra.0)?)
            }
            Request::Touch { space, keys, statuses } => {
                self.grants.check_space(client, space)?;
                let all_ok = node.touch(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::QueryKeys { space, keys } => {
                self.grants.check_space(client, space)?;
                scratch.states.clear();
                scratch.states.resize(keys.len(), KeyState::default());
                node.query_keys(space, keys, &mut scratch.states)?;
                frame.begin(KVKEEP_OK as u32).array(&scratch.states);
                Ok(())
            }
            Request::Retain { space, keys, priority, ttl_ms, statuses } => {
                client.may_write()?;
                self.grants.check_space(client, space)?;
                let all_ok = node.retain(space, keys, priority, ttl_ms, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Evict { space, keys, statuses } => {
                client.may_write()?;
                self.grants.check_space(client, space)?;
                let all_ok = node.evict(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Delete { space, keys, statuses } => {
                client.may_write()?;
                self.grants.check_space(client, space)?;
                let all_ok = node.delete(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Clear { space, force } => {
                client.may_write()?;
                if space == 0 {
                    client.may_administer()?
                } else {
                    self.grants.check_space(client, space)?
                }
                let (removed, all_ok) = node.clear(space, force)?;
                frame.begin(batch(all_ok) as u32).put(&removed);
                Ok(())
            }
            Request::ForgetSpace { space } => {
                client.may_write()?;
                if space == 0 {
                    client.may_administer()?
                } else {
                    self.grants.check_space(client, space)?
                }
                number(frame, node.forget_space(space)?)
            }
            _ => Err(malformed("no such request")),
        }
    }

    /// The session that stages the first key that is not ready, for people; empty where none does.
    fn stager_of_first(&self, session: u64, keys: &[Key], views: &[View]) -> String {
        let short = keys.iter().zip(views).find(|(_, view)| view.status != KVKEEP_OK as i32);
        let absent = short.filter(|(_, view)| view.status == KVKEEP_ERR_NOT_FOUND as i32);
        absent.and_then(|(key, _)| self.node.stager(session, key)).unwrap_or_default()
    }

    fn views(&self, frame: &mut Frame, status: Status, views: &[View]) -> Result<()> {
        let arena = self.node.l1.arena();
        frame.begin(status as u32).array_of(views.iter().map(|view| WireView::of(arena, view)));
        Ok(())
    }

    fn statuses(&self, frame: &mut Frame, all_ok: bool, scratch: &AnswerScratch) -> Result<()> {
        frame.begin(batch(all_ok) as u32).array(&scratch.statuses);
        Ok(())
    }
}
