//! The calls of a node: each goes to the part that carries it out.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::delete_everywhere;
use super::parts::Node;
use crate::abi::{Completion, JobResult, KeyState, SessionState, SpaceUsage, Stats, View};
use crate::arena::Arena;
use crate::arena_lease::ArenaLease;
use crate::backend_state::BackendState;
use crate::cache;
use crate::cache::Cache;
use crate::config::{PrefetchRequest, SpaceSpec};
use crate::control::completion::Completions;
use crate::control::tokens::Ranks;
use crate::error::{Error, Result, Status};
use crate::events::Event;
use crate::hash::tag_of_names;
use crate::key::{Key, ObjectKey};
use crate::l1::staged_bytes::THIS_PROCESS;
use crate::l2;
use crate::l2::plugin::PluginSource;
use crate::l2::registry::OpenBackend;
use crate::log::{Log, LogLevel};
use crate::misses::miss_report::MissReport;
use crate::shape::Shape;

/// Between two looks whether jobs are through with a backend that is removed.
const REMOVAL_PAUSE: Duration = Duration::from_millis(1);

impl Node {
    /// Begins a session for the process `owner_pid`.
    pub fn begin_session_of(
        &self,
        owner_pid: u32,
        space: u64,
        request_id: &str,
        timeout: Option<Duration>,
    ) -> Result<u64> {
        self.l1.begin_session(space, owner_pid, request_id, timeout.unwrap_or(self.session_timeout))
    }

    /// Begins a session of the process `owner_pid` that copies for another.
    pub fn begin_copy_of(&self, owner_pid: u32, session: u64, space: u64, shapes: &[Shape]) -> Result<u64> {
        self.l1.begin_copy(session, space, shapes, owner_pid)
    }

    /// Stages keys for a client of a daemon, whose account was opened.
    pub fn reserve_write_by(
        &self,
        writer: u64,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.l1.reserve_write_by(writer, session, keys, sizes, temporary, views)
    }

    /// Stages the keys that fit for a writer that has an account, and waits for memory that writes under way will free.
    pub fn reserve_waiting_by(
        &self,
        writer: u64,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        self.l1.reserve_waiting((session, writer), keys, sizes, wait, views)
    }

    fn leave(&self, session: u64, touch: bool) -> Result<()> {
        self.l1.session_lives(session)?;
        self.prefetcher.release_session(session);
        let ended = self.l1.end_session(session, touch);
        self.forget(session);
        ended
    }

    /// Releases the jobs and the tokens of a session that has ended, and those that a call which met its end left behind.
    fn forget(&self, session: u64) {
        self.prefetcher.release_session(session);
        self.chains.forget(session);
    }

    fn add_opened(&self, opened: OpenBackend) -> Result<u64> {
        let url = opened.url.clone();
        let (backend, number) = (opened.backend.clone(), self.backends.add(opened)?);
        self.l1.space_names().iter().for_each(|(tag, names)| backend.name_space(*tag, names));
        self.look_below();
        self.log.write(LogLevel::Info, || format!("added backend {number}: {url}"));
        Ok(number)
    }

    /// Notifies L1 whether there is a backend. The last thread here sees all changes of the list made before.
    fn look_below(&self) {
        let _turn = self.below.lock();
        self.note_backends();
    }

    pub(super) fn objects(&self, space: u64, keys: &[Key]) -> Result<Vec<ObjectKey>> {
        let tag = self.l1.space(space)?.tag;
        Ok(keys.iter().map(|&key| ObjectKey { space: tag, key }).collect())
    }
}

impl Cache for Node {
    fn open_space(&self, spec: SpaceSpec) -> Result<u64> {
        spec.check()?;
        let space = self.l1.open_space(&spec)?;
        let names = spec.names();
        let tag = tag_of_names(&names);
        self.backends.list().iter().for_each(|slot| slot.backend.name_space(tag, &names));
        Ok(space)
    }

    fn close_space(&self, space: u64) -> Result<()> {
        self.l1.close_space(space)
    }

    fn set_quota(&self, space: u64, quota_bytes: u64) -> Result<()> {
        self.l1.set_quota(space, quota_bytes)
    }

    fn add_backend(&self, url: &str) -> Result<u64> {
        self.add_opened(l2::registry::open(url, &self.log, self.l1.arena(), &self.key_callback)?)
    }

    fn add_plugin(&self, source: &PluginSource) -> Result<u64> {
        self.add_opened(l2::registry::open_plugin(source, &self.log, self.l1.arena(), &self.key_callback)?)
    }

    fn remove_backend(&self, number: u64) -> Result<()> {
        let deadline = Instant::now() + self.backend_timeout;
        let slot = self.backends.remove(number)?;
        self.look_below();
        self.writer.removed(deadline);
        // Callers may have been promised objects that jobs found in it.
        while slot.usable() && self.prefetcher.plans_on(&slot) && Instant::now() < deadline {
            thread::sleep(REMOVAL_PAUSE);
        }
        let retired = slot.retire(deadline.saturating_duration_since(Instant::now()));
        self.backends.keep_count(&slot);
        retired
    }

    fn flush(&self, timeout_ms: u32) -> Result<()> {
        self.writer.drain(Duration::from_millis(u64::from(timeout_ms)))
    }

    fn begin_session(&self, space: u64, request_id: &str, timeout: Option<Duration>) -> Result<u64> {
        self.begin_session_of(std::process::id(), space, request_id, timeout)
    }

    fn end_session(&self, session: u64) -> Result<()> {
        self.leave(session, true)
    }

    fn abort_session(&self, session: u64) -> Result<()> {
        self.leave(session, false)
    }

    fn renew_session(&self, session: u64) -> Result<()> {
        self.l1.session_space(session).map(drop)
    }

    fn declare_shapes(&self, space: u64, shapes: &[Shape]) -> Result<()> {
        self.l1.declare_shapes(space, shapes)
    }

    fn begin_copy(&self, session: u64, space: u64, shapes: &[Shape]) -> Result<u64> {
        self.begin_copy_of(std::process::id(), session, space, shapes)
    }

    fn append_tokens(&self, session: u64, tokens: &[u32]) -> Result<u64> {
        let space = self.l1.session_space(session)?;
        let chunks = self.chains.append(session, &space, tokens)?;
        if let Err(error) = self.l1.session_lives(session) {
            // It ended meanwhile.
            self.chains.forget(session);
            return Err(error);
        }
        Ok(chunks)
    }

    fn session_keys(&self, session: u64, first_chunk: u64, ranks: Ranks, keys: &mut [Key]) -> Result<()> {
        self.l1.session_space(session)?;
        self.chains.keys(session, first_chunk, ranks, keys)
    }

    fn tail_keys(&self, session: u64, tail_tokens: u32, ranks: Ranks, keys: &mut [Key]) -> Result<()> {
        let space = self.l1.session_space(session)?;
        self.chains.tail_keys(session, &space, tail_tokens, ranks, keys)
    }

    fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.l1.reserve_write(session, keys, sizes, temporary, views)
    }

    fn store_wait(&self) -> Duration {
        self.store_wait
    }

    fn reserve_waiting(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        self.reserve_waiting_by(THIS_PROCESS, session, keys, sizes, wait, views)
    }

    fn explain_refusal(&self, session: u64, of_space: bool) -> Result<String> {
        self.l1.largest_holder(session, of_space)
    }

    fn stager(&self, session: u64, key: &Key) -> Option<String> {
        self.l1.stager(session, key)
    }

    fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.finish_write(session, keys, statuses)
    }

    fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.abort_write(session, keys, statuses)
    }

    fn finish_write_and_reserve_read(
        &self,
        session: u64,
        keys: &[Key],
        extra: u32,
        views: &mut [View],
    ) -> Result<bool> {
        self.l1.finish_write_and_reserve_read(session, keys, extra + 1, views)
    }

    fn reserve_read(&self, session: u64, keys: &[Key], extra: u32, views: &mut [View]) -> Result<bool> {
        self.l1.reserve_read(session, keys, extra + 1, views)
    }

    fn finish_read(&self, session: u64, keys: &[Key], extra: u32, statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.finish_read(session, keys, extra + 1, statuses)
    }

    fn finish_read_tokens(&self, session: u64, tokens: Range<u64>, ranks: Ranks, extra: u32) -> Result<u64> {
        let space = self.l1.session_space(session)?;
        let keys = self.chains.keys_of_tokens(session, &space, tokens, ranks)?;
        self.l1.release(session, &keys, extra + 1)
    }

    fn get_views(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        self.l1.get_views(session, keys, views)
    }

    fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        let backends = self.backends.list();
        if !backends.is_empty() {
            let mut objects = self.objects(space, keys)?;
            objects.reverse();
            self.writer.touch(&objects);
        }
        self.l1.touch(space, keys, statuses)
    }

    fn query_keys(&self, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()> {
        self.l1.query_keys(space, keys, states)
    }

    fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        self.l1.retain(space, keys, priority, ttl_ms, statuses)
    }

    fn evict(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        self.l1.evict(space, keys, statuses)
    }

    fn delete(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        delete_everywhere::delete(self, space, keys, statuses)
    }

    fn clear(&self, space: u64, force: bool) -> Result<(u64, bool)> {
        let space = (space != 0).then_some(space);
        if force {
            let index = space.map(|space| self.l1.space(space)).transpose()?.map(|space| space.index);
            self.prefetcher.cancel_space(index);
        }
        self.l1.clear(space, force)
    }

    fn forget_space(&self, space: u64) -> Result<u64> {
        let (space, info) = match space {
            0 => (None, None),
            number => (Some(number), Some(self.l1.space(number)?)),
        };
        let (index, tag) = (info.map(|info| info.index), info.map(|info| info.tag));
        let backends = self.backends.list();
        // From here on no job finds the space below L1, and jobs that did are cancelled, so that nothing arrives in L1 later.
        backends.iter().for_each(|slot| slot.forgotten.begin(tag));
        self.prefetcher.cancel_space(index);
        let removed = self.l1.forget(space)?;
        self.l1.misses().forgotten(tag.as_ref());
        // Jobs that found something in L1 meanwhile.
        self.prefetcher.cancel_space(index);
        self.writer.forget(tag, &backends);
        Ok(removed)
    }

    fn submit_prefetch(&self, session: u64, keys: &[Key], request: PrefetchRequest, job: &mut u64) -> Result<()> {
        self.prefetcher.submit(session, keys, request, job)
    }

    fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Result<Status> {
        let began = Instant::now();
        let status = self.prefetcher.table().query_lookup_hits(job, chunks);
        self.meters.call_latency.add(began.elapsed());
        status
    }

    fn query_job(&self, job: u64, result: &mut JobResult) -> Result<Status> {
        let began = Instant::now();
        let status = self.prefetcher.table().query(job, result);
        self.meters.call_latency.add(began.elapsed());
        status
    }

    fn query_prefix_lengths(&self, job: u64, lengths: &mut Vec<u32>) -> Result<Status> {
        self.prefetcher.table().query_prefix_lengths(job, lengths)
    }

    fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Result<Status> {
        self.prefetcher.table().query_bitmap(job, bitmap)
    }

    fn wait(&self, job: u64, timeout_ms: u32) -> Result<()> {
        self.prefetcher.table().wait(job, Duration::from_millis(u64::from(timeout_ms)))
    }

    fn resume_job(&self, job: u64) -> Result<()> {
        self.prefetcher.resume(job)
    }

    fn cancel(&self, job: u64) -> Result<()> {
        self.prefetcher.cancel(job)
    }

    fn release_job(&self, job: u64) -> Result<()> {
        self.prefetcher.release(job)
    }

    fn event_fd(&self) -> i32 {
        self.completions.fd()
    }

    fn read_events(&self, next: &mut u64, events: &mut [Event]) -> Result<usize> {
        self.l1.read_events(next, events)
    }

    fn take_completions(&self, completions: &mut [Completion]) -> usize {
        self.completions.drain(completions)
    }

    fn stats(&self, stats: &mut Stats) -> Result<()> {
        Node::stats(self, stats);
        Ok(())
    }

    fn query_space(&self, space: u64, usage: &mut SpaceUsage) -> Result<()> {
        self.l1.query_space(space, usage)
    }

    fn list_spaces(&self) -> Result<String> {
        Ok(Node::list_spaces(self))
    }

    fn query_session(&self, session: u64, state: &mut SessionState) -> Result<()> {
        self.l1.query_session(session, state)
    }

    fn query_backends(&self) -> Result<Vec<BackendState>> {
        Ok(Node::query_backends(self))
    }

    fn query_misses(&self, space: u64, report: &mut MissReport) -> Result<()> {
        *report = self.l1.lookup_counts((space != 0).then_some(space))?.report(report);
        Ok(())
    }

    fn explain_misses(&self) -> Result<String> {
        Node::explain_misses(self, |_| true)
    }

    fn metrics(&self) -> Result<String> {
        Ok(Node::metrics(self) + &self.space_metrics())
    }

    fn explain_key(&self, space: u64, key: &Key) -> Result<String> {
        Node::explain_key(self, space, key)
    }

    fn explain_session(&self, session: u64) -> Result<String> {
        Node::explain_session(self, session)
    }

    fn explain_holders(&self, most: u32) -> Result<String> {
        Ok(Node::explain_holders(self, most))
    }

    fn copy_out(&self, view: &View, into: &mut [u8]) -> Result<()> {
        cache::copy_out(self.l1.arena(), view, into)
    }

    fn copy_in(&self, view: &View, from: &[u8]) -> Result<()> {
        cache::copy_in(self.l1.arena(), view, from)
    }

    fn arena(&self) -> Option<Arc<Arena>> {
        Some(self.l1.arena().clone())
    }

    fn arena_of(&self, view: &View) -> Option<ArenaLease> {
        let arena = self.l1.arena();
        arena.holds(view.data.cast(), view.size).then(|| ArenaLease::new(arena.clone(), None))
    }

    fn completions(&self) -> &Arc<Completions> {
        &self.completions
    }

    fn note_refusal(&self, error: &Error) {
        self.shortfall.refused(error);
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn note_unregistered(&self, memlock: bool) {
        self.meters.registrations_refused.add(1);
        self.meters.memlock_refused.add(u64::from(memlock));
    }

    fn is_poisoned(&self) -> bool {
        Node::is_poisoned(self)
    }

    fn poison(&self) {
        Node::poison(self);
    }

    fn on_callback_thread(&self) -> bool {
        self.completions.on_thread()
    }

    fn wake_waiters(&self) {
        self.l1.stop_waiting();
        self.prefetcher.close();
    }

    fn close(&self) {
        Node::close(self);
    }
}
