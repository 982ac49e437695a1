//! The last minutes in numbers, so that a page opened now shows them.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::abi::Stats;

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Most samples that are kept.
const SAMPLES: usize = 600;

type Row = [u64; COLUMNS.len()];

/// The columns of a sample. Sizes and counts as in the statistics, all but the gauges since the cache was opened.
const COLUMNS: [&str; 14] = [
    "time_ms",
    "prefetch_hit_chunks",
    "prefetch_asked_chunks",
    "read_hits",
    "read_misses",
    "loaded_bytes",
    "stored_bytes",
    "evicted_bytes",
    "l1_used_bytes",
    "l1_locked_bytes",
    "l2_bytes",
    "sessions",
    "jobs",
    "writes_pending",
];

/// The newest samples, oldest first.
#[derive(Default)]
pub struct History {
    rows: VecDeque<Row>,
}

/// The time now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl History {
    /// Adds the statistics as one sample.
    pub fn add(&mut self, stats: &Stats) {
        if self.rows.len() == SAMPLES {
            self.rows.pop_front();
        }
        self.rows.push_back([
            now_ms(),
            stats.prefetch_hit_chunks,
            stats.prefetch_asked_chunks,
            stats.read_hits,
            stats.read_misses,
            stats.loaded_bytes,
            stats.stored_bytes,
            stats.evicted_bytes,
            stats.l1_used_bytes,
            stats.l1_locked_bytes,
            stats.l2_bytes,
            stats.sessions,
            stats.jobs,
            stats.writes_pending,
        ]);
    }

    /// All samples later than `after_ms`, oldest first.
    pub fn json(&self, after_ms: u64) -> Value {
        let first = self.rows.partition_point(|row| row[0] <= after_ms);
        let rows: Vec<&Row> = self.rows.range(first..).collect();
        json!({ "columns": COLUMNS, "rows": rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_samples_are_kept() {
        let mut history = History::default();
        for sessions in 0..SAMPLES as u64 + 3 {
            history.add(&Stats { sessions, ..Stats::default() });
        }
        let rows = &history.json(0)["rows"];
        assert_eq!(rows.as_array().map(Vec::len), Some(SAMPLES));
        assert_eq!(rows[0][11], 3);
        assert_eq!(history.json(u64::MAX)["rows"], json!([]));
    }
}
