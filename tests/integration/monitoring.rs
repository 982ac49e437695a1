//! What operators watch: metrics by space, and the dashboard and alerts in `examples/`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kvkeep::cache::Cache as _;
use kvkeep::config::SpaceSpec;
use kvkeep::log::{Log, LogLevel};
use kvkeep::openmetrics;

use crate::promises::cache::{Cache, MIB, keys, until, views};
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

/// Reads OpenMetrics text strictly: every line is known, families do not mix, samples have the names and labels of their type, and
/// the end is marked. Gives the type and the unit of each family.
fn open_metrics(text: &str) -> BTreeMap<String, (String, String)> {
    let body = text.strip_suffix("# EOF\n").expect("the end is not marked");
    let (mut families, mut seen) = (BTreeMap::<String, (String, String)>::new(), BTreeSet::new());
    let mut current = String::new();
    for line in body.lines() {
        let name_is_good = |name: &str| {
            assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_'), "{line}");
        };
        if let Some(rest) = line.strip_prefix("# ") {
            let [what, name, value] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            name_is_good(name);
            if name != current {
                assert!(!families.contains_key(name), "{name} comes back: {line}");
                families.insert(name.to_owned(), Default::default());
                current = name.to_owned();
            }
            let (kind, unit) = families.get_mut(name).unwrap();
            match what {
                "HELP" => assert!(!value.contains('\\') && !value.contains('"'), "{line}"),
                "TYPE" => assert!(std::mem::replace(kind, value.to_owned()).is_empty(), "{line}"),
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{value}")) && unit.is_empty(), "{line}");
                    *unit = value.to_owned();
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        assert!(seen.insert(series.to_owned()), "twice: {line}");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
            None => (series, ""),
        };
        let (kind, _) = &families[&current];
        let suffixes: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => panic!("{current} has the type {kind:?}"),
        };
        let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} is not of {current}"));
        assert!(suffixes.contains(&suffix), "{line} is not of a {kind}");
        assert_eq!(suffix == "_bucket", labels.contains("le=\""), "{line}");
        assert!(labels.split("\",").all(|label| label.is_empty() || label.contains("=\"")), "{line}");
    }
    assert!(families.values().all(|(kind, _)| !kind.is_empty()), "{families:?}");
    families
}

#[test]
fn open_metrics_have_types_units_and_an_end() {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    cache.node.open_space(spec("a \"b\" \\ le=\"", "bf16", 64)).unwrap();
    let prometheus = cache.node.metrics() + &cache.node.space_metrics();
    cache.node.close();
    let text = openmetrics::of_prometheus(&prometheus);
    let families = open_metrics(&text);
    for (family, kind, unit) in [
        ("kvkeep_build", "info", ""),
        ("kvkeep_loaded_bytes", "counter", "bytes"),
        ("kvkeep_l1_bytes", "gauge", "bytes"),
        ("kvkeep_saved_tokens", "counter", "tokens"),
        ("kvkeep_oldest_share_seconds", "gauge", "seconds"),
        ("kvkeep_opened_seconds", "gauge", "seconds"),
        ("kvkeep_lookup_seconds", "histogram", "seconds"),
        ("kvkeep_backend_load_bytes_per_second", "gauge", "bytes_per_second"),
        ("kvkeep_backend_capacity_bytes", "gauge", "bytes"),
        ("kvkeep_commits", "counter", ""),
    ] {
        assert_eq!(families[family], (kind.to_owned(), unit.to_owned()), "{family}");
    }
    // As many samples as the other text has.
    let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples(&text), samples(&prometheus));
    let parse = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                 print(len(list(parse(sys.stdin.read()))))";
    let known = Command::new("python3").args(["-c", "import prometheus_client"]).output();
    match known.map(|output| output.status.success()) {
        Ok(true) => {
            let mut python = Command::new("python3");
            python.args(["-c", parse]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut python = python.spawn().unwrap();
            python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let said = python.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), families.len().to_string());
        }
        _ => skipped("the OpenMetrics parser of prometheus_client", "Python has no such package"),
    }
}

/// The value of a metric without labels.
fn value(cache: &Cache, name: &str) -> f64 {
    let metrics = cache.node.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
    line.parse().unwrap()
}

#[test]
fn the_ages_of_the_oldest_share_and_the_oldest_write_are_metrics() {
    let cache = Cache::open(MIB, &["fault:memory:?fault.store_hang=1&fault.first=1"], |_| {});
    let opened = value(&cache, "kvkeep_opened_seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(opened <= now && opened > now - 600.0, "{opened} {now}");
    let ages = || ["kvkeep_oldest_share_seconds", "kvkeep_oldest_write_seconds"].map(|name| value(&cache, name));
    assert_eq!(ages(), [0.0, 0.0]);
    let began = Instant::now();
    // Its write hangs.
    cache.store(0..1, 4096);
    let session = cache.session();
    cache.read(session, 0..1, 0);
    let held = Instant::now();
    until("ages", || ages().iter().all(|age| *age >= 0.02));
    let [share, write] = ages();
    // The clock of the cache is some milliseconds coarse, and the oldest share is looked for once a second.
    let most = began.elapsed().as_secs_f64() + 0.02;
    assert!(share <= most && write <= most, "{share} {write} {most}");
    until("the ages of now", || {
        let at = held.elapsed().as_secs_f64();
        ages().iter().all(|age| age + 0.03 >= at)
    });
    // A younger one changes neither.
    cache.store(1..2, 4096);
    let other = cache.session();
    cache.read(other, 1..2, 0);
    assert!(ages().iter().zip([share, write]).all(|(now, before)| *now >= before));
    cache.node.end_session(session).unwrap();
    until("the younger share to be the oldest", || ages()[0] < held.elapsed().as_secs_f64() - 0.02);
    cache.node.end_session(other).unwrap();
    until("no share", || ages()[0] == 0.0);
    // The backend goes, and its writes with it.
    cache.node.remove_backend(1).unwrap();
    until("no write", || ages()[1] == 0.0);
    cache.node.close();
}

#[test]
fn tokens_that_were_found_are_counted_by_the_chunk_size_of_their_space() {
    let cache = Cache::open(MIB, &["memory:"], |_| {});
    let coarse = cache.node.open_space(spec("m", "bf16", 256)).unwrap();
    // 16 tokens a chunk: of ten chunks, four are in L1 and three more below.
    cache.store(0..7, 64);
    cache.node.flush(60_000).unwrap();
    cache.node.evict(cache.space, &keys(4..7), None).unwrap();
    let session = cache.session();
    assert_eq!(cache.prefetch(session, 0..10).hit_chunks, 7);
    assert_eq!(cache.stats().saved_bytes, 7 * 64);
    assert_eq!(cache.stats().saved_tokens, 7 * 16);
    // What the request holds counts once.
    cache.read(session, 0..7, 0);
    assert_eq!(cache.stats().saved_tokens, 7 * 16);
    cache.node.end_session(session).unwrap();
    // Read without a prefetch: two found, by a call of many and by one of one.
    let session = cache.session();
    cache.read(session, 5..9, 0);
    cache.read(session, 0..1, 0);
    assert_eq!(cache.stats().saved_tokens, (7 + 3) * 16);
    assert_eq!(cache.stats().saved_bytes, (7 + 3) * 64);
    cache.node.end_session(session).unwrap();
    // Two ranks of a chunk are one chunk.
    let session = cache.node.begin_session(coarse, "", None).unwrap();
    let ranks = [0, 1].map(|rank| kvkeep::key::Key { rank, ..keys(0..1)[0] });
    let mut out = views(2);
    assert!(cache.node.reserve_write(session, &ranks, &[64; 2], false, &mut out).unwrap());
    assert!(cache.node.finish_write(session, &ranks, None).unwrap());
    assert!(cache.node.reserve_read(session, &ranks, 0, &mut out).unwrap());
    assert_eq!(cache.stats().saved_tokens, (7 + 3) * 16 + 256);
    assert_eq!(cache.stats().saved_bytes, (7 + 3 + 2) * 64);
    cache.node.end_session(session).unwrap();
    assert_eq!(value(&cache, "kvkeep_saved_tokens_total"), 416.0);
    // Behind a gap nothing is given, though it is there: of three chunks, the first.
    cache.store(20..21, 1000);
    cache.store(22..23, 3000);
    let session = cache.session();
    assert_eq!(cache.prefetch(session, 20..23).hit_chunks, 1);
    assert_eq!((cache.stats().saved_bytes, cache.stats().saved_tokens), (12 * 64 + 1000, 416 + 16));
    cache.node.end_session(session).unwrap();
    cache.node.close();
}

#[test]
fn names_of_spaces_are_not_in_the_clear_beside_encrypted_objects() {
    for key in ["", "key_file"] {
        let dir = tempfile::tempdir().unwrap();
        let (objects, keys) = (dir.path().join("objects"), dir.path().join("keys"));
        std::fs::write(&keys, "5a".repeat(32)).unwrap();
        std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let mut url = format!("fs://{}", objects.display());
        if !key.is_empty() {
            url += &format!("?{key}={}", keys.display());
        }
        let cache = Cache::open(MIB, &[&url], |_| {});
        cache.store(0..1, 4096);
        // Closing writes out what is accepted.
        cache.node.close();
        let spaces = std::fs::read_dir(&objects).unwrap().map(|entry| entry.unwrap().path().join("space.json"));
        assert_eq!(spaces.filter(|file| file.exists()).count(), usize::from(key.is_empty()), "{key}");
        assert_eq!(kvkeep::l2::fs::listing::list(&objects).unwrap().len(), 1, "{key}");
    }
}
