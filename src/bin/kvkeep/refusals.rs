//! The refusals of L1 as `top` shows them: how many there were, and the session that holds most.

use std::time::{Duration, Instant};

use kvkeep::abi::Stats;
use kvkeep::cache::Cache as _;
use kvkeep::daemon::client::Client;
use serde_json::Value;

use crate::{explain, text};

/// So long after a refusal the largest holder is named.
const SHOWN_FOR: Duration = Duration::from_secs(10);

/// The refusals counted so far, and when there was the last one.
#[derive(Default)]
pub struct Refusals {
    counted: u64,
    last: Option<Instant>,
}

impl Refusals {
    /// Notes those of `stats`. Whether there was one of late. At first, all count as of late.
    fn note(&mut self, stats: &Stats, now: Instant) -> bool {
        if stats.refusals != self.counted {
            (self.counted, self.last) = (stats.refusals, Some(now));
        }
        self.last.is_some_and(|last| now < last + SHOWN_FOR)
    }

    /// Says who holds most of L1, where L1 refused of late. A client that may not know says so instead.
    pub fn report(&mut self, client: &Client, stats: &Stats, now: Instant) -> Option<String> {
        if !self.note(stats, now) {
            return None;
        }
        let begin = format!("L1 refuses: {} reservations in all. ", text::count(stats.refusals));
        Some(match client.explain_holders(1) {
            Ok(answer) => begin + &largest(&serde_json::from_str(&answer).unwrap_or_default()),
            Err(error) => begin + &error.message,
        })
    }
}

/// The largest holder, in three lines.
fn largest(holders: &Value) -> String {
    let whole = holders["l1_bytes"].as_u64().unwrap_or(0);
    match holders["sessions"].get(0) {
        Some(session) => {
            let [name, sums] = explain::session_lines(session, whole);
            format!("Most of it is held by\n  {name}\n  {sums}")
        }
        None => "No session holds anything now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_largest_holder_is_named_for_a_while_after_a_refusal() {
        let (mut refusals, began) = (Refusals::default(), Instant::now());
        let mut note = |refused, seconds| {
            refusals.note(&Stats { refusals: refused, ..Stats::default() }, began + Duration::from_secs(seconds))
        };
        assert!(!note(0, 0));
        assert!(note(3, 1) && note(3, 10) && !note(3, 11));
        assert!(note(4, 20) && !note(4, 30));
        // Of another daemon.
        assert!(note(1, 40));
    }

    #[test]
    fn a_holder_is_named_with_its_sums() {
        let session = json!({
            "session": 5, "request_id": "a \"b\"", "owner_pid": 77, "bytes": 3 << 20, "keys": 1500, "staged_keys": 2,
            "shared_for_ms": 2500, "jobs_running": 0,
        });
        assert_eq!(
            largest(&json!({"l1_bytes": 4 << 20, "sessions": [session]})),
            "Most of it is held by\n  session 5 \"a \\\"b\\\"\" of process 77\n  3 MiB in 1,500 keys, 75.0 % of L1; the longest \
             shared for 2.5 s; 2 staged, 0 jobs running"
        );
        assert_eq!(largest(&json!({"sessions": []})), "No session holds anything now");
    }
}
