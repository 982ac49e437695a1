//! The client's calls: each becomes a request, and its answer the result of the call.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::client_lifecycle::Client;
use super::daemon_link::DaemonLink;
use super::jobs::LookupAnswer;
use super::read_answer::{
    fill, nothing, number, read_statuses, read_views, read_views_and_stager, take_stager, text, wrong_answer,
};
use crate::abi::{Completion, JobResult, KeyState, SessionState, SpaceUsage, Stats, View};
use crate::arena::Arena;
use crate::arena_lease::ArenaLease;
use crate::backend_state::BackendState;
use crate::cache;
use crate::cache::Cache;
use crate::config::{PrefetchRequest, SpaceSpec};
use crate::control::completion::{Completions, WAITING_MAX};
use crate::control::tokens::Ranks;
use crate::daemon::wire::Request;
use crate::daemon::wire::request::Extra;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, KVKEEP_ERR_UNSUPPORTED, KVKEEP_OK, Result, Status};
use crate::events::Event;
use crate::key::Key;
use crate::l2::plugin::PluginSource;
use crate::log::Log;
use crate::misses::miss_report::MissReport;
use crate::shape::Shape;

/// The time of one request of a call that waits for longer.
const SLICE_MS: u32 = 500;

fn millis(duration: Option<Duration>) -> u32 {
    duration.map_or(0, |duration| duration.as_millis().clamp(1, u128::from(u32::MAX)) as u32)
}

impl Client {
    /// A batch whose answer is a view for each key.
    fn views(&self, link: &DaemonLink, request: &Request<'_>, views: &mut [View]) -> Result<bool> {
        self.call(link, request, read_views(link, views)).map(|status| status == KVKEEP_OK)
    }

    /// A batch whose answer is a status for each key, if the caller wants them.
    fn statuses(&self, link: &DaemonLink, request: &Request<'_>, statuses: Option<&mut [i32]>) -> Result<bool> {
        self.call(link, request, read_statuses(statuses))
    }

    /// Asks again and again for something that takes its time, until `timeout_ms` have passed.
    fn in_slices<'a>(&self, link: &DaemonLink, timeout_ms: u32, slice: impl Fn(u32) -> Request<'a>) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
        loop {
            match link.call_until(until, SLICE_MS, &slice) {
                Err(error) if error.status == KVKEEP_ERR_TIMEOUT && Instant::now() < until => {}
                result => return result,
            }
        }
    }
}

impl Cache for Client {
    fn open_space(&self, spec: SpaceSpec) -> Result<u64> {
        let open = || self.call(&*self.link()?, &Request::OpenSpace { spec: spec.clone() }, number);
        self.spaces.open(&spec, open)
    }

    fn close_space(&self, space: u64) -> Result<()> {
        self.call(&*self.link()?, &Request::CloseSpace { space }, nothing)?;
        self.spaces.close(space);
        Ok(())
    }

    fn set_quota(&self, space: u64, quota_bytes: u64) -> Result<()> {
        self.call(&*self.link()?, &Request::SetQuota { space, quota_bytes }, nothing)?;
        self.spaces.set_quota(space, quota_bytes);
        Ok(())
    }

    fn add_backend(&self, url: &str) -> Result<u64> {
        self.link()?.call_while_it_works(&Request::AddBackend { url }, number)
    }

    fn add_plugin(&self, _source: &PluginSource) -> Result<u64> {
        Err(Error::new(
            KVKEEP_ERR_UNSUPPORTED,
            "a daemon cannot call functions of its client: give the daemon a plugin: URL, or open the cache in the process that has \
             the functions",
        ))
    }

    fn remove_backend(&self, backend: u64) -> Result<()> {
        self.link()?.call_while_it_works(&Request::RemoveBackend { backend }, nothing)
    }

    fn flush(&self, timeout_ms: u32) -> Result<()> {
        self.in_slices(&*self.link()?, timeout_ms, |timeout_ms| Request::Flush { timeout_ms })
    }

    fn begin_session(&self, space: u64, request_id: &str, timeout: Option<Duration>) -> Result<u64> {
        let timeout_ms = millis(timeout.or(self.config.session_timeout));
        self.begin(&*self.link()?, &Request::BeginSession { space, request_id, timeout_ms })
    }

    fn end_session(&self, session: u64) -> Result<()> {
        let ended = self.give_back(&self.link_of(session)?, &Request::EndSession { session }, nothing);
        self.forget_session(session);
        ended
    }

    fn abort_session(&self, session: u64) -> Result<()> {
        let ended = self.give_back(&self.link_of(session)?, &Request::AbortSession { session }, nothing);
        self.forget_session(session);
        ended
    }

    fn renew_session(&self, session: u64) -> Result<()> {
        self.call(&*self.link_of(session)?, &Request::RenewSession { session }, nothing)
    }

    fn declare_shapes(&self, space: u64, shapes: &[Shape]) -> Result<()> {
        self.call(&*self.link()?, &Request::DeclareShapes { space, shapes }, nothing)
    }

    fn begin_copy(&self, session: u64, space: u64, shapes: &[Shape]) -> Result<u64> {
        self.begin(&*self.link_of(session)?, &Request::BeginCopy { session, space, shapes })
    }

    fn append_tokens(&self, session: u64, tokens: &[u32]) -> Result<u64> {
        self.call(&*self.link_of(session)?, &Request::AppendTokens { session, tokens }, number)
    }

    fn session_keys(&self, session: u64, first_chunk: u64, ranks: Ranks, keys: &mut [Key]) -> Result<()> {
        let request = Request::SessionKeys { session, first_chunk, ranks, count: keys.len() as u64 };
        self.call(&*self.link_of(session)?, &request, |_, fields| fill(keys, fields.array()?))
    }

    fn tail_keys(&self, session: u64, tail_tokens: u32, ranks: Ranks, keys: &mut [Key]) -> Result<()> {
        let request = Request::TailKeys { session, tail_tokens, ranks, count: keys.len() as u64 };
        self.call(&*self.link_of(session)?, &request, |_, fields| fill(keys, fields.array()?))
    }

    fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.views(&*self.link_of(session)?, &Request::ReserveWrite { session, keys, sizes, temporary }, views)
    }

    fn store_wait(&self) -> Duration {
        let of_daemon = || self.link().map_or(0, |link| link.welcome.store_wait_ms);
        self.config.store_wait.unwrap_or_else(|| Duration::from_millis(of_daemon().into()))
    }

    fn reserve_waiting(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        let wait_ms = (wait.as_millis() as u32).min(SLICE_MS);
        let request = Request::ReserveWaiting { session, keys, sizes, wait_ms };
        let link = self.link_of(session)?;
        link.call_while_it_works(&request, read_views(&link, views))
    }

    fn explain_refusal(&self, session: u64, of_space: bool) -> Result<String> {
        let request = Request::ExplainRefusal { session, of_space };
        self.call(&*self.link_of(session)?, &request, text)
    }

    fn stager(&self, _session: u64, _key: &Key) -> Option<String> {
        take_stager()
    }

    fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::FinishWrite { session, keys, statuses: statuses.is_some() };
        self.give_back(&self.link_of(session)?, &request, read_statuses(statuses))
    }

    fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::AbortWrite { session, keys, statuses: statuses.is_some() };
        self.give_back(&self.link_of(session)?, &request, read_statuses(statuses))
    }

    fn finish_write_and_reserve_read(
        &self,
        session: u64,
        keys: &[Key],
        extra: u32,
        views: &mut [View],
    ) -> Result<bool> {
        let request = Request::FinishWriteAndReserveRead { session, keys, extra: Extra(extra) };
        let link = self.link_of(session)?;
        // Of a call that was given up, the commit counts and the shares do not.
        let fallback = Request::FinishWrite { session, keys, statuses: false };
        self.give_back_as(&link, &request, &fallback, read_views(&link, views)).map(|status| status == KVKEEP_OK)
    }

    fn reserve_read(&self, session: u64, keys: &[Key], extra: u32, views: &mut [View]) -> Result<bool> {
        let (link, request) = (self.link_of(session)?, Request::ReserveRead { session, keys, extra: Extra(extra) });
        self.call(&link, &request, read_views_and_stager(&link, views)).map(|status| status == KVKEEP_OK)
    }

    fn finish_read(&self, session: u64, keys: &[Key], extra: u32, statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::FinishRead { session, keys, extra: Extra(extra), statuses: statuses.is_some() };
        self.give_back(&self.link_of(session)?, &request, read_statuses(statuses))
    }

    fn finish_read_tokens(&self, session: u64, tokens: Range<u64>, ranks: Ranks, extra: u32) -> Result<u64> {
        let (first_token, last_token, extra) = (tokens.start, tokens.end, Extra(extra));
        let request = Request::FinishReadTokens { session, first_token, last_token, ranks, extra };
        self.give_back(&self.link_of(session)?, &request, number)
    }

    fn get_views(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        self.views(&*self.link_of(session)?, &Request::GetViews { session, keys }, views)
    }

    fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::Touch { space, keys, statuses: statuses.is_some() };
        self.statuses(&*self.link()?, &request, statuses)
    }

    fn query_keys(&self, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()> {
        self.call(&*self.link()?, &Request::QueryKeys { space, keys }, |_, fields| fill(states, fields.array()?))
    }

    fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        let request = Request::Retain { space, keys, priority, ttl_ms, statuses: statuses.is_some() };
        self.statuses(&*self.link()?, &request, statuses)
    }

    fn evict(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::Evict { space, keys, statuses: statuses.is_some() };
        self.statuses(&*self.link()?, &request, statuses)
    }

    fn delete(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let request = Request::Delete { space, keys, statuses: statuses.is_some() };
        self.link()?.call_while_it_works(&request, read_statuses(statuses))
    }

    fn clear(&self, space: u64, force: bool) -> Result<(u64, bool)> {
        self.link()?.call_while_it_works(&Request::Clear { space, force }, |status, fields| {
            Ok((fields.take()?, status == KVKEEP_OK))
        })
    }

    fn forget_space(&self, space: u64) -> Result<u64> {
        self.link()?.call_while_it_works(&Request::ForgetSpace { space }, number)
    }

    fn submit_prefetch(&self, session: u64, keys: &[Key], mut request: PrefetchRequest, job: &mut u64) -> Result<()> {
        let link = self.link_of(session)?;
        let (notify, lookup_notify) = (std::mem::take(&mut request.notify), std::mem::take(&mut request.lookup_notify));
        self.completions.check_capacity(&notify, WAITING_MAX)?;
        let ticket = self.jobs.begin(session, keys.len(), lookup_notify, notify);
        let request = Request::SubmitPrefetch { session, keys, request, ticket };
        let answer = self.call(&link, &request, |_, fields| {
            let (job, looked_up, chunks) = (fields.take::<u64>()?, fields.take::<bool>()?, fields.take::<u32>()?);
            let done = fields.take::<bool>()?;
            let answer = if done { Some((fields.take()?, fields.take::<&[u8]>()?.to_vec())) } else { None };
            let lookup = if looked_up { LookupAnswer::Known(chunks) } else { LookupAnswer::AtLeast(chunks) };
            Ok((job, lookup, answer))
        });
        match answer {
            Ok((number, lookup, answer)) => {
                self.jobs.accepted(ticket, number, lookup, answer, job, &self.completions);
                if link.is_lost() {
                    // The daemon went away after it had answered: no push may have named this job.
                    self.lose_job(*job, ticket);
                }
                Ok(())
            }
            Err(error) => {
                self.jobs.refused(ticket);
                Err(error)
            }
        }
    }

    fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Result<Status> {
        self.jobs.query_lookup_hits(job, chunks).unwrap_or_else(|| {
            self.call(&*self.link_of(job)?, &Request::QueryLookupHits { job }, |status, fields| {
                *chunks = fields.take()?;
                Ok(status)
            })
        })
    }

    fn query_job(&self, job: u64, result: &mut JobResult) -> Result<Status> {
        self.jobs.query_job(job, result).unwrap_or_else(|| {
            self.call(&*self.link_of(job)?, &Request::QueryJob { job }, |status, fields| {
                let answer: JobResult = fields.take()?;
                if status == KVKEEP_OK {
                    let (struct_size, abi_version) = (result.struct_size, result.abi_version);
                    *result = JobResult { struct_size, abi_version, ..answer };
                }
                Ok(status)
            })
        })
    }

    fn query_prefix_lengths(&self, job: u64, lengths: &mut Vec<u32>) -> Result<Status> {
        self.call(&*self.link_of(job)?, &Request::QueryPrefixLengths { job }, |status, fields| {
            *lengths = fields.array()?.to_vec();
            Ok(status)
        })
    }

    fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Result<Status> {
        self.jobs.query_bitmap(job, bitmap).unwrap_or_else(|| {
            let request = Request::QueryBitmap { job, bytes: bitmap.len() as u64 };
            self.call(&*self.link_of(job)?, &request, |status, fields| {
                let held: &[u8] = fields.array()?;
                if status == KVKEEP_OK {
                    fill(bitmap, held)?;
                }
                Ok(status)
            })
        })
    }

    fn wait(&self, job: u64, timeout_ms: u32) -> Result<()> {
        let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
        self.jobs.wait(job, until).unwrap_or_else(|| {
            self.in_slices(&*self.link_of(job)?, timeout_ms, |timeout_ms| Request::Wait { job, timeout_ms })
        })
    }

    fn resume_job(&self, job: u64) -> Result<()> {
        self.give_back(&self.link_of(job)?, &Request::Resume { job }, nothing)
    }

    fn cancel(&self, job: u64) -> Result<()> {
        self.give_back(&self.link_of(job)?, &Request::Cancel { job }, nothing)
    }

    fn release_job(&self, job: u64) -> Result<()> {
        let link = self.link_of(job)?;
        // Before it is asked for: the release cancels the job, and its end is not to look like an answer.
        self.jobs.forget(job);
        self.give_back(&link, &Request::ReleaseJob { job }, nothing)
    }

    fn event_fd(&self) -> i32 {
        self.completions.fd()
    }

    fn take_completions(&self, completions: &mut [Completion]) -> usize {
        self.completions.drain(completions)
    }

    fn read_events(&self, next: &mut u64, events: &mut [Event]) -> Result<usize> {
        let request = Request::ReadEvents { next: *next, count: events.len() as u64 };
        self.call(&*self.link()?, &request, |_, fields| {
            let (cursor, some) = (fields.take()?, fields.array::<Event>()?);
            let places = events.get_mut(..some.len()).ok_or_else(wrong_answer)?;
            places.copy_from_slice(some);
            *next = cursor;
            Ok(some.len())
        })
    }

    fn stats(&self, stats: &mut Stats) -> Result<()> {
        self.call(&*self.link()?, &Request::GetStats {}, |_, fields| {
            let (struct_size, abi_version) = (stats.struct_size, stats.abi_version);
            *stats = Stats { struct_size, abi_version, ..fields.take()? };
            Ok(())
        })
    }

    fn query_space(&self, space: u64, usage: &mut SpaceUsage) -> Result<()> {
        self.call(&*self.link()?, &Request::QuerySpace { space }, |_, fields| {
            let (struct_size, abi_version) = (usage.struct_size, usage.abi_version);
            *usage = SpaceUsage { struct_size, abi_version, ..fields.take()? };
            Ok(())
        })
    }

    fn list_spaces(&self) -> Result<String> {
        self.call(&*self.link()?, &Request::ListSpaces {}, text)
    }

    fn query_session(&self, session: u64, state: &mut SessionState) -> Result<()> {
        self.call(&*self.link_of(session)?, &Request::QuerySession { session }, |_, fields| {
            let (struct_size, abi_version) = (state.struct_size, state.abi_version);
            *state = SessionState { struct_size, abi_version, ..fields.take()? };
            Ok(())
        })
    }

    fn query_backends(&self) -> Result<Vec<BackendState>> {
        self.call(&*self.link()?, &Request::QueryBackends {}, |_, fields| Ok(fields.array()?.to_vec()))
    }

    fn query_misses(&self, space: u64, report: &mut MissReport) -> Result<()> {
        self.call(&*self.link()?, &Request::QueryMisses { space }, |_, fields| {
            let (struct_size, abi_version) = (report.struct_size, report.abi_version);
            *report = MissReport { struct_size, abi_version, ..fields.take()? };
            Ok(())
        })
    }

    fn explain_misses(&self) -> Result<String> {
        self.call(&*self.link()?, &Request::ExplainMisses {}, text)
    }

    fn metrics(&self) -> Result<String> {
        self.call(&*self.link()?, &Request::Metrics {}, text)
    }

    fn explain_key(&self, space: u64, key: &Key) -> Result<String> {
        self.call(&*self.link()?, &Request::ExplainKey { space, key: *key }, text)
    }

    fn explain_session(&self, session: u64) -> Result<String> {
        self.call(&*self.link_of(session)?, &Request::ExplainSession { session }, text)
    }

    fn explain_holders(&self, most: u32) -> Result<String> {
        self.call(&*self.link()?, &Request::ExplainHolders { most }, text)
    }

    fn copy_out(&self, view: &View, into: &mut [u8]) -> Result<()> {
        self.arena_of(view).ok_or_else(|| cache::not_ours(view)).and_then(|arena| cache::copy_out(&arena, view, into))
    }

    fn copy_in(&self, view: &View, from: &[u8]) -> Result<()> {
        self.arena_of(view).ok_or_else(|| cache::not_ours(view)).and_then(|arena| cache::copy_in(&arena, view, from))
    }

    fn arena(&self) -> Option<Arc<Arena>> {
        self.find_arena(|_| true).map(|arena| (*arena).clone())
    }

    fn arena_of(&self, view: &View) -> Option<ArenaLease> {
        self.find_arena(|arena| arena.holds(view.data.cast(), view.size))
    }

    fn completions(&self) -> &Arc<Completions> {
        &self.completions
    }

    fn log(&self) -> &Log {
        &self.config.log
    }

    fn note_unregistered(&self, memlock: bool) {
        // Only a number is lost with a daemon that is gone.
        let _ = self.link().and_then(|link| self.call(&link, &Request::NoteUnregistered { memlock }, nothing));
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    fn on_callback_thread(&self) -> bool {
        self.completions.on_thread()
    }

    fn wake_waiters(&self) {
        self.begin_closing();
    }

    fn close(&self) {
        self.finish_closing();
    }
}
