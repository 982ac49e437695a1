//! The methods of L1 for the calls of its users, each with the file that does the work.

use std::time::Duration;

use super::holdings::{HolderSums, SessionReport};
use super::inspect::ObjectReport;
use super::session::{copy, lifecycle};
use super::space::SpaceInfo;
use super::staged_bytes::THIS_PROCESS;
use super::tier::L1;
use super::{count_lookups, holdings, inspect, memory_wait, open_space, read, recency, remove, write};
use crate::abi::{KeyState, SessionState, SpaceUsage, View};
use crate::config::SpaceSpec;
use crate::error::{Result, Status};
use crate::key::{Key, SpaceTag};
use crate::misses::LookupCounts;
use crate::shape::Shape;
use crate::space_names::SpaceNames;
use crate::space_report::SpaceReport;

impl L1 {
    /// Begins a session for a process.
    pub fn begin_session(&self, space: u64, owner_pid: u32, request_id: &str, timeout: Duration) -> Result<u64> {
        self.with(|state| lifecycle::begin(state, space, owner_pid, request_id, timeout))
    }

    /// Ends a session: returns its shares, drops its staging and, if `touch`, touches the objects it used, last used first. Without
    /// `touch` it is aborted: copies for it commit nothing.
    pub fn end_session(&self, session: u64, touch: bool) -> Result<()> {
        self.with(|state| lifecycle::end_or_abort(state, session, touch))
    }

    /// Counts one more job of a session that is not done. Gives the session's space, how long it may be idle, and the session
    /// that it copies for, if it does.
    pub fn begin_job(&self, session: u64) -> Result<(SpaceInfo, Duration, Option<u64>)> {
        self.with(|state| lifecycle::begin_job(state, session))
    }

    /// One job of a session is done. A session that is gone has none to count.
    pub fn end_job(&self, session: u64) {
        self.with(|state| lifecycle::end_job(state, session));
    }

    /// Begins a session that copies for `session`, which must be of `space`, from or to pages of these shapes.
    pub fn begin_copy(&self, session: u64, space: u64, shapes: &[Shape], owner_pid: u32) -> Result<u64> {
        copy::begin_copy(self, session, space, shapes, owner_pid)
    }

    /// Whether a session holds shares, stages something or has jobs.
    pub fn session_holds(&self, session: u64) -> bool {
        self.with(|state| {
            let index = state.sessions.index(session);
            index.is_ok_and(|index| !state.sessions.at(index).idle())
        })
    }

    /// Fails if a session is not live.
    pub fn session_lives(&self, session: u64) -> Result<()> {
        self.with(|state| state.sessions.index(session).map(drop))
    }

    /// The space of a session, whose deadline stays as it is.
    pub fn space_of_session(&self, session: u64) -> Result<SpaceInfo> {
        self.with(|state| {
            let space = state.sessions.at(state.sessions.index(session)?).space;
            Ok(state.space_info(space))
        })
    }

    /// The space of a session, whose deadline is renewed.
    pub fn session_space(&self, session: u64) -> Result<SpaceInfo> {
        self.with(|state| {
            let space = state.sessions.use_now(session, state.now_ms)?.1.space;
            Ok(state.space_info(space))
        })
    }

    /// Opens the account of a writer, which may have `bytes_max` bytes staged at once.
    pub fn open_writer(&self, writer: u64, bytes_max: u64) {
        self.with(|state| state.writers.open(writer, bytes_max));
    }

    /// Drops all that a writer has staged and not committed, and refuses its later stagings.
    pub fn close_writer(&self, writer: u64) {
        self.with(|state| {
            if state.writers.close(writer) {
                lifecycle::drop_staged_by(state, writer);
            }
        });
    }

    /// Opens a space, or sets the quota of one that is open, and gives its number.
    pub fn open_space(&self, spec: &SpaceSpec) -> Result<u64> {
        open_space::open_space(self, spec)
    }

    /// Closes a space that no session uses; its objects leave L1.
    pub fn close_space(&self, space: u64) -> Result<()> {
        open_space::close_space(self, space)
    }

    /// Sets the quota of an open space.
    pub fn set_quota(&self, space: u64, quota_bytes: u64) -> Result<()> {
        open_space::set_quota(self, space, quota_bytes)
    }

    /// The space of a number.
    pub fn space(&self, number: u64) -> Result<SpaceInfo> {
        self.with(|state| state.space_index(number).map(|index| state.space_info(index)))
    }

    /// Declares the shapes that pools have in a space. Refuses all of them if one contradicts an earlier pool.
    pub fn declare_shapes(&self, space: u64, shapes: &[Shape]) -> Result<()> {
        self.with(|state| {
            let space = state.space_index(space)?;
            remove::declare_shapes(state, space, shapes)
        })
    }

    /// Stages `sizes[i]` bytes for `keys[i]`, for this process.
    pub fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        self.reserve_write_by(THIS_PROCESS, session, keys, sizes, temporary, views)
    }

    /// Stages `sizes[i]` bytes for `keys[i]`, for a writer that has an account.
    pub fn reserve_write_by(
        &self,
        writer: u64,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool> {
        write::reserve_write_by(self, writer, session, keys, sizes, temporary, views)
    }

    /// Commits the keys that a session has staged.
    pub fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        write::finish_write(self, session, keys, statuses)
    }

    /// Commits staged keys and takes `count` shares of each.
    pub fn finish_write_and_reserve_read(
        &self,
        session: u64,
        keys: &[Key],
        count: u32,
        views: &mut [View],
    ) -> Result<bool> {
        write::finish_write_and_reserve_read(self, session, keys, count, views)
    }

    /// Gives staged keys up: their memory is free again.
    pub fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        write::abort_write(self, session, keys, statuses)
    }

    /// Stages as many of `keys` as fit, in their order, for a writer. Evicts nothing that is still to be written; where none of them fits,
    /// waits up to `timeout` for writes and copies under way. OK: none was refused. PENDING: those refused may fit later. PARTIAL:
    /// nothing that is under way will free memory for them.
    pub fn reserve_waiting(
        &self,
        (session, writer): (u64, u64),
        keys: &[Key],
        sizes: &[u64],
        timeout: Duration,
        views: &mut [View],
    ) -> Result<Status> {
        memory_wait::reserve_waiting(self, (session, writer), keys, sizes, timeout, views)
    }

    /// Ends every wait of `reserve_waiting`, for good: the cache closes.
    pub fn stop_waiting(&self) {
        self.freed.close();
    }

    /// Takes `count` shares of each ready key.
    pub fn reserve_read(&self, session: u64, keys: &[Key], count: u32, views: &mut [View]) -> Result<bool> {
        read::reserve_read(self, session, keys, count, views)
    }

    /// Takes `count` shares of each ready key whose `held` is false, and sets `held` of those it found, and their bytes in `sizes`.
    pub fn reserve_found(
        &self,
        session: u64,
        keys: &[Key],
        count: u32,
        held: &mut [bool],
        sizes: Option<&mut [u64]>,
    ) -> Result<()> {
        read::reserve_found(self, session, keys, count, held, sizes)
    }

    /// Returns `count` shares of each key, which counts as a read with the last share.
    pub fn finish_read(&self, session: u64, keys: &[Key], count: u32, statuses: Option<&mut [i32]>) -> Result<bool> {
        read::finish_read(self, session, keys, count, statuses)
    }

    /// Returns `count` shares of each key of which the session holds as many. Gives the number of these keys.
    pub fn release(&self, session: u64, keys: &[Key], count: u32) -> Result<u64> {
        read::release(self, session, keys, count)
    }

    /// Returns shares that a job took and its caller never saw: no use, no touch. Unknown sessions have none left. A temporary object
    /// that no session has read so far stays, unless a backend has it, too.
    pub fn return_unread(&self, session: u64, keys: impl Iterator<Item = Key>, count: u32) {
        read::return_unread(self, session, keys, count)
    }

    /// Views of keys whose shares the session holds.
    pub fn get_views(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool> {
        read::get_views(self, session, keys, views)
    }

    /// Marks keys as used now, last key first.
    pub fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        recency::touch(self, space, keys, statuses)
    }

    /// Gives keys a retention of `priority` for `ttl_ms`.
    pub fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool> {
        recency::retain(self, space, keys, priority, ttl_ms, statuses)
    }

    /// Evicts keys that are not in use, written or not, without asking their policy.
    pub fn evict(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
        remove::evict(self, space, keys, statuses)
    }

    /// Deletes keys that are not in use: OK, NOT_FOUND or LOCKED of each.
    pub fn delete(&self, space: u64, keys: &[Key]) -> Result<Vec<Status>> {
        remove::delete(self, space, keys)
    }

    /// Detaches keys, in use or not: no lookup finds them any more.
    pub fn detach_keys(&self, space: u64, keys: &[Key]) -> Result<()> {
        remove::detach_keys(self, space, keys)
    }

    /// Removes the objects of a space, or of all. With `force`, those in use are detached. Gives the number
    /// removed, and whether none stayed.
    pub fn clear(&self, space: Option<u64>, force: bool) -> Result<(u64, bool)> {
        remove::clear(self, space, force)
    }

    /// Removes the objects of a space, or of all, in use or not, and has nothing committed that is staged now, or that a copy under
    /// way is still to stage: it comes from pages of before. Gives the number removed.
    pub fn forget(&self, space: Option<u64>) -> Result<u64> {
        remove::forget(self, space)
    }

    /// The state of each key now. Takes no shares and touches nothing.
    pub fn query_keys(&self, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()> {
        inspect::query_keys(self, space, keys, states)
    }

    /// The keys that lookups asked for in a space, or in all that are or were open.
    pub fn lookup_counts(&self, space: Option<u64>) -> Result<LookupCounts> {
        count_lookups::lookup_counts(self, space)
    }

    /// Fills in the memory that a space takes of L1, but not the head of the struct.
    pub fn query_space(&self, space: u64, usage: &mut SpaceUsage) -> Result<()> {
        inspect::query_space(self, space, usage)
    }

    /// The open spaces, those that take most of L1 first; of very many the first 256.
    pub fn spaces(&self) -> Vec<SpaceReport> {
        inspect::spaces(self)
    }

    /// The tag and the names of each open space.
    pub fn space_names(&self) -> Vec<(SpaceTag, SpaceNames)> {
        inspect::space_names(self)
    }

    /// Fills in the state of a session, but not the head of the struct.
    pub fn query_session(&self, session: u64, state: &mut SessionState) -> Result<()> {
        inspect::query_session(self, session, state)
    }

    /// All that is known of a key; more than one report if it is staged too. It is looked for slot by slot, a slice at a time, so
    /// that no call waits for it long, and then in the table, where it may have come meanwhile.
    pub fn explain_key(&self, space: u64, key: &Key) -> Result<Vec<ObjectReport>> {
        inspect::explain_key(self, space, key)
    }

    /// The shares and staging of a session; of all sessions that hold something for `None`, that with most bytes first.
    pub fn explain_sessions(&self, session: Option<u64>) -> Result<Vec<SessionReport>> {
        holdings::explain_sessions(self, session)
    }

    /// The sums of what sessions hold, and the `most` sessions with most bytes. They are looked at one by one, a slice at a time, so that no
    /// call waits for it long.
    pub fn holdings(&self, most: usize) -> HolderSums {
        holdings::holdings(self, most)
    }

    /// When the first of the present shares of the object was taken that is shared longest, by the clock of the cache. Looks at every object.
    pub fn oldest_share(&self) -> Option<u64> {
        holdings::oldest_share(self)
    }

    /// When the oldest object that waits for the writer was queued, by the clock of the cache.
    pub fn oldest_queued(&self) -> Option<u64> {
        holdings::oldest_queued(self)
    }

    /// Which session holds most of L1, or with `of_space` of the quota of the space of `session`, and a remedy. Sessions are
    /// looked at one by one, so that no call waits for it long.
    pub fn largest_holder(&self, session: u64, of_space: bool) -> Result<String> {
        holdings::largest_holder(self, session, of_space)
    }

    /// The session that stages a key of the space of `session`, for people. Looks at every session, and at none where
    /// more than a thousand live.
    pub fn stager(&self, session: u64, key: &Key) -> Option<String> {
        inspect::stager(self, session, key)
    }
}
