//! The node seen from outside: statistics, Prometheus text, and why a key is where it is (P12).

use std::fmt::Write;

use serde_json::json;

use crate::error::Result;
use crate::key::{Key, ObjectKey};
use crate::l2::Found;
use crate::node::Node;
use crate::types::{Histogram, Stats};

impl Node {
    /// Fills in everything but the head.
    pub fn stats(&self, stats: &mut Stats) {
        let (counts, gauges) = self.l1.gauges();
        let meters = &self.meters;
        let usage = self
            .tiers
            .list()
            .iter()
            .map(|tier| tier.backend.usage())
            .fold((0, 0, 0), |sum, usage| (sum.0 + usage.objects, sum.1 + usage.bytes, sum.2 + usage.evicted));
        *stats = Stats {
            struct_size: stats.struct_size,
            abi_version: stats.abi_version,
            l1_bytes: gauges.capacity_bytes,
            l1_used_bytes: gauges.used_bytes,
            l1_locked_bytes: gauges.locked_bytes,
            l1_objects: gauges.objects,
            l1_staged: gauges.staged,
            l1_shares: gauges.shares,
            sessions: gauges.sessions,
            jobs: self.prefetcher.count() as u64,
            writes_pending: self.writer.pending(),
            read_hits: counts.read_hits,
            read_misses: counts.read_misses,
            commits: counts.commits,
            commits_discarded: counts.commits_discarded,
            evictions: counts.evictions,
            evicted_bytes: counts.evicted_bytes,
            refusals: counts.refusals,
            sessions_reclaimed: counts.sessions_reclaimed,
            shares_revoked: counts.shares_revoked,
            jobs_reclaimed: meters.jobs_reclaimed.get(),
            clients: meters.clients.get(),
            clients_lost: meters.clients_lost.get(),
            jobs_submitted: meters.jobs_submitted.get(),
            jobs_completed: meters.jobs_completed.get(),
            jobs_cancelled: meters.jobs_cancelled.get(),
            prefetch_hit_chunks: meters.prefetch_hit_chunks.get(),
            prefetch_asked_chunks: meters.prefetch_asked_chunks.get(),
            loads: meters.loads.get(),
            loaded_bytes: meters.loaded_bytes.get(),
            load_failures: meters.load_failures.get(),
            corruptions: meters.corruptions.get(),
            backend_timeouts: meters.backend_timeouts.get(),
            stores: meters.stores.get(),
            stored_bytes: meters.stored_bytes.get(),
            stores_already: meters.stores_already.get(),
            store_retries: meters.store_retries.get(),
            stores_dropped: meters.stores_dropped.get() + counts.writes_dropped,
            l2_objects: usage.0,
            l2_bytes: usage.1,
            l2_evictions: usage.2,
            lookup_latency: meters.lookup_latency.get(),
            prefetch_latency: meters.prefetch_latency.get(),
            load_latency: meters.load_latency.get(),
            store_latency: meters.store_latency.get(),
            call_latency: meters.call_latency.get(),
        };
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let mut stats = Stats::default();
        self.stats(&mut stats);
        let mut text = String::with_capacity(8192);
        macro_rules! values {
            ($kind:literal, $suffix:literal: $($name:ident $help:literal),* $(,)?) => {
                $(value(&mut text, concat!("kvkeep_", stringify!($name), $suffix), $kind, $help, stats.$name);)*
            };
        }
        values! { "gauge", "":
            l1_bytes "Size of L1.",
            l1_used_bytes "Bytes of L1 in objects, staging and transfers.",
            l1_locked_bytes "Bytes of L1 that cannot be evicted now.",
            l1_objects "Committed objects in L1.",
            l1_staged "Staged objects in L1.",
            l1_shares "Shares held by all sessions.",
            sessions "Live sessions.",
            jobs "Jobs not yet released.",
            writes_pending "Objects waiting to be written to L2.",
            clients "Clients connected to the daemon.",
            l2_objects "Objects in all backends.",
            l2_bytes "Bytes in all backends.",
        }
        values! { "counter", "_total":
            read_hits "Keys reserved for reading that were there.",
            read_misses "Keys reserved for reading that were not.",
            commits "Objects committed.",
            commits_discarded "Commits that found the object there.",
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
            prefetch_asked_chunks "Chunks that prefetches asked for.",
            loads "Objects loaded from L2.",
            loaded_bytes "Bytes loaded from L2.",
            load_failures "Loads that failed.",
            corruptions "Objects found corrupt and quarantined.",
            backend_timeouts "Backend requests that passed their deadline.",
            stores "Objects written to L2.",
            stored_bytes "Bytes written to L2.",
            stores_already "Writes not needed.",
            store_retries "Writes tried again.",
            stores_dropped "Writes given up.",
            l2_evictions "Objects evicted by backends.",
        }
        histogram(&mut text, "kvkeep_lookup_seconds", "Submit to lookup answer.", &stats.lookup_latency);
        histogram(&mut text, "kvkeep_prefetch_seconds", "Submit to completion.", &stats.prefetch_latency);
        histogram(&mut text, "kvkeep_load_seconds", "One object read from L2.", &stats.load_latency);
        histogram(&mut text, "kvkeep_store_seconds", "One object written to L2.", &stats.store_latency);
        histogram(&mut text, "kvkeep_call_seconds", "Calls that a scheduler makes.", &stats.call_latency);
        text
    }

    /// Where a key is, who holds it, and why it cannot be evicted. JSON.
    pub fn explain_key(&self, space: u64, key: &Key) -> Result<String> {
        let in_l1 = self.l1.explain_key(space, key)?;
        let object = ObjectKey { space: self.l1.space(space)?.tag, key: *key };
        let backends: Vec<_> = self
            .tiers
            .list()
            .iter()
            .map(|tier| {
                let mut found = [Found::Unknown];
                tier.backend.lookup_cached(&[object], &mut found);
                let state = match found[0] {
                    Found::Present(_) => {
                        tier.backend.unpin(&[object]);
                        "present"
                    }
                    Found::Absent => "absent",
                    Found::Unknown => "not known without asking",
                };
                json!({
                    "backend": tier.number,
                    "scheme": tier.backend.name(),
                    "state": state,
                    "health": format!("{:?}", tier.backend.health()),
                    "late_requests": tier.late(),
                })
            })
            .collect();
        let state = in_l1.first().map_or("absent", |report| report.state);
        let why: Vec<&String> = in_l1.iter().flat_map(|report| &report.unevictable_because).collect();
        Ok(json!({
            "key": key.to_string(),
            "state": state,
            "evictable": state == "ready" && why.is_empty(),
            "unevictable_because": why,
            "l1": in_l1,
            "backends": backends,
        })
        .to_string())
    }

    /// What a session holds, or for 0 every session that holds something. JSON.
    pub fn explain_session(&self, session: u64) -> Result<String> {
        let reports = self.l1.explain_sessions((session != 0).then_some(session))?;
        let sessions: Vec<_> = reports
            .into_iter()
            .map(|report| {
                let jobs: Vec<_> = self
                    .prefetcher
                    .of_session(report.session)
                    .into_iter()
                    .map(|(job, done)| json!({"job": job, "done": done}))
                    .collect();
                let mut value = json!(report);
                value["jobs"] = json!(jobs);
                value
            })
            .collect();
        Ok(json!({ "sessions": sessions }).to_string())
    }
}

fn value(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a string cannot fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
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
