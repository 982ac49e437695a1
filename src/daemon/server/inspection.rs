//! Requests that ask for numbers, states and reasons, and change nothing.

use std::sync::Arc;

use super::answers::{AnswerScratch, text};
use super::client_state::ClientState;
use super::dispatch::Handler;
use crate::abi::{SessionState, SpaceUsage, Stats};
use crate::cache::Cache;
use crate::daemon::wire::request::check_count;
use crate::daemon::wire::{Frame, Request};
use crate::error::{KVKEEP_OK, Result};
use crate::events;
use crate::misses::miss_report::MissReport;
use crate::node::Node;

/// Most events in one answer: the next ones are a request away.
const EVENTS_MAX: usize = 4096;

impl Handler {
    /// Answers a request that changes nothing, and passes all others on to the batches.
    pub(super) fn answer_inspection(
        &self,
        client: &Arc<ClientState>,
        request: Request<'_>,
        scratch: &mut AnswerScratch,
        frame: &mut Frame,
    ) -> Result<()> {
        let node = &*self.node;
        match request {
            Request::GetStats {} => {
                let mut stats = Stats::default();
                Node::stats(node, &mut stats);
                frame.begin(KVKEEP_OK as u32).put(&stats);
                Ok(())
            }
            Request::QuerySpace { space } => {
                self.grants.check_space(client, space)?;
                let mut usage = SpaceUsage::default();
                node.query_space(space, &mut usage)?;
                frame.begin(KVKEEP_OK as u32).put(&usage);
                Ok(())
            }
            Request::ListSpaces {} => {
                // The names of all tenants.
                client.may_administer()?;
                text(frame, &Node::list_spaces(node))
            }
            Request::QuerySession { session } => {
                let mut state = SessionState::default();
                node.query_session(session, &mut state)?;
                // By its space: `check_session` takes session 0 for all of them.
                self.grants.check_space(client, state.space)?;
                frame.begin(KVKEEP_OK as u32).put(&state);
                Ok(())
            }
            Request::QueryBackends {} => {
                frame.begin(KVKEEP_OK as u32).array(&node.query_backends());
                Ok(())
            }
            Request::QueryMisses { space } => {
                self.grants.check_space(client, space)?;
                let mut report = MissReport::default();
                node.query_misses(space, &mut report)?;
                frame.begin(KVKEEP_OK as u32).put(&report);
                Ok(())
            }
            Request::ExplainMisses {} => {
                let may_see = |space| self.grants.check_space(client, space).is_ok();
                text(frame, &Node::explain_misses(node, may_see)?)
            }
            Request::Metrics {} => text(frame, &Node::metrics(node)),
            Request::ExplainKey { space, key } => {
                self.grants.check_space(client, space)?;
                text(frame, &Node::explain_key(node, space, &key)?)
            }
            Request::ExplainSession { session } => {
                self.grants.check_session(client, session)?;
                text(frame, &Node::explain_session(node, session)?)
            }
            Request::ExplainHolders { most } => {
                self.grants.check_session(client, 0)?;
                text(frame, &Node::explain_holders(node, most))
            }
            Request::ReadEvents { mut next, count } => {
                let mut events = vec![events::EMPTY; check_count(count)?.min(EVENTS_MAX)];
                let count = node.read_events(&mut next, &mut events)?;
                events.truncate(count);
                events.retain(|event| self.grants.check_space(client, event.space).is_ok());
                frame.begin(KVKEEP_OK as u32).put(&next).array(&events);
                Ok(())
            }
            request => self.answer_batch(client, request, scratch, frame),
        }
    }
}
