//! `kvkeep why`: why the hit rate of a daemon is as it is.

use std::fmt::Write;

use kvkeep::cache::Cache as _;
use kvkeep::daemon::client::Client;
use serde_json::Value;

use crate::{Outcome, daemon, text};

/// Spaces shown unless --all.
const SHOWN: usize = 8;
/// Reasons that `top` shows.
const IN_TOP: usize = 3;

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
    let value = daemon::once(&args.url, false, ask)?;
    let shown = if args.all { usize::MAX } else { SHOWN };
    text::print(&if args.json { format!("{value:#}\n") } else { report(&value, shown) });
    Ok(true)
}

/// How lookups went, in all and in each space.
pub fn ask(client: &Client) -> Result<Value, String> {
    let answer = client.explain_misses().map_err(|error| error.to_string())?;
    serde_json::from_str(&answer).map_err(|error| format!("the daemon's answer is no JSON: {error}"))
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

/// The lines about the lookups of one space, or of all.
fn lookups(lookups: &Value) -> String {
    let asked = number(&lookups["asked"]);
    if asked == 0 {
        return "  no key was asked for\n".to_owned();
    }
    // Writing to a string cannot fail, here and below.
    let mut report = String::new();
    let mut line = |keys: &Value, name: &str| {
        let share = format!("{:.1} %", text::percent(number(keys), asked));
        let _ = writeln!(report, "{:>14} {share:>8}  {name}", text::count(number(keys)));
    };
    line(&lookups["hits"], &format!("hits, of {} keys asked for", text::count(asked)));
    line(&lookups["endless_hits"], "hits of a cache without an end, as estimated");
    for (tier, hits) in list(&lookups["tier_hits"]).iter().enumerate().filter(|(_, hits)| number(hits) > 0) {
        let name = if tier == 0 { "hits in L1".to_owned() } else { format!("hits in the backend at place {tier}") };
        line(hits, &name);
    }
    for reason in list(&lookups["reasons"]) {
        line(&reason["misses"], &format!("missed: {}", word(&reason["sentence"])));
    }
    report
}

/// The hits of an endless cache and the foremost reasons of misses since the daemon began, as lines of `top`.
pub fn misses(lookups: &Value) -> String {
    let (asked, mut report) = (number(&lookups["asked"]), String::new());
    let share = |keys: &Value| format!("{:.0} %", text::percent(number(keys), asked));
    if asked > 0 {
        let _ = writeln!(report, "{:<24}{:>28}", "hits, endless cache", share(&lookups["endless_hits"]));
    }
    for reason in list(&lookups["reasons"]).iter().take(IN_TOP) {
        let tier = reason["tier"].as_u64().map_or_else(String::new, |tier| format!(", tier {tier}"));
        let name = format!("missed: {}{tier}", word(&reason["reason"]));
        let _ = writeln!(report, "{name:<24}{:>28}", share(&reason["misses"]));
    }
    report
}

fn report(value: &Value, shown: usize) -> String {
    let mut report = format!("all spaces\n{}", lookups(&value["all"]));
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
        let _ = write!(report, ", chunks of {} tokens\n{}", space["chunk_tokens"], lookups(&space["lookups"]));
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
        let said = json!({
            "asked": 2000, "hits": 500, "endless_hits": 1500, "tier_hits": [400, 100, 0],
            "reasons": [
                {"reason": "evicted", "tier": 0, "misses": 1000, "sentence": "evicted from L1, and no backend had it"},
                {"reason": "never_seen", "tier": null, "misses": 400, "sentence": "never stored"},
                {"reason": "deleted", "tier": null, "misses": 100, "sentence": "deleted"},
            ],
        });
        let text = lookups(&said);
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        assert_eq!(
            lines,
            [
                "500   25.0 %  hits, of 2,000 keys asked for",
                "1,500   75.0 %  hits of a cache without an end, as estimated",
                "400   20.0 %  hits in L1",
                "100    5.0 %  hits in the backend at place 1",
                "1,000   50.0 %  missed: evicted from L1, and no backend had it",
                "400   20.0 %  missed: never stored",
                "100    5.0 %  missed: deleted",
            ]
        );
        let text = misses(&said);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split("  ").filter(|part| !part.is_empty()).collect()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[0][0], lines[0][1].trim()), ("hits, endless cache", "75 %"));
        assert_eq!((lines[1][0], lines[1][1].trim()), ("missed: evicted, tier 0", "50 %"));
        assert_eq!(lookups(&json!({"asked": 0})), "  no key was asked for\n");
        assert_eq!(misses(&json!({"asked": 0})), "");
    }
}
