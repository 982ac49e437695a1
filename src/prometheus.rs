//! Everything counted, by name: as Prometheus text and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use crate::abi::{Histogram, Stats};
use crate::backend_report::BackendReport;
use crate::space_report::SpaceReport;

/// One number of the statistics.
pub struct Metric {
    /// Its name, as in the C header.
    pub name: &'static str,
    /// The help text of Prometheus.
    pub help: &'static str,
    /// Takes the value out of the statistics.
    pub of: fn(&Stats) -> u64,
}

/// One latency of the statistics.
pub struct LatencyMetric {
    /// Its name, as in the C header.
    pub name: &'static str,
    /// Its name in Prometheus text.
    pub metric: &'static str,
    /// The help text of Prometheus.
    pub help: &'static str,
    /// Takes the value out of the statistics.
    pub of: fn(&Stats) -> &Histogram,
}

macro_rules! values {
    ($($name:ident $help:literal),* $(,)?) => {
        &[$(Metric { name: stringify!($name), help: $help, of: |stats| stats.$name }),*]
    };
}

macro_rules! latencies {
    ($($name:ident $metric:literal $help:literal),* $(,)?) => {
        &[$(LatencyMetric { name: stringify!($name), metric: $metric, help: $help, of: |stats| &stats.$name }),*]
    };
}

/// Values that go up and down.
pub const GAUGES: &[Metric] = values! {
    l1_bytes "Size of L1.",
    l1_used_bytes "Bytes of L1 in objects, staging and transfers.",
    l1_locked_bytes "Bytes of L1 that cannot be evicted now.",
    l1_objects "Committed objects in L1.",
    l1_staged "Staged objects in L1.",
    l1_shares "Shares held by all sessions.",
    sessions "Live sessions.",
    jobs "Jobs not yet released.",
    writes_pending "Objects waiting to be written to L2.",
    deletions_pending "Deletions that backends have not answered.",
    writes_pending_max "Most objects that may wait to be written to L2.",
    stores_dropped_recently "Writes given up in the last minute.",
    clients "Clients connected to the daemon.",
    l2_objects "Objects in all backends.",
    l2_bytes "Bytes in all backends.",
    l2_pins "Pins of jobs on objects in all backends.",
    io_uring_refused "Backends fs that use threads because io_uring is refused.",
    huge_pages_refused "1 where pages of L1 were not joined to huge ones.",
    oldest_share_ms "For how long the object has been shared that is shared longest.",
    oldest_write_ms "For how long the oldest pending write has waited.",
    opened_ms "When the cache was opened, since 1970.",
};

/// Values that only grow.
pub const COUNTERS: &[Metric] = values! {
    read_hits "Keys asked for that L1 had.",
    read_misses "Keys asked for that L1 had not.",
    l2_hits "Keys asked for that L1 had not and a backend had.",
    l2_misses "Keys asked for that no tier had.",
    commits "Objects committed.",
    commits_discarded "Commits that found the object there.",
    commits_temporary "Commits of temporary objects.",
    evictions "Objects evicted from L1.",
    evicted_bytes "Bytes evicted from L1.",
    refusals "Reservations refused for want of memory or quota.",
    clients_lost "Clients that went without closing.",
    sessions_reclaimed "Sessions ended by their deadline.",
    shares_revoked "Shares taken after a deadline.",
    jobs_reclaimed "Jobs released by their deadline.",
    jobs_submitted "Jobs accepted.",
    jobs_completed "Jobs completed.",
    jobs_cancelled "Jobs that ended cancelled.",
    prefetch_hit_chunks "Chunks that prefetches found.",
    prefetch_asked_chunks "Chunks that prefetches needed.",
    saved_bytes "Bytes of objects that were found, and need not be computed.",
    saved_tokens "Tokens of chunks that were found, and need not be computed.",
    loads "Objects loaded from L2.",
    loaded_bytes "Bytes loaded from L2.",
    load_failures "Loads that failed.",
    corruptions "Objects found corrupt and quarantined.",
    backend_timeouts "Backend requests that passed their deadline.",
    stores "Objects written to L2.",
    stored_bytes "Bytes written to L2.",
    stores_already "Writes not needed.",
    store_retries "Writes and deletions tried again.",
    stores_dropped "Writes and deletions given up.",
    dropped_queue "Writes given up because too many waited.",
    dropped_evicted "Writes given up because L1 evicted their objects first.",
    dropped_failed "Writes given up because a backend failed or refused them.",
    dropped_fenced "Writes given up because a backend was fenced, failing or gone.",
    dropped_slow "Writes given up because a backend took too long for others.",
    dropped_closed "Writes given up because the cache closed.",
    dropped_deletions "Deletions given up.",
    writes_asked "Writes to backends asked for.",
    writes_withdrawn "Writes not made because their objects were deleted first.",
    l2_evictions "Objects evicted by backends.",
    uses_dropped "Uses that backends were not told of.",
    registrations_refused "Times that a GPU's driver refused to register L1.",
    memlock_refused "Of these, for want of lockable memory (ulimit -l).",
};

/// How long things take.
pub const LATENCIES: &[LatencyMetric] = latencies! {
    lookup_latency "kvkeep_lookup_seconds" "Submit to lookup answer.",
    prefetch_latency "kvkeep_prefetch_seconds" "Submit to completion.",
    load_latency "kvkeep_load_seconds" "One object read from L2.",
    store_latency "kvkeep_store_seconds" "One object written to L2.",
    call_latency "kvkeep_call_seconds" "Calls that a scheduler makes.",
};

/// Why the backends do not keep up with the commits, if so.
pub fn backlog(stats: &Stats) -> Option<String> {
    let Stats { writes_pending: pending, writes_pending_max: most, stores_dropped_recently: dropped, .. } = *stats;
    let remedy = "use a faster disk, a larger L1, or store less";
    if dropped > 0 {
        return Some(format!("L2 does not keep up: {dropped} writes were dropped in the last minute; {remedy}"));
    }
    (pending > most / 2).then(|| format!("L2 does not keep up: {pending} writes wait, at most {most} may; {remedy}"))
}

/// Prometheus text (exposition format 0.0.4).
pub fn prometheus(stats: &Stats) -> String {
    let mut text = String::with_capacity(1 << 14);
    let version = env!("CARGO_PKG_VERSION");
    let _ = write!(
        text,
        "# HELP kvkeep_build_info 1, with the version of the library.\n# TYPE kvkeep_build_info gauge\n\
         kvkeep_build_info{{version=\"{version}\"}} 1\n"
    );
    for (kind, suffix, values) in [("gauge", "", GAUGES), ("counter", "_total", COUNTERS)] {
        for Metric { name, help, of } in values {
            // Times are milliseconds in C, and seconds here.
            let (name, value) = match name.strip_suffix("_ms") {
                Some(name) => (format!("kvkeep_{name}_seconds{suffix}"), (of(stats) as f64 / 1e3).to_string()),
                None => (format!("kvkeep_{name}{suffix}"), of(stats).to_string()),
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    for latency in LATENCIES {
        histogram(&mut text, latency.metric, latency.help, (latency.of)(stats));
    }
    text
}

/// One number of each backend, or of each space.
struct ReportMetric<R> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&R) -> f64,
}

macro_rules! report_metrics {
    ($($name:ident $kind:literal $help:literal $of:expr),* $(,)?) => {
        &[$(ReportMetric { name: stringify!($name), kind: $kind, help: $help, of: $of }),*]
    };
}

const BACKENDS: &[ReportMetric<BackendReport>] = report_metrics! {
    trouble "gauge" "1 while the backend fails or is fenced." |report| u8::from(report.trouble.is_some()).into(),
    open "gauge" "1 while it failed in a row and gets no requests, or one that decides." |report| u8::from(report.open).into(),
    short "gauge" "1 while the medium has less room than the backend's capacity." |report| u8::from(report.short).into(),
    objects "gauge" "Objects in it, where it knows." |report| report.objects as f64,
    bytes "gauge" "Bytes in it, where it knows." |report| report.bytes as f64,
    capacity_bytes "gauge" "Most bytes that it may take; 0 for no bound." |report| report.capacity_bytes as f64,
    writes_pending "gauge" "Writes to it that wait or are under way." |report| report.writes_pending as f64,
    evictions_total "counter" "Objects that it evicted." |report| report.evictions as f64,
    load_latency_seconds "gauge" "Time to the first byte of a load, by its loads of late." |report| report.load_latency_us as f64 / 1e6,
    load_bytes_per_second "gauge" "Rate of a load from then on; 0 where nothing was measured." |report| report.load_bytes_per_s as f64,
    opened_total "counter" "Times that requests failed in a row." |report| report.breaker_opened as f64,
    asked_keys_total "counter" "Keys that prefetches asked it for." |report| report.asked_keys as f64,
    found_keys_total "counter" "Of these, the keys that it had." |report| report.found_keys as f64,
    loads_total "counter" "Objects loaded from it." |report| report.loads as f64,
    loaded_bytes_total "counter" "Their bytes." |report| report.loaded_bytes as f64,
    stores_total "counter" "Objects written to it." |report| report.stores as f64,
    stores_dropped_total "counter" "Writes to it that were dropped." |report| report.stores_dropped as f64,
};

const SPACES: &[ReportMetric<SpaceReport>] = report_metrics! {
    objects "gauge" "Objects of the space in L1." |report| report.objects as f64,
    used_bytes "gauge" "Bytes of the space in L1." |report| report.used_bytes as f64,
    quota_bytes "gauge" "Most bytes of the space in L1; 0 for no bound." |report| report.quota_bytes as f64,
};

/// Prometheus text about each backend, to follow that of the statistics.
pub fn backends(reports: &[BackendReport]) -> String {
    let labels = |report: &BackendReport| format!("backend=\"{}\",scheme=\"{}\"", report.backend, report.scheme);
    report_text("backend", BACKENDS, reports, labels)
}

/// Prometheus text about each space, to follow that of the backends.
pub fn spaces(reports: &[SpaceReport]) -> String {
    report_text("space", SPACES, reports, |report| {
        let [model, layout, tenant] = [&report.model, &report.layout, &report.tenant].map(|name| escaped(name));
        let SpaceReport { space, generation, chunk_tokens, .. } = report;
        format!(
            "space=\"{space}\",model=\"{model}\",layout=\"{layout}\",tenant=\"{tenant}\",generation=\"{generation}\",\
             chunk_tokens=\"{chunk_tokens}\""
        )
    })
}

fn report_text<R>(what: &str, metrics: &[ReportMetric<R>], reports: &[R], labels: impl Fn(&R) -> String) -> String {
    let mut text = String::new();
    let labelled: Vec<(&R, String)> = reports.iter().map(|report| (report, labels(report))).collect();
    for ReportMetric { name, kind, help, of } in metrics.iter().filter(|_| !reports.is_empty()) {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP kvkeep_{what}_{name} {help}\n# TYPE kvkeep_{what}_{name} {kind}\n");
        for (report, labels) in &labelled {
            let _ = writeln!(text, "kvkeep_{what}_{name}{{{labels}}} {}", of(report));
        }
    }
    text
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// One JSON object, by the names of the C header.
pub fn json(stats: &Stats) -> Json {
    let numbers = GAUGES.iter().chain(COUNTERS).map(|value| (value.name.to_owned(), json!((value.of)(stats))));
    let latencies = LATENCIES.iter().map(|latency| {
        let Histogram { count, sum_us, buckets } = (latency.of)(stats);
        (latency.name.to_owned(), json!({"count": count, "sum_us": sum_us, "buckets": buckets}))
    });
    Json::Object(numbers.chain(latencies).collect::<Map<String, Json>>())
}

fn histogram(text: &mut String, name: &str, help: &str, histogram: &Histogram) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
    let mut sum = 0;
    let last = histogram.buckets.len() - 1;
    for (i, count) in histogram.buckets[..last].iter().enumerate() {
        sum += count;
        let bound = (1u64 << i) as f64 / 1e6;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
    }
    let (count, seconds) = (histogram.count, histogram.sum_us as f64 / 1e6);
    let _ = write!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}\n");
}
