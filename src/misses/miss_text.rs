//! Hits and misses of lookups as JSON, as sentences, and as Prometheus text.

use std::fmt::Write;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::lookup_counts::LookupCounts;
use super::miss_report::{MissReason, MissReport};

/// Names of the reasons, as in metrics and JSON, with a sentence for people.
const REASONS: [(&str, &str); 14] = [
    ("never_seen", "never stored or asked for since the cache was opened, or forgotten"),
    ("not_stored", "asked for before and not stored since"),
    ("evicted", "evicted"),
    ("dropped_queue", "not written to L2: too many writes waited"),
    ("dropped_evicted", "not written to L2: L1 evicted it first"),
    ("dropped_failed", "not written to L2: the backend refused it or failed"),
    ("dropped_fenced", "not written to L2: the backend was fenced, failing or gone"),
    ("dropped_slow", "not written to L2: writes took too long"),
    ("quarantined", "corrupt, put aside"),
    ("other_space", "in another space: another model, layout, tenant, chunk size or generation"),
    ("deleted", "deleted, cleared or forgotten by a caller"),
    ("temporary", "temporary, and read"),
    ("unreachable", "a backend could not be asked"),
    ("behind_miss", "no backend was asked: behind a missing key, or read from L1 alone"),
];

/// Misses by one reason, in one tier where the reason is of a tier.
pub struct MissRow {
    /// The name of the reason.
    pub reason: &'static str,
    /// The place of the tier.
    pub tier: Option<usize>,
    /// Keys missed for it.
    pub misses: u64,
    /// The reason for people.
    pub sentence: String,
}

impl LookupCounts {
    /// The reasons that there were, that of most misses first.
    pub fn rows(&self) -> Vec<MissRow> {
        let mut rows = Vec::new();
        for (number, (reason, sentence)) in REASONS.into_iter().enumerate() {
            let of_tiers = match number {
                _ if number == MissReason::KVKEEP_MISS_EVICTED as usize => Some(("from", &self.evicted)),
                _ if number == MissReason::KVKEEP_MISS_QUARANTINED as usize => Some(("by", &self.quarantined)),
                _ => None,
            };
            match of_tiers {
                Some((word, tiers)) => rows.extend(tiers.iter().enumerate().map(|(tier, &misses)| {
                    let name = if tier == 0 { "L1".to_owned() } else { format!("the backend at place {tier}") };
                    let below = if tier == 0 { ", and no backend had it" } else { "" };
                    let sentence = format!("{sentence} {word} {name}{below}");
                    MissRow { reason, tier: Some(tier), misses, sentence }
                })),
                None => {
                    let (misses, sentence) = (self.misses[number], sentence.to_owned());
                    rows.push(MissRow { reason, tier: None, misses, sentence });
                }
            }
        }
        rows.retain(|row| row.misses > 0);
        rows.sort_by_key(|row| std::cmp::Reverse(row.misses));
        rows
    }

    fn json(&self) -> Value {
        let MissReport { asked, hits, misses, endless_hits, tier_hits, .. } = self.report(&MissReport::default());
        let reasons = self.rows().into_iter().map(|MissRow { reason, tier, misses, sentence }| {
            json!({"reason": reason, "tier": tier, "misses": misses, "sentence": sentence})
        });
        let reasons: Vec<Value> = reasons.collect();
        json!({
            "asked": asked, "hits": hits, "misses": misses, "endless_hits": endless_hits, "tier_hits": tier_hits,
            "reasons": reasons,
        })
    }
}

impl Serialize for LookupCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

// Writing to a string cannot fail, here and below.
fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// Prometheus text about lookups in spaces, which are given by number.
pub fn metrics(spaces: &[(u64, LookupCounts)]) -> String {
    let mut text = String::new();
    if spaces.is_empty() {
        return text;
    }
    let [hits, misses, endless] = ["kvkeep_hits_total", "kvkeep_misses_total", "kvkeep_endless_hits"];
    head(&mut text, hits, "counter", "Keys that lookups found, by space and tier.");
    for (space, counts) in spaces {
        for (tier, count) in counts.hits.iter().enumerate().filter(|(_, count)| **count > 0) {
            let _ = writeln!(text, "{hits}{{space=\"{space}\",tier=\"{tier}\"}} {count}");
        }
    }
    head(
        &mut text,
        misses,
        "counter",
        "Keys that lookups missed, by space, reason, and tier where the reason has one.",
    );
    for (space, counts) in spaces {
        for MissRow { reason, tier, misses: count, .. } in counts.rows() {
            let tier = tier.map_or_else(String::new, |tier| tier.to_string());
            let _ = writeln!(text, "{misses}{{space=\"{space}\",reason=\"{reason}\",tier=\"{tier}\"}} {count}");
        }
    }
    head(&mut text, endless, "gauge", "Keys that a cache without an end would have found, by space: an estimate.");
    for (space, counts) in spaces {
        let count = counts.report(&MissReport::default()).endless_hits;
        let _ = writeln!(text, "{endless}{{space=\"{space}\"}} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name() {
        let name = |reason: MissReason| REASONS[reason as usize].0;
        assert_eq!(name(MissReason::KVKEEP_MISS_NEVER_SEEN), "never_seen");
        assert_eq!(name(MissReason::KVKEEP_MISS_QUARANTINED), "quarantined");
        assert_eq!(name(MissReason::KVKEEP_MISS_BEHIND_MISS), "behind_miss");
        assert_eq!(REASONS.len(), MissReason::KVKEEP_MISS_BEHIND_MISS as usize + 1);
    }

    #[test]
    fn the_reason_of_most_misses_comes_first() {
        let mut counts = LookupCounts { sampled: 4, seen: 3, ..LookupCounts::default() };
        counts.hits[0] = 5;
        counts.miss(MissReason::KVKEEP_MISS_NEVER_SEEN, 0);
        counts.miss(MissReason::KVKEEP_MISS_EVICTED, 0);
        (0..2).for_each(|_| counts.miss(MissReason::KVKEEP_MISS_EVICTED, 2));
        let rows: Vec<_> = counts.rows().into_iter().map(|row| (row.reason, row.tier, row.misses)).collect();
        assert_eq!(rows, [("evicted", Some(2), 2), ("never_seen", None, 1), ("evicted", Some(0), 1)]);
        let report = counts.report(&MissReport::default());
        assert_eq!((report.asked, report.hits, report.misses, report.endless_hits), (9, 5, 4, 8));
        let text = metrics(&[(7, counts)]);
        assert!(text.contains("kvkeep_misses_total{space=\"7\",reason=\"evicted\",tier=\"2\"} 2\n"), "{text}");
        assert!(text.contains("kvkeep_misses_total{space=\"7\",reason=\"never_seen\",tier=\"\"} 1\n"), "{text}");
        assert!(text.contains("kvkeep_hits_total{space=\"7\",tier=\"0\"} 5\n"), "{text}");
        assert_eq!(metrics(&[]), "");
    }
}
