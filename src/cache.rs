//! One open cache, in whichever form: a node in this process, or a client of a daemon that many processes share.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::abi::{Completion, JobResult, KeyState, SessionState, SpaceUsage, Stats, View};
use crate::arena::Arena;
use crate::arena_lease::ArenaLease;
use crate::backend_state::BackendState;
use crate::config::{PrefetchRequest, SpaceSpec};
use crate::control::completion::Completions;
use crate::control::tokens::Ranks;
use crate::error::{Error, Result, Status};
use crate::events::Event;
use crate::key::Key;
use crate::l2::plugin::PluginSource;
use crate::log::Log;
use crate::misses::miss_report::MissReport;
use crate::shape::Shape;

/// The calls of every form of a cache. Arguments have been checked; the C header has their meaning. Any thread may make any call
/// at any time, except `close`.
pub trait Cache: Send + Sync {
    /// Opens a space, or gives the number of one that is open.
    fn open_space(&self, spec: SpaceSpec) -> Result<u64>;

    /// Closes a space that no session uses.
    fn close_space(&self, space: u64) -> Result<()>;

    /// Bounds a space's part of L1; 0: by L1 alone.
    fn set_quota(&self, space: u64, quota_bytes: u64) -> Result<()>;

    /// Adds a backend below the others. Returns its number.
    fn add_backend(&self, url: &str) -> Result<u64>;

    /// Adds a backend whose functions this process has. Returns its number.
    fn add_plugin(&self, source: &PluginSource) -> Result<u64>;

    /// Removes a backend, and waits until jobs are through with it.
    fn remove_backend(&self, number: u64) -> Result<()>;

    /// Blocks until everything committed is in L2 or given up.
    fn flush(&self, timeout_ms: u32) -> Result<()>;

    /// Begins a session that this process owns.
    fn begin_session(&self, space: u64, request_id: &str, timeout: Option<Duration>) -> Result<u64>;

    /// Ends a session and touches the objects that it used.
    fn end_session(&self, session: u64) -> Result<()>;

    /// Ends a session and touches nothing.
    fn abort_session(&self, session: u64) -> Result<()>;

    /// Renews a session's deadline.
    fn renew_session(&self, session: u64) -> Result<()>;

    /// Declares the shapes of the objects that a pool of `space` holds; refused where those of another pool differ.
    fn declare_shapes(&self, space: u64, shapes: &[Shape]) -> Result<()>;

    /// Begins a session that copies for `session` of `space`: it never expires, ends with this process, and commits nothing once
    /// `session` was aborted. Declares the shapes of its pool, since the daemon may be another one than the pool was opened
    /// with.
    fn begin_copy(&self, session: u64, space: u64, shapes: &[Shape]) -> Result<u64>;

    /// Appends tokens to a session. Returns how many chunks are full.
    fn append_tokens(&self, session: u64, tokens: &[u32]) -> Result<u64>;

    /// Writes keys of a session's chunks.
    fn session_keys(&self, session: u64, first_chunk: u64, ranks: Ranks, keys: &mut [Key]) -> Result<()>;

    /// Writes keys of a session's last chunk, which is not full, as far as its first tokens.
    fn tail_keys(&self, session: u64, tail_tokens: u32, ranks: Ranks, keys: &mut [Key]) -> Result<()>;

    /// Stages keys: takes memory for their objects, or refuses each by the status of its view. True if none was refused.
    fn reserve_write(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        temporary: bool,
        views: &mut [View],
    ) -> Result<bool>;

    /// How long a reservation waits before L1 evicts unwritten objects.
    fn store_wait(&self) -> Duration;

    /// Stages keys as far as memory allows without dropping unwritten objects, and waits up to `wait` where none fits and writes
    /// or copies under way will free memory. OK: none was refused; PENDING: the refused ones may fit later; PARTIAL: they will
    /// not.
    fn reserve_waiting(
        &self,
        session: u64,
        keys: &[Key],
        sizes: &[u64],
        wait: Duration,
        views: &mut [View],
    ) -> Result<Status>;

    /// Explains a refusal: the largest holder of L1, or of the quota of the session's space, and a remedy.
    fn explain_refusal(&self, session: u64, of_space: bool) -> Result<String>;

    /// The session that stages a key of the space of `session`, for people. Asked after [`reserve_read`](Cache::reserve_read) by the same
    /// thread, of the first key that was not found.
    fn stager(&self, session: u64, key: &Key) -> Option<String>;

    /// Commits staged keys. True if all are committed.
    fn finish_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool>;

    /// Gives staged keys back.
    fn abort_write(&self, session: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool>;

    /// Commits keys and takes shares.
    fn finish_write_and_reserve_read(&self, session: u64, keys: &[Key], extra: u32, views: &mut [View])
    -> Result<bool>;

    /// Takes shares of keys. True if all are held.
    fn reserve_read(&self, session: u64, keys: &[Key], extra: u32, views: &mut [View]) -> Result<bool>;

    /// Returns shares of keys. True if all were held.
    fn finish_read(&self, session: u64, keys: &[Key], extra: u32, statuses: Option<&mut [i32]>) -> Result<bool>;

    /// Returns shares of chunks by their tokens.
    fn finish_read_tokens(&self, session: u64, tokens: Range<u64>, ranks: Ranks, extra: u32) -> Result<u64>;

    /// Views of held keys.
    fn get_views(&self, session: u64, keys: &[Key], views: &mut [View]) -> Result<bool>;

    /// Marks keys as used.
    fn touch(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool>;

    /// The states of keys in L1, at one instant.
    fn query_keys(&self, space: u64, keys: &[Key], states: &mut [KeyState]) -> Result<()>;

    /// Retains keys at a priority for a time.
    fn retain(
        &self,
        space: u64,
        keys: &[Key],
        priority: u32,
        ttl_ms: u32,
        statuses: Option<&mut [i32]>,
    ) -> Result<bool>;

    /// Drops keys from L1 and from no backend, unless they are in use.
    fn evict(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool>;

    /// Deletes keys everywhere, unless they are in use.
    fn delete(&self, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool>;

    /// Empties L1 of a space's objects, or of all for 0.
    fn clear(&self, space: u64, force: bool) -> Result<(u64, bool)>;

    /// Forgets a space in every tier, or all spaces for 0. How many objects of L1 went.
    fn forget_space(&self, space: u64) -> Result<u64>;

    /// Submits a prefetch. `job` is set before its end can be notified.
    fn submit_prefetch(&self, session: u64, keys: &[Key], request: PrefetchRequest, job: &mut u64) -> Result<()>;

    /// The early answer of a job.
    fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Result<Status>;

    /// The answer of a job.
    fn query_job(&self, job: u64, result: &mut JobResult) -> Result<Status>;

    /// Which keys of a job are held.
    fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Result<Status>;

    /// Every restorable length of a job, the longest first.
    fn query_prefix_lengths(&self, job: u64, lengths: &mut Vec<u32>) -> Result<Status>;

    /// Blocks until a job is done.
    fn wait(&self, job: u64, timeout_ms: u32) -> Result<()>;

    /// Has a job that pauses after its lookup load what it found.
    fn resume_job(&self, job: u64) -> Result<()>;

    /// Cancels a job that is not done.
    fn cancel(&self, job: u64) -> Result<()>;

    /// Cancels a job that is not done, and forgets it.
    fn release_job(&self, job: u64) -> Result<()>;

    /// The descriptor that completions raise.
    fn event_fd(&self) -> i32;

    /// Takes completions, oldest first. Returns how many.
    fn take_completions(&self, completions: &mut [Completion]) -> usize;

    /// Copies events from number `next` on, sets `next` to where to go on, and returns how many there were.
    fn read_events(&self, next: &mut u64, events: &mut [Event]) -> Result<usize>;

    /// Fills in everything but the head.
    fn stats(&self, stats: &mut Stats) -> Result<()>;

    /// The part of L1 that a space takes. Fills in everything but the head.
    fn query_space(&self, space: u64, usage: &mut SpaceUsage) -> Result<()>;

    /// The open spaces by name, those that take most of L1 first; of very many the first 256. JSON. A daemon's client may ask for it only if
    /// it may administer the daemon.
    fn list_spaces(&self) -> Result<String>;

    /// The state of a session: everything but the head.
    fn query_session(&self, session: u64, state: &mut SessionState) -> Result<()>;

    /// The state of every backend, in the order in which they are asked.
    fn query_backends(&self) -> Result<Vec<BackendState>>;

    /// How lookups went in a space, or for 0 in all: everything but the head.
    fn query_misses(&self, space: u64, report: &mut MissReport) -> Result<()>;

    /// How lookups went, in all and in each open space. JSON.
    fn explain_misses(&self) -> Result<String>;

    /// Everything counted, as Prometheus text.
    fn metrics(&self) -> Result<String>;

    /// The tiers that have a key, its holders, and why it cannot be evicted. JSON.
    fn explain_key(&self, space: u64, key: &Key) -> Result<String>;

    /// The objects that a session holds, or for 0 every session that holds some. JSON.
    fn explain_session(&self, session: u64) -> Result<String>;

    /// Sums over the sessions that hold some of L1, and the `most` of them that hold most bytes, without their keys. JSON.
    fn explain_holders(&self, most: u32) -> Result<String>;

    /// Copies the bytes of a view out, as far as `into` is long. The session must hold shares of it meanwhile: else the bytes
    /// may belong to another object.
    fn copy_out(&self, view: &View, into: &mut [u8]) -> Result<()>;

    /// Copies bytes into a view from `reserve_write`, which must not be committed or given back yet: else they may replace
    /// the bytes of another object.
    fn copy_in(&self, view: &View, from: &[u8]) -> Result<()>;

    /// The memory that L1 is in now; none while a daemon is away.
    fn arena(&self) -> Option<Arc<Arena>>;

    /// The memory that a view lies in, if that is this cache's. While the lease is kept, no other object gets it, though the connection
    /// to a daemon be lost.
    fn arena_of(&self, view: &View) -> Option<ArenaLease>;

    /// The queues of completions for its callers.
    fn completions(&self) -> &Arc<Completions>;

    /// Notes a refused call. It is logged later: no line is written inside a call.
    fn note_refusal(&self, _error: &Error) {}

    /// Where its log lines go.
    fn log(&self) -> &Log;

    /// Counts that the driver of a GPU refused to register L1 in this process, for want of lockable memory if `memlock`.
    fn note_unregistered(&self, memlock: bool);

    /// Whether a bug was caught in it.
    fn is_poisoned(&self) -> bool;

    /// A bug was caught: refuse further work.
    fn poison(&self);

    /// Whether the caller is a callback.
    fn on_callback_thread(&self) -> bool;

    /// Ends every wait, because the cache closes: jobs are cancelled, so that waiters return.
    fn wake_waiters(&self);

    /// Closes. Called once, when no other call is in flight.
    fn close(&self);
}

/// Copies the bytes of a view of `arena` out, as far as `into` is long.
pub fn copy_out(arena: &Arena, view: &View, into: &mut [u8]) -> Result<()> {
    let fits = into.len() as u64 <= view.size && arena.copy_out(view.data.cast(), into);
    fits.then_some(()).ok_or_else(|| not_ours(view))
}

/// Copies bytes into a view of `arena`.
pub fn copy_in(arena: &Arena, view: &View, from: &[u8]) -> Result<()> {
    let fits = from.len() as u64 <= view.size && arena.copy_in(view.data.cast(), from);
    fits.then_some(()).ok_or_else(|| not_ours(view))
}

/// The error of a view that is not of this cache, or too short.
pub fn not_ours(view: &View) -> Error {
    Error::invalid(format!(
        "the view of {} bytes (status {}) is not of this cache's L1 or is shorter than what is to be copied: pass a view \
         whose status is OK, as a reservation returned it",
        view.size, view.status
    ))
}
