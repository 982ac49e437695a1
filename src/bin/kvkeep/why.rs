//! `kvkeep why`: why the hit rate of a daemon is as it is.

use std::fmt::Write;

use kvkeep::cache::Cache as _;
use serde_json::Value;

use crate::{Outcome, daemon, text};

/// Spaces shown unless --all.
const SHOWN: usize = 8;

/// Show why keys are missing: hits by tier, misses by reason
///
/// In all and for each open space, with the hits that a cache without an end would have had. Counts since the daemon began; a miss is a
/// key that a lookup asked for and no tier had.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep why unix:///run/kvkeep.sock\n  kvkeep why --json unix:///run/kvkeep.sock | jq .all.reasons"
)]
pub struct WhyArgs {
    /// The daemon, as unix:///PATH
    url: String,
    /// Show every space, however many there are
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Asks the daemon, and prints its reasons.
pub fn run(args: &WhyArgs) -> Outcome {
    let answer = daemon::once(&args.url, false, |client| client.explain_misses().map_err(|error| error.to_string()))?;
    let value: Value =
        serde_json::from_str(&answer).map_err(|error| format!("the daemon's answer is no JSON: {error}"))?;
    let shown = if args.all { usize::MAX } else { SHOWN };
    text::print(&if args.json { format!("{value:#}\n") } else { report(&value, shown) });
    Ok(true)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// The lines about the lookups of one space, or of all; the reasons at most so many.
pub fn lookups(lookups: &Value, most: usize) -> String {
    let (asked, endless) = (number(&lookups["asked"]), number(&lookups["endless_hits"]));
    if asked == 0 {
        return "  no key was asked for\n".to_owned();
    }
    // Writing to a string cannot fail, here and below.
    let mut report = String::new();
    let mut line = |keys: u64, name: &str| {
        let share = format!("{:.1} %", text::percent(keys, asked));
        let _ = writeln!(report, "{:>14} {share:>8}  {name}", text::count(keys));
    };
    line(number(&lookups["hits"]), &format!("hits, of {} keys asked for", text::count(asked)));
    line(endless, "hits of a cache without an end, as estimated");
    for (tier, hits) in list(&lookups["tier_hits"]).iter().enumerate().filter(|(_, hits)| number(hits) > 0) {
        let name = if tier == 0 { "hits in L1".to_owned() } else { format!("hits in the backend at place {tier}") };
        line(number(hits), &name);
    }
    let reasons = list(&lookups["reasons"]);
    for reason in reasons.iter().take(most) {
        line(number(&reason["misses"]), &format!("missed: {}", word(&reason["sentence"])));
    }
    if reasons.len() > most {
        let rest = reasons[most..].iter().map(|reason| number(&reason["misses"])).sum();
        line(rest, "missed for other reasons");
    }
    report
}

fn report(value: &Value, shown: usize) -> String {
    let mut report = format!("all spaces\n{}", lookups(&value["all"], usize::MAX));
    let mut spaces: Vec<&Value> = list(&value["spaces"]).iter().collect();
    spaces.sort_by_key(|space| std::cmp::Reverse(number(&space["lookups"]["asked"])));
    for space in spaces.iter().take(shown) {
        let _ = write!(report, "\nspace {} of model {}", word(&space["space"]), space["model"]);
        for (name, value) in [("layout", &space["layout"]), ("tenant", &space["tenant"])] {
            if !word(value).is_empty() {
                let _ = write!(report, ", {name} {value}");
            }
        }
        if number(&space["generation"]) > 0 {
            let _ = write!(report, ", generation {}", space["generation"]);
        }
        let _ =
            write!(report, ", chunks of {} tokens\n{}", space["chunk_tokens"], lookups(&space["lookups"], usize::MAX));
    }
    if spaces.len() > shown {
        let _ = writeln!(report, "\nand {} more spaces: --all shows them", text::count((spaces.len() - shown) as u64));
    }
    report
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reasons_come_with_their_share() {
        let said = lookups(
            &json!({
                "asked": 2000, "hits": 500, "endless_hits": 1500, "tier_hits": [400, 100, 0],
                "reasons": [
                    {"reason": "evicted", "tier": 0, "misses": 1000, "sentence": "evicted from L1, and no backend had it"},
                    {"reason": "never_seen", "tier": null, "misses": 400, "sentence": "never stored"},
                    {"reason": "deleted", "tier": null, "misses": 100, "sentence": "deleted"},
                ],
            }),
            2,
        );
        let lines: Vec<&str> = said.lines().map(str::trim_start).collect();
        assert_eq!(
            lines,
            [
                "500   25.0 %  hits, of 2,000 keys asked for",
                "1,500   75.0 %  hits of a cache without an end, as estimated",
                "400   20.0 %  hits in L1",
                "100    5.0 %  hits in the backend at place 1",
                "1,000   50.0 %  missed: evicted from L1, and no backend had it",
                "400   20.0 %  missed: never stored",
                "100    5.0 %  missed for other reasons",
            ]
        );
        assert_eq!(lookups(&json!({"asked": 0}), 2), "  no key was asked for\n");
    }
}
