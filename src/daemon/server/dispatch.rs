//! Requests of clients, carried out on the node.

mod inspect;

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::RwLock;

use super::access::Limits;
use super::client_state::ClientState;
use super::undo::UndoLog;
use crate::abi::{JobResult, KeyState, View};
use crate::cache::Cache;
use crate::config::{Notify, PrefetchRequest, SpaceSpec};
use crate::daemon::wire::frame::malformed;
use crate::daemon::wire::request::check_count;
use crate::daemon::wire::{Frame, Request, WireView};
use crate::error::{
    Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_PERMISSION, KVKEEP_OK, KVKEEP_PARTIAL, KVKEEP_PENDING, Result, Status,
};
use crate::key::Key;
use crate::node::Node;

/// Longest time that a request waits: a client asks again for the rest of its own time.
const WAIT_MS_MAX: u32 = 1000;

/// Most events in one answer: the next ones are a request away.
const EVENTS_MAX: usize = 4096;

/// Memory that the answers on one connection use again and again.
#[derive(Default)]
pub struct AnswerScratch {
    views: Vec<View>,
    statuses: Vec<i32>,
    keys: Vec<Key>,
    states: Vec<KeyState>,
    /// The gains of the last answer.
    pub undo: UndoLog,
}

impl AnswerScratch {
    fn views(&mut self, count: usize) -> &mut [View] {
        self.views.clear();
        self.views.resize(count, View::none(KVKEEP_OK));
        &mut self.views
    }

    fn statuses(&mut self, count: usize, wanted: bool) -> Option<&mut [i32]> {
        self.statuses.clear();
        self.statuses.resize(if wanted { count } else { 0 }, 0);
        wanted.then_some(&mut self.statuses)
    }
}

/// Carries out the requests of all clients on the node.
pub struct Handler {
    node: Arc<Node>,
    limits: Limits,
    tenants: Vec<(String, Vec<u32>)>,
    /// The users of each space that not everyone may use.
    grants: RwLock<HashMap<u64, Vec<u32>>>,
}

fn batch(all_ok: bool) -> Status {
    if all_ok { KVKEEP_OK } else { KVKEEP_PARTIAL }
}

fn done(frame: &mut Frame) -> Result<()> {
    frame.begin(KVKEEP_OK as u32);
    Ok(())
}

fn number(frame: &mut Frame, number: u64) -> Result<()> {
    frame.begin(KVKEEP_OK as u32).put(&number);
    Ok(())
}

impl Handler {
    /// A handler of requests to `node`. `tenants` have users who alone may open their spaces.
    pub fn new(node: Arc<Node>, tenants: Vec<(String, Vec<u32>)>, limits: Limits) -> Handler {
        Handler { node, limits, tenants, grants: RwLock::default() }
    }

    /// Takes back the gains of the last answer: its caller did not wait for it.
    pub fn take_back(&self, client: &ClientState, scratch: &mut AnswerScratch) {
        scratch.undo.take_back(&self.node, client);
    }

    /// Carries a request out and writes its answer.
    pub fn answer(
        &self,
        client: &Arc<ClientState>,
        request: Request<'_>,
        scratch: &mut AnswerScratch,
        frame: &mut Frame,
    ) -> Result<()> {
        let node = &*self.node;
        if node.is_poisoned() {
            return Err(Error::new(KVKEEP_ERR_INTERNAL, "a bug in the daemon was caught earlier: restart it"));
        }
        client.may_ask(&request)?;
        match request {
            Request::Hello { .. } | Request::Attach { .. } => Err(malformed("a connection begins once")),
            Request::Bye {} => number(frame, client.leave(node).1 as u64),
            Request::Ping {} => done(frame),
            Request::OpenSpace { spec } => number(frame, self.open_space(client, spec)?),
            Request::SetQuota { space, quota_bytes } => {
                client.may_write()?;
                self.check_space(client, space)?;
                node.set_quota(space, quota_bytes)?;
                done(frame)
            }
            Request::AddBackend { url } => {
                client.may_administer()?;
                let backend = node.add_backend(url)?;
                scratch.undo.backend(backend);
                number(frame, backend)
            }
            Request::RemoveBackend { backend } => {
                client.may_administer()?;
                node.remove_backend(backend)?;
                done(frame)
            }
            Request::Flush { timeout_ms } => {
                node.flush(timeout_ms.min(WAIT_MS_MAX))?;
                done(frame)
            }
            Request::BeginSession { space, request_id, timeout_ms } => {
                self.check_space(client, space)?;
                if request_id.len() > 255 {
                    return Err(malformed("a request id is too long"));
                }
                let timeout = (timeout_ms != 0).then(|| Duration::from_millis(u64::from(timeout_ms)));
                let begin = || node.begin_session_of(client.peer.pid, space, request_id, timeout);
                let session = client.begin_session(node, &self.limits, begin)?;
                scratch.undo.session(session);
                number(frame, session)
            }
            Request::DeclareShapes { space, shapes } => {
                self.check_space(client, space)?;
                node.declare_shapes(space, shapes)?;
                done(frame)
            }
            Request::NoteUnregistered { memlock } => {
                node.note_unregistered(memlock);
                done(frame)
            }
            Request::BeginCopy { session, space, shapes } => {
                self.check_session(client, session)?;
                let begin = || node.begin_copy_of(client.peer.pid, session, space, shapes);
                let session = client.begin_session(node, &self.limits, begin)?;
                scratch.undo.session(session);
                number(frame, session)
            }
            Request::EndSession { session } => {
                self.check_session(client, session)?;
                node.end_session(session)?;
                client.end_session(session);
                done(frame)
            }
            Request::AbortSession { session } => {
                self.check_session(client, session)?;
                node.abort_session(session)?;
                client.end_session(session);
                done(frame)
            }
            Request::RenewSession { session } => {
                self.check_session(client, session)?;
                node.renew_session(session)?;
                done(frame)
            }
            Request::AppendTokens { session, tokens } => {
                self.check_session(client, session)?;
                check_count(tokens.len() as u64)?;
                number(frame, node.append_tokens(session, tokens)?)
            }
            Request::SessionKeys { session, first_chunk, ranks: (first, ranks, groups), count } => {
                self.check_session(client, session)?;
                scratch.keys.clear();
                scratch.keys.resize(check_count(count)?, Key { hash: [0; 32], rank: 0, group: 0 });
                node.session_keys(session, first_chunk, first, ranks, groups, &mut scratch.keys)?;
                frame.begin(KVKEEP_OK as u32).array(&scratch.keys);
                Ok(())
            }
            Request::QueryLookupHits { job } => {
                self.check_job(client, job)?;
                let mut chunks = 0;
                let status = node.query_lookup_hits(job, &mut chunks)?;
                frame.begin(status as u32).put(&chunks);
                Ok(())
            }
            Request::QueryJob { job } => {
                self.check_job(client, job)?;
                let mut result = JobResult::default();
                let status = node.query_job(job, &mut result)?;
                frame.begin(status as u32).put(&result);
                Ok(())
            }
            Request::QueryBitmap { job, bytes } => {
                self.check_job(client, job)?;
                let mut bitmap = vec![0; check_count(bytes)?];
                let status = node.query_bitmap(job, &mut bitmap)?;
                frame.begin(status as u32).array(&bitmap);
                Ok(())
            }
            Request::Wait { job, timeout_ms } => {
                self.check_job(client, job)?;
                node.wait(job, timeout_ms.min(WAIT_MS_MAX))?;
                done(frame)
            }
            Request::Cancel { job } => {
                self.check_job(client, job)?;
                node.cancel(job)?;
                done(frame)
            }
            Request::ReleaseJob { job } => {
                self.check_job(client, job)?;
                node.release_job(job)?;
                done(frame)
            }
            Request::SubmitPrefetch { session, keys, request, ticket } => {
                self.check_session(client, session)?;
                let extra = request.extra_count;
                let job = self.submit(client, session, keys, request, ticket)?;
                scratch.undo.job(session, job, keys, extra);
                self.state_of(job, keys.len(), frame)
            }
            request => self.answer_inspection(client, request, scratch, frame),
        }
    }

    /// The requests that have one answer for each key.
    fn answer_batch(
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
                self.check_session(client, session)?;
                if sizes.len() != keys.len() {
                    return Err(malformed("not every key has a size"));
                }
                let views = scratch.views(keys.len());
                let reserved = node.reserve_write_by(client.number, session, keys, sizes, temporary, views)?;
                scratch.undo.staging(session, keys, &scratch.views);
                self.views(frame, batch(reserved), &scratch.views)
            }
            Request::ReservePatiently { session, keys, sizes, wait_ms } => {
                client.may_write()?;
                self.check_session(client, session)?;
                if sizes.len() != keys.len() {
                    return Err(malformed("not every key has a size"));
                }
                let wait = Duration::from_millis(u64::from(wait_ms.min(WAIT_MS_MAX)));
                let views = scratch.views(keys.len());
                let status = node.reserve_patiently_by(client.number, session, keys, sizes, wait, views)?;
                scratch.undo.staging(session, keys, &scratch.views);
                self.views(frame, status, &scratch.views)
            }
            Request::ExplainRefusal { session, of_space } => {
                self.check_session(client, session)?;
                self.text(frame, &node.explain_refusal(session, of_space)?)
            }
            Request::FinishWrite { session, keys, statuses } => {
                client.may_write()?;
                self.check_session(client, session)?;
                let all_ok = node.finish_write(session, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::AbortWrite { session, keys, statuses } => {
                client.may_write()?;
                self.check_session(client, session)?;
                let all_ok = node.abort_write(session, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::FinishWriteAndReserveRead { session, keys, extra } => {
                client.may_write()?;
                self.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.finish_write_and_reserve_read(session, keys, extra.0, views)?;
                scratch.undo.shares(session, keys, &scratch.views, extra.0);
                self.views(frame, batch(all_ok), &scratch.views)
            }
            Request::ReserveRead { session, keys, extra } => {
                self.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.reserve_read(session, keys, extra.0, views)?;
                scratch.undo.shares(session, keys, &scratch.views, extra.0);
                self.views(frame, batch(all_ok), &scratch.views)
            }
            Request::GetViews { session, keys } => {
                self.check_session(client, session)?;
                let views = scratch.views(keys.len());
                let all_ok = node.get_views(session, keys, views)?;
                self.views(frame, batch(all_ok), views)
            }
            Request::FinishRead { session, keys, extra, statuses } => {
                self.check_session(client, session)?;
                let all_ok = node.finish_read(session, keys, extra.0, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::FinishReadTokens { session, first_token, last_token, ranks, extra } => {
                self.check_session(client, session)?;
                number(frame, node.finish_read_tokens(session, first_token..last_token, ranks, extra.0)?)
            }
            Request::Touch { space, keys, statuses } => {
                self.check_space(client, space)?;
                let all_ok = node.touch(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::QueryKeys { space, keys } => {
                self.check_space(client, space)?;
                scratch.states.clear();
                scratch.states.resize(keys.len(), KeyState::default());
                node.query_keys(space, keys, &mut scratch.states)?;
                frame.begin(KVKEEP_OK as u32).array(&scratch.states);
                Ok(())
            }
            Request::Retain { space, keys, priority, ttl_ms, statuses } => {
                client.may_write()?;
                self.check_space(client, space)?;
                let all_ok = node.retain(space, keys, priority, ttl_ms, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Evict { space, keys, statuses } => {
                client.may_write()?;
                self.check_space(client, space)?;
                let all_ok = node.evict(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Delete { space, keys, statuses } => {
                client.may_write()?;
                self.check_space(client, space)?;
                let all_ok = node.delete(space, keys, scratch.statuses(keys.len(), statuses))?;
                self.statuses(frame, all_ok, scratch)
            }
            Request::Clear { space, force } => {
                client.may_write()?;
                if space == 0 {
                    client.may_administer()?
                } else {
                    self.check_space(client, space)?
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
                    self.check_space(client, space)?
                }
                number(frame, node.forget_space(space)?)
            }
            _ => Err(malformed("no such request")),
        }
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

    fn text(&self, frame: &mut Frame, text: &str) -> Result<()> {
        frame.begin(KVKEEP_OK as u32).put(&text);
        Ok(())
    }

    fn submit(
        &self,
        client: &Arc<ClientState>,
        session: u64,
        keys: &[Key],
        mut request: PrefetchRequest,
        ticket: u64,
    ) -> Result<u64> {
        request.notify = Notify::Observer(client.begin_job(&self.limits, ticket)?);
        let mut job = 0;
        let submitted = self.node.submit_prefetch(session, keys, request, &mut job);
        let job = if submitted.is_ok() { job } else { 0 };
        if !client.accept_job(ticket, job) && job != 0 {
            let _ = self.node.release_job(job);
        }
        submitted.map(|()| job)
    }

    /// A job's number and all that is known of it already.
    fn state_of(&self, job: u64, keys: usize, frame: &mut Frame) -> Result<()> {
        let (mut chunks, mut result) = (0, JobResult::default());
        let known = |status: Result<Status>| matches!(status, Ok(status) if status != KVKEEP_PENDING);
        let looked_up = known(self.node.prefetcher.table().query_lookup_hits(job, &mut chunks));
        let mut bitmap = vec![0; keys.div_ceil(8)];
        let done = known(self.node.prefetcher.table().query(job, &mut result))
            && known(self.node.prefetcher.table().query_bitmap(job, &mut bitmap));
        frame.begin(KVKEEP_OK as u32).put(&job).put(&looked_up).put(&chunks).put(&done);
        if done {
            frame.put(&result).put(&bitmap.as_slice());
        }
        Ok(())
    }

    fn open_space(&self, client: &ClientState, spec: SpaceSpec) -> Result<u64> {
        let users = self.tenants.iter().find(|(tenant, _)| *tenant == spec.tenant).map(|(_, users)| users.clone());
        if let Some(users) = &users {
            allow(client, users)?;
        }
        let Some(users) = users else { return self.node.open_space(spec) };
        // Held meanwhile, so that no request names the space before its users are known.
        let mut grants = self.grants.write();
        let space = self.node.open_space(spec)?;
        grants.insert(space, users);
        Ok(space)
    }

    fn check_space(&self, client: &ClientState, space: u64) -> Result<()> {
        match self.grants.read().get(&space) {
            Some(users) => allow(client, users),
            None => Ok(()),
        }
    }

    /// Refuses the sessions of spaces that are not for this client, and 0, which is all of them.
    fn check_session(&self, client: &ClientState, session: u64) -> Result<()> {
        if self.grants.read().is_empty() {
            return Ok(());
        }
        if session == 0 {
            return client.may_administer();
        }
        let space = self.node.l1.session_space(session)?;
        self.check_space(client, space.tag.number())
    }

    fn check_job(&self, client: &ClientState, job: u64) -> Result<()> {
        if self.grants.read().is_empty() {
            return Ok(());
        }
        match self.node.prefetcher.table().space_of(job) {
            Some(space) => self.check_space(client, space.tag.number()),
            None => Ok(()),
        }
    }
}

fn allow(client: &ClientState, users: &[u32]) -> Result<()> {
    if client.admin || users.contains(&client.peer.uid) {
        return Ok(());
    }
    Err(Error::new(
        KVKEEP_ERR_PERMISSION,
        format!(
            "user {} may not use this tenant's spaces: add it to the tenant's uids in the daemon's configuration",
            client.peer.uid
        ),
    ))
}
