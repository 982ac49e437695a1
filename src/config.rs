//! What a node, a space and a job are made from, already checked.

use std::sync::Arc;
use std::time::Duration;

use crate::abi::{Completion, JobResult};
use crate::log::Log;

/// When a committed object is written to L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreMode {
    /// After its commit.
    WriteThrough,
    /// When background eviction chooses it.
    WriteBack,
    /// After so many reads.
    AfterUses(u32),
    /// Never.
    Never,
}

/// How a node is opened.
pub struct NodeConfig {
    /// Size of L1.
    pub l1_bytes: u64,
    /// Back L1 with reserved huge pages.
    pub huge_pages: bool,
    /// Bind L1 to this node.
    pub numa_node: Option<u32>,
    /// Touch L1's pages in the background.
    pub prefault: bool,
    /// Make and verify checksums of L2 objects.
    pub checksum: bool,
    /// Name of the eviction policy of L1.
    pub eviction_policy: String,
    /// Background eviction starts above this share of L1.
    pub watermark_high_percent: u32,
    /// Background eviction stops at this share.
    pub watermark_low_percent: u32,
    /// When objects are written to L2.
    pub store_mode: StoreMode,
    /// Backends in order.
    pub backend_urls: Vec<String>,
    /// Most live sessions.
    pub sessions_max: u32,
    /// Most jobs not yet released.
    pub jobs_max: u32,
    /// Most objects waiting to be written.
    pub writes_pending_max: u32,
    /// Default deadline of sessions.
    pub session_timeout: Duration,
    /// Deadline of one backend request.
    pub backend_timeout: Duration,
    /// Most bytes being loaded at once, 0 for a quarter of L1 and at most 1 GiB.
    pub loading_bytes_max: u64,
    /// How long a reservation waits before L1 evicts what is still to be written.
    pub store_wait: Duration,
    /// The run of the daemon, 0 embedded: the upper 16 bits of the numbers of sessions and jobs, so that those of two runs differ.
    pub boot: u16,
    /// Where log lines go.
    pub log: Log,
}

impl NodeConfig {
    /// All defaults, with an L1 of `l1_bytes`.
    pub fn new(l1_bytes: u64) -> NodeConfig {
        NodeConfig {
            l1_bytes,
            huge_pages: false,
            numa_node: None,
            prefault: true,
            checksum: true,
            eviction_policy: "lru".to_owned(),
            watermark_high_percent: 80,
            watermark_low_percent: 60,
            store_mode: StoreMode::WriteThrough,
            backend_urls: Vec::new(),
            sessions_max: 1 << 16,
            jobs_max: 1 << 16,
            writes_pending_max: 1 << 16,
            session_timeout: Duration::from_secs(300),
            backend_timeout: Duration::from_secs(30),
            loading_bytes_max: 0,
            store_wait: Duration::ZERO,
            boot: 0,
            log: Log::none(),
        }
    }
}

/// What a space is.
#[derive(Clone, Debug)]
pub struct SpaceSpec {
    /// The model.
    pub model: String,
    /// What the bytes depend on besides it.
    pub layout: String,
    /// Salt of the tenant.
    pub tenant: String,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Most bytes of L1, 0 for no bound.
    pub quota_bytes: u64,
    /// Which weights of those that the model's name has had, 0 for the first.
    pub generation: u64,
}

/// Which chunks count as hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The longest run from the first chunk.
    Prefix,
    /// The longest length whose last chunks, so many, are there.
    Window(u32),
    /// Each chunk for itself.
    Any,
}

/// How the objects of one group count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupRule {
    /// The group.
    pub group: u32,
    /// Prefix or window.
    pub mode: Mode,
}

/// What a job's deadline does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Ends it with what is loaded.
    BestEffort,
    /// Nothing.
    Wait,
    /// Fails it.
    Deadline,
}

/// A callback, run once.
pub struct Callback(pub Box<dyn FnOnce(&Completion) + Send + Sync>);

/// Follows one job to its end. Called under the job's lock: it must neither block nor call into the cache.
pub trait JobObserver: Send + Sync {
    /// The lookup's answer is known. A daemon's client is not told.
    fn looked_up(&self, _chunks: u32) {}
    /// The job is done and holds the keys marked in `held` (which may go on unmarked). Called once.
    fn done(&self, result: &JobResult, held: &[bool]);
    /// The job is forgotten; it was done before. A daemon's client is not told.
    fn released(&self) {}
}

/// How a job reports its end.
#[derive(Default)]
pub enum Notify {
    /// By being asked.
    #[default]
    Poll,
    /// By the event descriptor and drain.
    EventFd,
    /// By a callback.
    Callback(Callback),
    /// By an observer.
    Observer(Arc<dyn JobObserver>),
}

impl Notify {
    /// Whether the completion waits in a queue until its caller takes it.
    pub fn is_queued(&self) -> bool {
        matches!(self, Notify::EventFd | Notify::Callback(_))
    }
}

/// How a prefetch is done.
pub struct PrefetchRequest {
    /// Each key found is held by one share more than this.
    pub extra_count: u32,
    /// Objects of one chunk.
    pub objects_per_chunk: u32,
    /// Which chunks count.
    pub mode: Mode,
    /// Exceptions by group.
    pub group_rules: Vec<GroupRule>,
    /// What the deadline does.
    pub policy: Policy,
    /// From submit; the session's timeout if none.
    pub deadline: Option<Duration>,
    /// How long missing chunks are asked for again.
    pub lookup_timeout: Duration,
    /// Pause between two askings.
    pub lookup_interval: Duration,
    /// Loaded objects are dropped with their last share.
    pub temporary: bool,
    /// Higher loads first.
    pub priority: i32,
    /// How the end is reported.
    pub notify: Notify,
}

impl Default for PrefetchRequest {
    fn default() -> PrefetchRequest {
        PrefetchRequest {
            extra_count: 0,
            objects_per_chunk: 1,
            mode: Mode::Prefix,
            group_rules: Vec::new(),
            policy: Policy::BestEffort,
            deadline: None,
            lookup_timeout: Duration::ZERO,
            lookup_interval: Duration::from_millis(10),
            temporary: false,
            priority: 0,
            notify: Notify::Poll,
        }
    }
}
