//! Requests of clients, carried out on the node.

use std::sync::Arc;
use std::time::Duration;

use super::access::Limits;
use super::answers::{AnswerScratch, WAIT_MS_MAX, done, number};
use super::client_state::ClientState;
use super::recording::Recording;
use super::space_grants::SpaceGrants;
use crate::abi::JobResult;
use crate::cache::Cache;
use crate::config::{Notify, PrefetchRequest};
use crate::daemon::trace_recorder::TraceRecorder;
use crate::daemon::wire::frame::malformed;
use crate::daemon::wire::request::check_count;
use crate::daemon::wire::{Frame, Request};
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_OK, KVKEEP_PENDING, Result, Status};
use crate::key::Key;
use crate::node::Node;

/// Carries out the requests of all clients on the node.
pub struct Handler {
    pub(super) node: Arc<Node>,
    limits: Limits,
    pub(super) grants: SpaceGrants,
    pub(super) recording: Recording,
}

impl Handler {
    /// A handler of requests to `node`. `tenants` have users who alone may open their spaces. Requests are noted in `recorder`.
    pub fn new(
        node: Arc<Node>,
        tenants: Vec<(String, Vec<u32>)>,
        limits: Limits,
        recorder: Option<Arc<TraceRecorder>>,
    ) -> Handler {
        let grants = SpaceGrants::new(node.clone(), tenants);
        let recording = Recording::new(node.clone(), recorder);
        Handler { node, limits, grants, recording }
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
            Request::OpenSpace { spec } => {
                let noted = self.recording.is_on().then(|| spec.clone());
                let space = self.grants.open_space(client, spec)?;
                if let Some(spec) = noted {
                    self.recording.opened_space(space, &spec);
                }
                number(frame, space)
            }
            Request::CloseSpace { space } => {
                client.may_write()?;
                self.grants.close_space(client, space)?;
                done(frame)
            }
            Request::SetQuota { space, quota_bytes } => {
                client.may_write()?;
                self.grants.check_space(client, space)?;
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
                self.grants.check_space(client, space)?;
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
                self.grants.check_space(client, space)?;
                node.declare_shapes(space, shapes)?;
                done(frame)
            }
            Request::NoteUnregistered { memlock } => {
                node.note_unregistered(memlock);
                done(frame)
            }
            Request::BeginCopy { session, space, shapes } => {
                self.grants.check_session(client, session)?;
                let begin = || node.begin_copy_of(client.peer.pid, session, space, shapes);
                let copy = client.begin_session(node, &self.limits, begin)?;
                self.recording.copies(copy, session);
                scratch.undo.session(copy);
                number(frame, copy)
            }
            Request::EndSession { session } => {
                self.grants.check_session(client, session)?;
                node.end_session(session)?;
                self.recording.ended(session);
                client.end_session(session);
                done(frame)
            }
            Request::AbortSession { session } => {
                self.grants.check_session(client, session)?;
                node.abort_session(session)?;
                client.end_session(session);
                done(frame)
            }
            Request::RenewSession { session } => {
                self.grants.check_session(client, session)?;
                node.renew_session(session)?;
                done(frame)
            }
            Request::AppendTokens { session, tokens } => {
                self.grants.check_session(client, session)?;
                check_count(tokens.len() as u64)?;
                number(frame, node.append_tokens(session, tokens)?)
            }
            Request::SessionKeys { session, first_chunk, ranks, count } => {
                self.grants.check_session(client, session)?;
                scratch.keys.clear();
                scratch.keys.resize(check_count(count)?, Key { hash: [0; 32], rank: 0, group: 0 });
                node.session_keys(session, first_chunk, ranks, &mut scratch.keys)?;
                frame.begin(KVKEEP_OK as u32).array(&scratch.keys);
                Ok(())
            }
            Request::TailKeys { session, tail_tokens, ranks, count } => {
                self.grants.check_session(client, session)?;
                scratch.keys.clear();
                scratch.keys.resize(check_count(count)?, Key { hash: [0; 32], rank: 0, group: 0 });
                node.tail_keys(session, tail_tokens, ranks, &mut scratch.keys)?;
                frame.begin(KVKEEP_OK as u32).array(&scratch.keys);
                Ok(())
            }
            Request::QueryLookupHits { job } => {
                self.grants.check_job(client, job)?;
                let mut chunks = 0;
                let status = node.query_lookup_hits(job, &mut chunks)?;
                frame.begin(status as u32).put(&chunks);
                Ok(())
            }
            Request::QueryJob { job } => {
                self.grants.check_job(client, job)?;
                let mut result = JobResult::default();
                let status = node.query_job(job, &mut result)?;
                frame.begin(status as u32).put(&result);
                Ok(())
            }
            Request::QueryPrefixLengths { job } => {
                self.grants.check_job(client, job)?;
                let mut lengths = Vec::new();
                let status = node.query_prefix_lengths(job, &mut lengths)?;
                frame.begin(status as u32).array(&lengths);
                Ok(())
            }
            Request::QueryBitmap { job, bytes } => {
                self.grants.check_job(client, job)?;
                let mut bitmap = vec![0; check_count(bytes)?];
                let status = node.query_bitmap(job, &mut bitmap)?;
                frame.begin(status as u32).array(&bitmap);
                Ok(())
            }
            Request::Wait { job, timeout_ms } => {
                self.grants.check_job(client, job)?;
                node.wait(job, timeout_ms.min(WAIT_MS_MAX))?;
                done(frame)
            }
            Request::Resume { job } => {
                self.grants.check_job(client, job)?;
                node.resume_job(job)?;
                done(frame)
            }
            Request::Cancel { job } => {
                self.grants.check_job(client, job)?;
                node.cancel(job)?;
                done(frame)
            }
            Request::ReleaseJob { job } => {
                self.grants.check_job(client, job)?;
                node.release_job(job)?;
                done(frame)
            }
            Request::SubmitPrefetch { session, keys, request, ticket } => {
                self.grants.check_session(client, session)?;
                let extra = request.extra_count;
                let job = self.submit(client, session, keys, request, ticket)?;
                scratch.undo.job(session, job, keys, extra);
                self.state_of(job, keys.len(), frame)
            }
            request => self.answer_inspection(client, request, scratch, frame),
        }
    }

    fn submit(
        &self,
        client: &Arc<ClientState>,
        session: u64,
        keys: &[Key],
        mut request: PrefetchRequest,
        ticket: u64,
    ) -> Result<u64> {
        let note = self.recording.asks(session, keys, &request);
        request.notify = Notify::Observer(client.begin_job(&self.limits, ticket, note)?);
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
        // Asked first: what is known then is known to be answered.
        let looked_up = self.node.prefetcher.table().is_looked_up(job);
        let _ = self.node.prefetcher.table().query_lookup_hits(job, &mut chunks);
        let mut bitmap = vec![0; keys.div_ceil(8)];
        let done = known(self.node.prefetcher.table().query(job, &mut result))
            && known(self.node.prefetcher.table().query_bitmap(job, &mut bitmap));
        frame.begin(KVKEEP_OK as u32).put(&job).put(&looked_up).put(&chunks).put(&done);
        if done {
            frame.put(&result).put(&bitmap.as_slice());
        }
        Ok(())
    }
}
