//! Option structs of C into the configuration of the floors below; every value is checked here.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use super::options::{
    KVKEEP_FLAG_HUGE_PAGES, KVKEEP_FLAG_L1_PERCENT, KVKEEP_FLAG_NO_CHECKSUM, KVKEEP_FLAG_NO_PREFAULT,
    KVKEEP_FLAG_NUMA_NODE, KVKEEP_FLAG_READ_ONLY, kvkeep_callback, kvkeep_key_callback, kvkeep_log_callback,
    kvkeep_options, kvkeep_part, kvkeep_pool_options, kvkeep_prefetch_options, kvkeep_session_options,
    kvkeep_space_options, kvkeep_subject, kvkeep_transfer_options,
};
use super::pointers::input;
use super::text;
use super::versioned::input_elements;
use crate::abi::{Completion, KVKEEP_EXTRA_COUNT_MAX};
use crate::call_errors::Subject;
use crate::config::{Callback, GroupRule, Mode, NodeConfig, Notify, Policy, PrefetchRequest, SpaceSpec, StoreMode};
use crate::daemon::client::{Client, ClientConfig};
use crate::daemon::service::{Service, ServiceOptions};
use crate::error::{Error, Result};
use crate::l2::encrypted::KeyCallback;
use crate::log::{Log, LogLevel};
use crate::memory_bounds::MemoryBounds;
use crate::node::Node;
use crate::open_cache::OpenCache;
use crate::transfer::cpu_copy::Promise;
use crate::transfer::layout::{SEGMENTS_MAX, Segment};
use crate::transfer::{PoolSpec, TransferRequest};

fn choice(value: u32, most: u32, name: &str) -> Result<u32> {
    if value <= most {
        Ok(value)
    } else {
        Err(Error::invalid(format!("{name} is {value}, it must be 0 to {most}: use a constant of the header")))
    }
}

fn zero(value: impl Into<u64>, name: &str) -> Result<()> {
    match value.into() {
        0 => Ok(()),
        value => Err(Error::invalid(format!("{name} is {value}, it must be 0: prepare the struct with KVKEEP_INIT"))),
    }
}

fn all_zero<T: Copy + Into<u64>>(values: &[T], name: &str) -> Result<()> {
    values.iter().try_for_each(|&value| zero(value, name))
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

fn millis(value: u32, default: u32) -> Duration {
    Duration::from_millis(u64::from(or(value, default)))
}

/// A pointer that is only ever given back.
#[derive(Clone, Copy)]
struct Userdata(*mut c_void);

// SAFETY: never dereferenced here; the header says which threads the callback runs on.
unsafe impl Send for Userdata {}
// SAFETY: as above.
unsafe impl Sync for Userdata {}

impl Userdata {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

fn log(callback: kvkeep_log_callback, userdata: *mut c_void, level: u32) -> Result<Log> {
    let level = match level {
        0 | 2 => LogLevel::Warn,
        1 => LogLevel::Error,
        3 => LogLevel::Info,
        _ => return Err(Error::invalid(format!("log_level is {level}, it must be 0 to 3: use a kvkeep_log_level"))),
    };
    let Some(callback) = callback else { return Ok(Log::none()) };
    let userdata = Userdata(userdata);
    Ok(Log::new(level, move |level: LogLevel, message: &str| {
        let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the caller promises a function of this signature; the text outlives the call.
        unsafe { callback(userdata.get(), level as i32, message.as_ptr()) }
    }))
}

fn key_callback(callback: kvkeep_key_callback, userdata: *mut c_void) -> KeyCallback {
    let Some(callback) = callback else { return KeyCallback::default() };
    let userdata = Userdata(userdata);
    KeyCallback::new(move |name: &CStr, number, key: &mut [u8; 32]| {
        // SAFETY: the caller promises a function of this signature; the name and the key's memory outlive the call.
        unsafe { callback(userdata.get(), name.as_ptr(), number, key.as_mut_ptr()) }
    })
}

fn urls(first: *const *const c_char, count: usize) -> Result<Vec<String>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    input(first, count, "backend_urls")?
        .iter()
        .map(|&url| text::utf8(url, "backend_urls[i]").map(String::from))
        .collect()
}

/// Opens the cache that `options` describe.
pub fn open(options: &kvkeep_options) -> Result<OpenCache> {
    zero(options.reserved, "reserved")?;
    match (text::utf8_or(options.connect, "", "connect")?, text::utf8_or(options.listen, "", "listen")?) {
        ("", "") => Ok(OpenCache::new(node(options, 0)?)),
        ("", listen) => served(options, listen),
        (url, _) => Ok(OpenCache::new(client(options, url)?)),
    }
}

/// Opens a cache in this process that others connect to.
fn served(options: &kvkeep_options, listen: &str) -> Result<OpenCache> {
    // The socket's lock gives this run its number.
    let (lock_file, service) = ServiceOptions::of_url(listen)?;
    let node = node(options, lock_file.boot)?;
    let opened = OpenCache::new(node.clone());
    Ok(opened.served_by(move || Service::start(&node, lock_file, service, &node.log)))
}

/// Fails for the first option that a client sets but only the daemon can choose.
fn only_connects(options: &kvkeep_options) -> Result<()> {
    let allowed = KVKEEP_FLAG_NO_PREFAULT | KVKEEP_FLAG_READ_ONLY;
    let set = [
        ("l1_bytes", options.l1_bytes != 0),
        ("flags", options.flags & !allowed != 0),
        ("numa_node", options.numa_node != 0),
        ("eviction_policy", !options.eviction_policy.is_null()),
        ("watermark_high_percent", options.watermark_high_percent != 0),
        ("watermark_low_percent", options.watermark_low_percent != 0),
        ("store_mode", options.store_mode != 0),
        ("store_after_uses", options.store_after_uses != 0),
        ("backend_count", options.backend_count != 0),
        ("sessions_max", options.sessions_max != 0),
        ("jobs_max", options.jobs_max != 0),
        ("writes_pending_max", options.writes_pending_max != 0),
        ("backend_timeout_ms", options.backend_timeout_ms != 0),
        ("loading_bytes_max", options.loading_bytes_max != 0),
        ("listen", !options.listen.is_null()),
        ("key_callback", options.key_callback.is_some()),
    ];
    match set.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(Error::invalid(format!(
            "{name} is set, but with connect it is the daemon's to choose: leave it 0 here and give it to kvkeep serve"
        ))),
        None => Ok(()),
    }
}

fn client(options: &kvkeep_options, url: &str) -> Result<Arc<Client>> {
    only_connects(options)?;
    let timeout = Duration::from_millis(u64::from(options.session_timeout_ms));
    Client::open(ClientConfig {
        read_only: options.flags & KVKEEP_FLAG_READ_ONLY != 0,
        prefault: options.flags & KVKEEP_FLAG_NO_PREFAULT == 0,
        session_timeout: (!timeout.is_zero()).then_some(timeout),
        store_wait: (options.store_wait_ms > 0).then(|| Duration::from_millis(options.store_wait_ms.into())),
        log: log(options.log, options.log_userdata, options.log_level)?,
        ..ClientConfig::new(url)?
    })
}

fn l1_bytes(options: &kvkeep_options, huge_pages: bool) -> Result<u64> {
    if options.flags & KVKEEP_FLAG_L1_PERCENT == 0 {
        return Ok(options.l1_bytes);
    }
    MemoryBounds::of_process(huge_pages).percent(u32::try_from(options.l1_bytes).unwrap_or(u32::MAX))
}

fn node(options: &kvkeep_options, boot: u16) -> Result<Arc<Node>> {
    let known = KVKEEP_FLAG_HUGE_PAGES
        | KVKEEP_FLAG_NUMA_NODE
        | KVKEEP_FLAG_NO_PREFAULT
        | KVKEEP_FLAG_NO_CHECKSUM
        | KVKEEP_FLAG_L1_PERCENT;
    if options.flags & !known != 0 {
        return Err(Error::invalid(format!(
            "flags has unknown bits 0x{:x}: or KVKEEP_FLAG_ constants",
            options.flags & !known
        )));
    }
    let high = or(options.watermark_high_percent, 80);
    let low = or(options.watermark_low_percent, 60.min(high));
    if high > 100 || low > high {
        return Err(Error::invalid(format!(
            "watermarks are {high} and {low} percent: the high one must be at most 100 and the low one not above it"
        )));
    }
    let store_mode = match choice(options.store_mode, 3, "store_mode")? {
        0 => StoreMode::WriteThrough,
        1 => StoreMode::WriteBack,
        2 => StoreMode::AfterUses(or(options.store_after_uses, 2)),
        _ => StoreMode::Never,
    };
    let huge_pages = options.flags & KVKEEP_FLAG_HUGE_PAGES != 0;
    Node::open(NodeConfig {
        l1_bytes: l1_bytes(options, huge_pages)?,
        huge_pages,
        numa_node: (options.flags & KVKEEP_FLAG_NUMA_NODE != 0).then_some(options.numa_node),
        prefault: options.flags & KVKEEP_FLAG_NO_PREFAULT == 0,
        checksum: options.flags & KVKEEP_FLAG_NO_CHECKSUM == 0,
        eviction_policy: text::utf8_or(options.eviction_policy, "lru", "eviction_policy")?.to_owned(),
        watermark_high_percent: high,
        watermark_low_percent: low,
        store_mode,
        backend_urls: urls(options.backend_urls, options.backend_count)?,
        sessions_max: or(options.sessions_max, 1 << 16),
        jobs_max: or(options.jobs_max, 1 << 16),
        writes_pending_max: or(options.writes_pending_max, 1 << 16),
        session_timeout: millis(options.session_timeout_ms, 300_000),
        backend_timeout: millis(options.backend_timeout_ms, 30_000),
        store_wait: Duration::from_millis(options.store_wait_ms.into()),
        loading_bytes_max: options.loading_bytes_max,
        boot,
        key_callback: key_callback(options.key_callback, options.key_userdata),
        log: log(options.log, options.log_userdata, options.log_level)?,
    })
}

/// What a failed call named.
pub fn subject(subject: u32, number: u64) -> Result<Subject> {
    match choice(subject, kvkeep_subject::KVKEEP_SUBJECT_SPACE as u32, "subject")? {
        0 if number == 0 => Ok(Subject::Cache),
        0 => Err(Error::invalid(format!(
            "number is {number}, but a cache has none: pass 0, or the subject it is the number of"
        ))),
        1 => Ok(Subject::Session(number)),
        2 => Ok(Subject::Job(number)),
        3 => Ok(Subject::Pool(number)),
        4 => Ok(Subject::Backend(number)),
        _ => Ok(Subject::Space(number)),
    }
}

/// The space that `options` describe.
pub fn space(options: &kvkeep_space_options) -> Result<SpaceSpec> {
    zero(options.reserved, "reserved")?;
    let model = text::utf8(options.model, "model")?;
    if model.is_empty() {
        return Err(Error::invalid("model is empty: name the model, so that its objects never meet another's"));
    }
    Ok(SpaceSpec {
        generation: options.generation,
        model: model.to_owned(),
        layout: text::utf8_or(options.layout, "", "layout")?.to_owned(),
        tenant: text::utf8_or(options.tenant, "", "tenant")?.to_owned(),
        chunk_tokens: or(options.chunk_tokens, 256),
        quota_bytes: options.quota_bytes,
    })
}

/// Request id and timeout (if it has one of its own) of a session.
pub fn session(options: &kvkeep_session_options) -> Result<(&str, Option<Duration>)> {
    zero(options.reserved, "reserved")?;
    let request_id = text::utf8_or(options.request_id, "", "request_id")?;
    if request_id.len() > 255 {
        return Err(Error::invalid(format!("request_id has {} bytes, it may have 255: shorten it", request_id.len())));
    }
    let timeout = Duration::from_millis(u64::from(options.timeout_ms));
    Ok((request_id, (options.timeout_ms != 0).then_some(timeout)))
}

fn group_rules(options: &kvkeep_prefetch_options) -> Result<Vec<GroupRule>> {
    let count = options.group_rule_count;
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > 64 {
        return Err(Error::invalid(format!(
            "group_rule_count is {count}, it may be 64: merge groups that are cached alike"
        )));
    }
    let rules = input_elements(options.group_rules, count, options.struct_size, "group_rules")?;
    rules
        .iter()
        .map(|rule| {
            all_zero(&rule.reserved, "group_rules[i].reserved")?;
            let mode = match choice(rule.mode, 1, "group_rules[i].mode")? {
                0 => Mode::Prefix,
                _ => Mode::Window(window(rule.window_chunks, "group_rules[i].window_chunks")?),
            };
            Ok(GroupRule { group: rule.group, mode })
        })
        .collect()
}

fn window(chunks: u32, name: &str) -> Result<u32> {
    if chunks == 0 { Err(Error::invalid(format!("{name} is 0: a window has at least one chunk"))) } else { Ok(chunks) }
}

/// How a job reports its end.
fn notify(way: u32, callback: kvkeep_callback, userdata: *mut c_void) -> Result<Notify> {
    Ok(match (choice(way, 1, "notify")?, callback) {
        (0, None) => Notify::Poll,
        (0, Some(callback)) => {
            let userdata = Userdata(userdata);
            Notify::Callback(Callback(Box::new(move |completion: &Completion| {
                // SAFETY: the caller promises a function of this signature; the completion outlives the call.
                unsafe { callback(userdata.get(), completion) }
            })))
        }
        (_, None) => Notify::EventFd,
        (_, Some(_)) => {
            return Err(Error::invalid(
                "both a callback and KVKEEP_NOTIFY_EVENT_FD are given: choose one way to be told",
            ));
        }
    })
}

/// The job that `options` describe.
pub fn prefetch(
    options: &kvkeep_prefetch_options,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Result<PrefetchRequest> {
    all_zero(&options.reserved, "reserved")?;
    let mode = match choice(options.mode, 2, "mode")? {
        0 => Mode::Prefix,
        1 => Mode::Window(window(options.window_chunks, "window_chunks")?),
        _ => Mode::Any,
    };
    let group_rules = group_rules(options)?;
    if mode == Mode::Any && !group_rules.is_empty() {
        return Err(Error::invalid("group_rules are for jobs that look for a length: use mode PREFIX or WINDOW"));
    }
    // Made twice and not shared: each completion takes its own.
    let lookup_notify = match flag(options.notify_lookup, "notify_lookup")? {
        true => notify(options.notify, callback, userdata)?,
        false => Notify::Poll,
    };
    let notify = notify(options.notify, callback, userdata)?;
    if options.notify_lookup != 0 && !notify.is_queued() {
        return Err(Error::invalid(
            "notify_lookup is 1 without a way to report: pass a callback, or KVKEEP_NOTIFY_EVENT_FD",
        ));
    }
    Ok(PrefetchRequest {
        extra_count: checked_extra_count(options.extra_count)?,
        objects_per_chunk: or(options.objects_per_chunk, 1),
        mode,
        group_rules,
        policy: match choice(options.policy, 2, "policy")? {
            0 => Policy::BestEffort,
            1 => Policy::Wait,
            _ => Policy::Deadline,
        },
        deadline: (options.deadline_ms != 0).then(|| millis(options.deadline_ms, 1)),
        lookup_timeout: Duration::from_millis(u64::from(options.lookup_timeout_ms)),
        lookup_interval: millis(options.lookup_interval_ms, 10),
        temporary: flag(options.lifetime, "lifetime")?,
        priority: options.priority,
        pause_after_lookup: flag(options.pause_after_lookup, "pause_after_lookup")?,
        lookup_notify,
        notify,
    })
}

/// The pool that `options` describe.
pub fn pool(options: &kvkeep_pool_options) -> Result<PoolSpec> {
    if options.segment_count > SEGMENTS_MAX {
        return Err(Error::invalid(format!(
            "segment_count is {}, it may be {SEGMENTS_MAX}: pass one segment for each tensor of pages",
            options.segment_count
        )));
    }
    zero(options.reserved, "reserved")?;
    let segments = input_elements(options.segments, options.segment_count, options.struct_size, "segments")?;
    segments.iter().try_for_each(|segment| all_zero(&segment.reserved, "segments[i].reserved"))?;
    let parts = if options.parts.is_null() { &[][..] } else { input(options.parts, options.segment_count, "parts")? };
    let segments = segments.iter().enumerate().map(|(i, segment)| Segment {
        address: segment.address,
        block_bytes: segment.block_bytes,
        block_stride: if segment.block_stride == 0 { segment.block_bytes } else { segment.block_stride },
        group: segment.group,
        layer: segment.layer,
        part: parts.get(i).copied().unwrap_or(kvkeep_part::KVKEEP_PART_UNSAID as u32),
    });
    Ok(PoolSpec {
        device: options.device,
        rank: options.rank,
        blocks: options.block_count,
        blocks_per_chunk: or(options.blocks_per_chunk, 1),
        segments: segments.collect(),
        // SAFETY: that the pages are there until the pool is closed is what the header asks of the caller.
        promise: unsafe { Promise::given() },
    })
}

/// The load that `options` describe.
pub fn load(
    options: &kvkeep_transfer_options,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Result<TransferRequest> {
    zero(options.reserved, "reserved")?;
    Ok(TransferRequest {
        stream: options.stream,
        skip_first_tokens: options.skip_first_tokens,
        return_shares: flag(options.return_shares, "return_shares")?,
        temporary: flag(options.lifetime, "lifetime")?,
        priority: options.priority,
        notify: notify(options.notify, callback, userdata)?,
    })
}

/// The store that `options` describe.
pub fn store(
    options: &kvkeep_transfer_options,
    callback: kvkeep_callback,
    userdata: *mut c_void,
) -> Result<TransferRequest> {
    for (name, value) in [
        ("skip_first_tokens", options.skip_first_tokens),
        ("return_shares", options.return_shares),
        ("priority", options.priority as u32),
    ] {
        zero(value, name)?;
    }
    load(options, callback, userdata)
}

/// The extra_count that every share operation takes.
pub(super) fn checked_extra_count(extra_count: i32) -> Result<u32> {
    match u32::try_from(extra_count) {
        Ok(extra) if extra_count <= KVKEEP_EXTRA_COUNT_MAX => Ok(extra),
        _ => Err(Error::invalid(format!(
            "extra_count is {extra_count}, it must be 0 to {KVKEEP_EXTRA_COUNT_MAX}: pass the number of readers less one"
        ))),
    }
}

/// A choice between two, as C passes it.
pub(super) fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::invalid(format!("{name} is {value}, it must be 0 or 1: see the header for what they mean"))),
    }
}
