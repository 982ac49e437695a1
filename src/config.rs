//! The options of a node, a space and a job, already checked.

use std::sync::Arc;
use std::time::Duration;

use crate::abi::{Completion, JobResult};
use crate::error::{Error, Result};
use crate::l2::encrypted::KeyCallback;
use crate::log::Log;
use crate::space_names::SpaceNames;

/// When a committed object is written to L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreMode {
    /// At once after its commit.
    WriteThrough,
    /// When background eviction chooses it.
    WriteBack,
    /// After so many reads.
    AfterUses(u32),
    /// No object is written.
    Never,
}

/// How a node is opened.
pub struct NodeConfig {
    /// Size of L1 in bytes.
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
    /// URLs of the backends, in the order in which they are asked.
    pub backend_urls: Vec<String>,
    /// Most live sessions at once.
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
    /// How long a reservation waits before L1 evicts unwritten objects.
    pub store_wait: Duration,
    /// The run of the daemon, 0 embedded: the upper 16 bits of the numbers of sessions and jobs, so that those of two runs differ.
    pub boot: u16,
    /// Where log lines go.
    pub log: Log,
    /// Where the keys of backends come from that the host program has.
    pub key_callback: KeyCallback,
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
            key_callback: KeyCallback::default(),
        }
    }
}

/// The identity of a space, and its bounds.
#[derive(Clone, Debug)]
pub struct SpaceSpec {
    /// The name of the model.
    pub model: String,
    /// Everything that the bytes depend on besides the model: quantisation, layout, parallelism.
    pub layout: String,
    /// Salt of the tenant.
    pub tenant: String,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Most bytes of L1, 0 for no bound.
    pub quota_bytes: u64,
    /// The number of the model's weights, if the same name has had several: 0 for the first.
    pub generation: u64,
}

/// Longest text of a space's identity, in bytes: a list of layers fits, and a file with all of them is read whole.
pub const SPACE_TEXT_BYTES_MAX: usize = 8192;

impl SpaceSpec {
    /// Refuses texts that are too long to be kept for each space.
    pub fn check(&self) -> Result<()> {
        for (name, text) in [("model", &self.model), ("layout", &self.layout), ("tenant", &self.tenant)] {
            if text.len() > SPACE_TEXT_BYTES_MAX {
                let bytes = text.len();
                return Err(Error::invalid(format!(
                    "{name} has {bytes} bytes, it may have {SPACE_TEXT_BYTES_MAX}: shorten it, or pass a hash of it"
                )));
            }
        }
        Ok(())
    }

    /// Its names.
    pub fn names(&self) -> SpaceNames {
        let SpaceSpec { model, layout, tenant, chunk_tokens, generation, .. } = self.clone();
        SpaceNames { model, layout, tenant, chunk_tokens, generation }
    }
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
    /// The number of the group.
    pub group: u32,
    /// The hit rule of the group: prefix or window.
    pub mode: Mode,
}

/// The effect of a job's deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// The job ends with the chunks that are loaded.
    BestEffort,
    /// The job goes on.
    Wait,
    /// The job fails with TIMEOUT.
    Deadline,
}

/// A callback, run once.
pub struct Callback(pub Box<dyn FnOnce(&Completion) + Send + Sync>);

/// Follows one job to its end. Called under the job's lock: it must neither block nor call into the cache.
pub trait JobObserver: Send + Sync {
    /// The lookup's answer is known. Not called in a client of a daemon.
    fn looked_up(&self, _chunks: u32) {}
    /// The job is done and holds the keys marked in `held` (which may go on unmarked). Called once.
    fn done(&self, result: &JobResult, held: &[bool]);
    /// The job is forgotten; it was done before. Not called in a client of a daemon.
    fn released(&self) {}
}

/// How a job reports its end.
#[derive(Default)]
pub enum Notify {
    /// Not at all: the caller polls.
    #[default]
    Poll,
    /// By the event descriptor; the caller takes the completion.
    EventFd,
    /// By a callback on the callback thread.
    Callback(Callback),
    /// By an observer, on the thread that ends the job.
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
    /// The hit rule of all groups but the exceptions.
    pub mode: Mode,
    /// Groups with a rule of their own.
    pub group_rules: Vec<GroupRule>,
    /// The effect of the deadline.
    pub policy: Policy,
    /// From submit; the session's timeout if none.
    pub deadline: Option<Duration>,
    /// How long missing chunks are asked for again.
    pub lookup_timeout: Duration,
    /// Pause between two lookups.
    pub lookup_interval: Duration,
    /// Loaded objects are dropped with their last share.
    pub temporary: bool,
    /// Jobs of higher priority load first.
    pub priority: i32,
    /// Nothing is loaded before the caller resumes the job.
    pub pause_after_lookup: bool,
    /// How the lookup's answer is reported.
    pub lookup_notify: Notify,
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
            pause_after_lookup: false,
            lookup_notify: Notify::Poll,
            notify: Notify::Poll,
        }
    }
}
