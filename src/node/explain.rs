//! The node seen from outside: statistics, Prometheus text, and why a key is where it is (P12).

use serde_json::json;

use super::parts::Node;
use crate::abi::{Stats, chars};
use crate::backend_report::BackendReport;
use crate::backend_state::{BackendHealth, BackendState};
use crate::control::backends::BackendSlot;
use crate::error::Result;
use crate::key::{Key, ObjectKey};
use crate::l2::{Found, Health, Usage};
use crate::misses::miss_text;
use crate::prometheus;

/// The latency and the rate of loads from a backend, in whole microseconds and bytes a second.
fn load_gauges(slot: &BackendSlot) -> (u64, u64) {
    let Some(estimate) = slot.load_estimate() else { return (0, 0) };
    let rate = if estimate.us_per_byte > 0.0 { 1e6 / estimate.us_per_byte } else { f64::from(u32::MAX) * 1e3 };
    (estimate.latency_us.round() as u64, (rate as u64).max(1))
}

impl Node {
    /// Fills in everything but the head.
    pub fn stats(&self, stats: &mut Stats) {
        let (counts, gauges) = self.l1.gauges();
        let meters = &self.meters;
        let usage =
            self.backends.list().iter().map(|slot| slot.backend.usage()).fold(Usage::default(), |sum, usage| Usage {
                objects: sum.objects + usage.objects,
                bytes: sum.bytes + usage.bytes,
                pins: sum.pins + usage.pins,
                io_uring_refused: sum.io_uring_refused + usage.io_uring_refused,
                ..sum
            });
        // A read without a prefetch asks no backend.
        let (l2_hits, l2_misses) = (meters.l2_hits.get(), meters.l2_misses.get() + counts.read_misses);
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
            jobs: self.prefetcher.table().count() as u64,
            writes_pending: self.writer.writes_pending(),
            read_hits: counts.read_hits + meters.l1_hits.get(),
            read_misses: l2_hits + l2_misses,
            commits: counts.commits,
            commits_discarded: counts.commits_discarded,
            evictions: counts.evictions,
            evicted_bytes: counts.evicted_bytes,
            refusals: counts.refused_memory + counts.refused_quota,
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
            stores_dropped: counts.writes_dropped() + meters.writes_dropped() + meters.deletions_dropped.get(),
            writes_asked: counts.writes_asked + meters.writes_asked.get(),
            writes_withdrawn: counts.writes_withdrawn + meters.writes_withdrawn.get(),
            deletions_pending: self.writer.deletions_pending(),
            commits_temporary: counts.commits_temporary,
            dropped_queue: counts.dropped_queue,
            dropped_evicted: counts.dropped_evicted,
            dropped_failed: meters.dropped_failed.get(),
            dropped_fenced: meters.dropped_fenced.get(),
            dropped_slow: meters.dropped_slow.get(),
            dropped_closed: meters.dropped_closed.get(),
            dropped_deletions: meters.deletions_dropped.get(),
            l2_objects: usage.objects,
            l2_bytes: usage.bytes,
            l2_evictions: self.backends.evicted(),
            l2_hits,
            l2_misses,
            l2_pins: usage.pins,
            uses_dropped: meters.uses_dropped.get() + counts.uses_dropped,
            writes_pending_max: self.writes_pending_max,
            stores_dropped_recently: self.shortfall.dropped_recently(&counts, meters),
            io_uring_refused: usage.io_uring_refused,
            huge_pages_refused: u64::from(self.l1.arena().joining_refused()),
            registrations_refused: meters.registrations_refused.get(),
            memlock_refused: meters.memlock_refused.get(),
            lookup_latency: meters.lookup_latency.get(),
            prefetch_latency: meters.prefetch_latency.get(),
            load_latency: meters.load_latency.get(),
            store_latency: meters.store_latency.get(),
            call_latency: meters.call_latency.get(),
            saved_tokens: meters.saved_tokens.get() + counts.saved_tokens,
            saved_bytes: meters.saved_bytes.get() + counts.saved_bytes,
            oldest_share_ms: self.ages.oldest_share_ms(&self.l1),
            oldest_write_ms: self.ages.oldest_write_ms(&self.l1, &meters.write_waits),
            opened_ms: self.ages.opened_ms(),
        };
    }

    /// All statistics as Prometheus text.
    pub fn metrics(&self) -> String {
        let mut stats = Stats::default();
        self.stats(&mut stats);
        prometheus::prometheus(&stats) + &prometheus::backends(&self.backend_reports())
    }

    /// The part of the metrics that names spaces, to follow the others: for those who may know of all tenants.
    pub fn space_metrics(&self) -> String {
        let spaces = self.l1.spaces();
        let lookups: Vec<_> = spaces.iter().map(|report| (report.space, report.lookups)).collect();
        prometheus::spaces(&spaces) + &miss_text::metrics(&lookups)
    }

    /// How lookups went, in all and in each open space that `may_see` admits (of very many, those that take most of L1). JSON.
    pub fn explain_misses(&self, may_see: impl Fn(u64) -> bool) -> Result<String> {
        let mut spaces = self.l1.spaces();
        spaces.retain(|report| may_see(report.space));
        Ok(json!({ "all": self.l1.lookup_counts(None)?, "spaces": spaces }).to_string())
    }

    /// The open spaces by name, those that take most of L1 first; of very many the first 256. JSON.
    pub fn list_spaces(&self) -> String {
        json!(self.l1.spaces()).to_string()
    }

    /// The backends, in the order they are asked.
    pub fn backend_reports(&self) -> Vec<BackendReport> {
        let backends = self.backends.list();
        let reports = backends.iter().map(|slot| {
            let (usage, reads) = (slot.backend.usage(), slot.reads.get());
            let (load_latency_us, load_bytes_per_s) = load_gauges(slot);
            BackendReport {
                backend: slot.number,
                tier: slot.place,
                scheme: slot.backend.name(),
                trouble: slot.trouble(),
                note: slot.note(),
                open: slot.breaker_trouble().is_some(),
                breaker_opened: slot.read_breaker.opened.get() + slot.write_breaker.opened.get(),
                short: usage.short,
                objects: usage.objects,
                bytes: usage.bytes,
                capacity_bytes: usage.capacity,
                evictions: usage.evicted,
                writes_asked: slot.writes.asked.get(),
                stores: slot.writes.stored.get(),
                stores_already: slot.writes.already.get(),
                stores_dropped: slot.writes.dropped.get(),
                writes_withdrawn: slot.writes.withdrawn.get(),
                writes_pending: slot.writes.pending.get(),
                loads: reads.objects,
                loaded_bytes: reads.bytes,
                asked_keys: slot.lookups.asked.get(),
                found_keys: slot.lookups.found.get(),
                load_latency_us,
                load_bytes_per_s,
                pins: usage.pins,
            }
        });
        reports.collect()
    }

    /// The state of each backend, for programs.
    pub fn query_backends(&self) -> Vec<BackendState> {
        let backends = self.backends.list();
        let states = backends.iter().map(|slot| {
            let (usage, reads, stores) = (slot.backend.usage(), slot.reads.get(), slot.stores.get());
            let (load_latency_us, load_bytes_per_s) = load_gauges(slot);
            let (health, message) = match (slot.trouble(), slot.backend.health()) {
                (Some(why), _) if slot.breaker_trouble().is_some() => (BackendHealth::KVKEEP_BACKEND_OPEN, why),
                (Some(why), Health::Bad(_)) => (BackendHealth::KVKEEP_BACKEND_BAD, why),
                (Some(why), _) if slot.late() > 0 => (BackendHealth::KVKEEP_BACKEND_FENCED, why),
                (Some(note), _) | (None, Health::Noted(note)) => (BackendHealth::KVKEEP_BACKEND_NOTED, note),
                (None, _) => (BackendHealth::KVKEEP_BACKEND_GOOD, String::new()),
            };
            BackendState {
                backend: slot.number,
                place: slot.place as u32,
                health: health as u32,
                objects: usage.objects,
                bytes: usage.bytes,
                capacity_bytes: usage.capacity,
                evictions: usage.evicted,
                loads: reads.objects,
                loaded_bytes: reads.bytes,
                load_us: reads.latency_us,
                load_busy_us: reads.busy_us,
                stores: stores.objects,
                stored_bytes: stores.bytes,
                store_us: stores.latency_us,
                store_busy_us: stores.busy_us,
                stores_dropped: slot.writes.dropped.get(),
                writes_pending: slot.writes.pending.get(),
                asked_keys: slot.lookups.asked.get(),
                found_keys: slot.lookups.found.get(),
                load_latency_us,
                load_bytes_per_s,
                breaker_opened: slot.read_breaker.opened.get() + slot.write_breaker.opened.get(),
                reserved: [0; 3],
                url: chars(&slot.url),
                message: chars(&message),
            }
        });
        states.collect()
    }

    /// The tiers that have a key, its holders, and why it cannot be evicted. JSON.
    pub fn explain_key(&self, space: u64, key: &Key) -> Result<String> {
        let in_l1 = self.l1.explain_key(space, key)?;
        let object = ObjectKey { space: self.l1.space(space)?.tag, key: *key };
        let backends: Vec<_> = self
            .backends
            .list()
            .iter()
            .map(|slot| {
                let state = match slot.peek(&[object])[..] {
                    _ if slot.forgotten.covers(&object.space) => "not asked: it forgets the space",
                    [Found::Present(_)] => "present",
                    [Found::Absent] => "absent",
                    _ => "not known without asking",
                };
                json!({
                    "backend": slot.number,
                    "scheme": slot.backend.name(),
                    "state": state,
                    "trouble": slot.trouble(),
                })
            })
            .collect();
        let state = in_l1.first().map_or("absent", |report| report.state);
        // Sessions that stage the key again, or hold a cleared object, do not hold the ready object.
        let why: Vec<&String> = in_l1
            .iter()
            .filter(|report| report.state == state)
            .flat_map(|report| &report.unevictable_because)
            .collect();
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

    /// The objects that a session holds, or for 0 every session that holds some, that with most bytes first. JSON.
    pub fn explain_session(&self, session: u64) -> Result<String> {
        let reports = self.l1.explain_sessions((session != 0).then_some(session))?;
        let (_, l1) = self.l1.gauges();
        let sessions: Vec<_> = reports
            .into_iter()
            .map(|report| {
                let jobs: Vec<_> = self
                    .prefetcher
                    .table()
                    .states_of_session(report.holding.session)
                    .into_iter()
                    .map(|(job, done)| json!({"job": job, "done": done}))
                    .collect();
                let mut value = json!(report);
                value["jobs"] = json!(jobs);
                value
            })
            .collect();
        Ok(json!({ "l1_bytes": l1.capacity_bytes, "l1_locked_bytes": l1.locked_bytes, "sessions": sessions })
            .to_string())
    }

    /// Sums over the sessions that hold some of L1, and the `most` of them that hold most bytes, without their keys. JSON.
    pub fn explain_holders(&self, most: u32) -> String {
        let holdings = self.l1.holdings(most as usize);
        let (_, l1) = self.l1.gauges();
        let mut value = json!(holdings);
        value["l1_bytes"] = json!(l1.capacity_bytes);
        value["l1_locked_bytes"] = json!(l1.locked_bytes);
        value.to_string()
    }
}
