//! What operators watch: metrics by space, and the dashboard and alerts in `examples/`.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};

use kvkeep::cache::Cache as _;
use kvkeep::config::SpaceSpec;
use kvkeep::log::{Log, LogLevel};

use crate::promises::cache::{Cache, MIB, keys, until};
use crate::support::skip::skipped;

const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prometheus/alerts.yml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/grafana/kvkeep.json");

fn spec(model: &str, layout: &str, chunk_tokens: u32) -> SpaceSpec {
    let (model, layout, tenant) = (model.to_owned(), layout.to_owned(), "acme".to_owned());
    SpaceSpec { model, layout, tenant, chunk_tokens, quota_bytes: 0, generation: 0 }
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    words.filter(|word| word.starts_with("kvkeep_")).map(str::to_owned).collect()
}

#[test]
fn spaces_are_metrics_by_name() {
    let cache = Cache::open(MIB, &[], |_| {});
    let space = cache.node.open_space(SpaceSpec { quota_bytes: 4096, ..spec("a \"b\" \\", "bf16", 64) }).unwrap();
    cache.store(0..3, 1000);
    let metrics = cache.node.space_metrics();
    let labels = format!(
        "{{space=\"{space}\",model=\"a \\\"b\\\" \\\\\",layout=\"bf16\",tenant=\"acme\",generation=\"0\",chunk_tokens=\"64\"}}"
    );
    for line in [format!("kvkeep_space_objects{labels} 0\n"), format!("kvkeep_space_quota_bytes{labels} 4096\n")] {
        assert!(metrics.contains(&line), "{line} is missing in {metrics}");
    }
    let its = format!("kvkeep_space_objects{{space=\"{}\"", cache.space);
    let line = metrics.lines().find(|line| line.starts_with(&its)).unwrap();
    assert!(line.ends_with("} 3"), "{line}");
    cache.node.close();
}

#[test]
fn hits_and_misses_are_metrics_by_space_and_reason() {
    let cache = Cache::open(MIB, &[], |_| {});
    cache.store(0..3, 1000);
    assert!(cache.node.evict(cache.space, &keys(0..1), None).unwrap());
    let session = cache.session();
    cache.read(session, 0..5, 0);
    let (metrics, space) = (cache.node.space_metrics(), cache.space);
    for line in [
        format!("kvkeep_hits_total{{space=\"{space}\",tier=\"0\"}} 2\n"),
        format!("kvkeep_misses_total{{space=\"{space}\",reason=\"evicted\",tier=\"0\"}} 1\n"),
        format!("kvkeep_misses_total{{space=\"{space}\",reason=\"never_seen\",tier=\"\"}} 2\n"),
        format!("kvkeep_endless_hits{{space=\"{space}\"}} 3\n"),
    ] {
        assert!(metrics.contains(&line), "{line} is missing in {metrics}");
    }
    cache.node.end_session(session).unwrap();
    cache.node.close();
}

#[test]
fn a_space_that_differs_by_its_layout_or_chunk_size_alone_is_logged() {
    for (other, difference) in [
        (spec("m", "fp8", 64), Some("layout, \"fp8\" and \"bf16\"")),
        (spec("m", "bf16", 16), Some("chunk_tokens, 16 and 64")),
        (spec("n", "fp8", 64), None),
        (spec("m", "fp8", 16), None),
        (SpaceSpec { tenant: "else".to_owned(), ..spec("m", "fp8", 64) }, None),
        (SpaceSpec { generation: 1, ..spec("m", "fp8", 64) }, None),
    ] {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let logged = Arc::clone(&lines);
        let log = Log::new(LogLevel::Warn, move |_, line: &str| logged.lock().unwrap().push(line.to_owned()));
        let cache = Cache::open(MIB, &[], |config| config.log = log);
        let open = |spec| cache.node.open_space(spec).unwrap();
        let (mut first, mut second) = (open(spec("m", "bf16", 64)), open(other));
        if difference.is_none() {
            // The first line of a kind is written at once: then it is of these.
            (first, second) = (open(spec("last", "bf16", 64)), open(spec("last", "fp8", 64)));
        }
        let difference = difference.unwrap_or("layout, \"fp8\" and \"bf16\"");
        let find = || lines.lock().unwrap().iter().find(|line| line.contains("differs from space")).cloned();
        until("the log", || find().is_some());
        let (line, begin) = (find().unwrap(), format!("space {second} of model "));
        let end = format!(" differs from space {first} by its {difference}, alone");
        assert!(line.starts_with(&begin) && line.contains(&end), "{line}");
        cache.node.close();
    }
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    let metrics = names(&(cache.node.metrics() + &cache.node.space_metrics()));
    cache.node.close();
    let [dashboard, alerts] = [DASHBOARD, ALERTS].map(|path| std::fs::read_to_string(path).unwrap());
    for text in [&dashboard, &alerts] {
        let asked = names(text);
        assert!(asked.len() > 8, "{asked:?}");
        let missing: Vec<&String> = asked.difference(&metrics).collect();
        assert!(missing.is_empty(), "there is no {missing:?}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()), "{panel}");
    }
    match Command::new("promtool").args(["check", "rules", ALERTS]).output() {
        Ok(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr)),
        Err(error) => skipped("promtool check rules", error),
    }
}
