//! The `kvkeep` command, run as a user runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kvkeep::abi::{Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::key::Key;
use kvkeep::node::Node;

const SLICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/conversation_slice.jsonl");

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn kvkeep(args: &[&str]) -> Ran {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_kvkeep")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

/// The first number of the report's line `name`.
fn number(ran: &Ran, name: &str) -> u64 {
    let line = ran.out.lines().find(|line| line.starts_with(&format!("{name}  ")));
    let line = line.unwrap_or_else(|| panic!("no line {name:?} in\n{}\n{}", ran.out, ran.err));
    line[name.len()..].split_whitespace().next().unwrap().replace(',', "").parse().unwrap()
}

/// A directory that a replay of the slice filled.
fn filled(dir: &Path) -> Ran {
    let ran = kvkeep(&[
        "replay",
        SLICE,
        "--real",
        "--l1",
        "4MiB",
        "--limit",
        "300",
        "--l2",
        &format!("fs://{}", dir.display()),
    ]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    ran
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> { fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let folders = |dir: &Path| list(dir).into_iter().filter(|path| path.is_dir()).collect::<Vec<_>>();
    let mut files: Vec<PathBuf> =
        folders(dir).iter().flat_map(|space| folders(space)).flat_map(|shard| list(&shard)).collect();
    files.sort();
    files
}

#[test]
fn a_replay_through_l1_alone_hits_and_reads_every_byte_right() {
    let ran = kvkeep(&["replay", SLICE, "--real", "--l1", "256MiB"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(number(&ran, "requests"), 1000);
    assert_eq!(number(&ran, "blocks asked"), 27_305);
    // All of it fits, so that each block misses once.
    assert_eq!(number(&ran, "hits in L1"), 27_305 - 21_514);
    assert_eq!(number(&ran, "prefix hits"), 27_305 - 21_514);
    assert_eq!(number(&ran, "wrong bytes"), 0);
    assert!(ran.err.is_empty(), "no bar where there is no terminal: {}", ran.err);
}

#[test]
fn what_l1_evicts_is_found_in_a_directory_also_by_the_next_replay() {
    let dir = tempfile::tempdir().unwrap();
    let ran = filled(dir.path());
    assert!(number(&ran, "hits in fs") > 0 && number(&ran, "L1 evictions") > 0);
    assert_eq!(number(&ran, "wrong bytes"), 0);
    let first = number(&ran, "L2 stores");
    assert_eq!(objects(dir.path()).len() as u64, first);

    let again = filled(dir.path());
    assert_eq!(number(&again, "L2 stores"), 0);
    assert_eq!(number(&again, "hits"), number(&again, "blocks asked"));
}

#[test]
fn wrong_bytes_are_counted_and_are_an_exit_status() {
    let flips = ["replay", SLICE, "--real", "--l1", "1MiB", "--limit", "400", "--l2", "fault:memory:?fault.flip=1"];
    let ran = kvkeep(&[&flips[..], &["--no-checksum"]].concat());
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(number(&ran, "wrong bytes") > 0);

    let ran = kvkeep(&flips);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert_eq!(number(&ran, "wrong bytes"), 0);
    assert!(number(&ran, "corrupt objects") > 0);
}

/// The rates of a table's line.
fn rates(table: &str, name: &str) -> Vec<f64> {
    let is_it = |line: &&str| line.trim_start().starts_with(&format!("{name} "));
    let line = table.lines().find(is_it).unwrap_or_else(|| panic!("no line {name:?} in\n{table}")).trim_start();
    let (_, cells) = line.split_once("  ").unwrap();
    cells.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_table_has_a_column_for_each_policy_and_a_plot() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("rates.svg");
    let marks = ["--watermark-high-percent", "100"];
    let shares = ["--sizes", "1%,20%,100%", "--mode", "any", "--svg", plot.to_str().unwrap()];
    let ran = kvkeep(&[&["replay", SLICE, "--policy", "all"][..], &shares, &marks].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let (blocks, prefixes) = ran.out.split_once("that an engine can use").unwrap();
    assert!(blocks.contains("lru") && blocks.contains("s3fifo") && blocks.contains("mq") && blocks.contains("none"));
    // An endless cache, and an L1 that holds every block, hit all but the first asking.
    for table in [blocks, prefixes] {
        assert_eq!(rates(table, "endless"), [21.21; 4]);
        assert_eq!(rates(table, "100 %"), [21.21; 4]);
    }
    // What an engine can use is no more than what is there.
    let (block, prefix) = (rates(blocks, "20 %"), rates(prefixes, "20 %"));
    assert!(prefix.iter().zip(&block).all(|(prefix, block)| prefix <= block), "{prefix:?} {block:?}");
    assert!(prefix.iter().zip(&block).any(|(prefix, block)| prefix < block), "no prefix had a hole: {}", ran.out);
    assert!(rates(blocks, "1 %").iter().zip(&block).all(|(small, large)| small < large), "{}", ran.out);
    let svg = fs::read_to_string(&plot).unwrap();
    well_formed(&svg);
    assert_eq!(svg.matches("<polyline ").count(), 4);
    assert!(svg.contains(">mq</text>") && svg.contains(">20 % = "));

    // Every run hits the same.
    let one = ["replay", SLICE, "--policy", "s3fifo", "--sizes", "20%", "--mode", "any"];
    let one = kvkeep(&[&one[..], &["--svg", plot.to_str().unwrap()], &marks].concat());
    assert_eq!(rates(&one.out, "20 %"), [block[1]]);
    assert_eq!(fs::read_to_string(&plot).unwrap().matches("<polyline ").count(), 1);
}

#[test]
fn one_command_says_how_large_l1_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("sizes.svg");
    let ran = kvkeep(&["replay", SLICE, "--l2", "512GiB,2TiB", "--svg", plot.to_str().unwrap()]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    // 21,514 blocks of 64 MiB take 1.3 TiB; 80 % of 2 TiB is the first that has room for them.
    assert!(
        ran.out.contains("27,305 blocks, 21,514 different.\nThese take 1.3 TiB: 64 MiB each (assumed"),
        "{}",
        ran.out
    );
    assert_eq!(rates(&ran.out, "2 TiB"), [21.21; 3], "{}", ran.out);
    assert_eq!(rates(&ran.out, "endless"), [21.21; 3]);
    let (small, large) = (rates(&ran.out, "16 GiB"), rates(&ran.out, "1 TiB"));
    assert!(small[0] < small[1] && small[1] < small[2] && small[0] < large[0], "{}", ran.out);
    let advice = ran.out.lines().find_map(|line| line.strip_prefix("lru: an L1 of ")).unwrap();
    let (size, _) = advice.split_once(" has ").unwrap();
    assert!(rates(&ran.out, size)[0] >= 0.95 * 21.21, "{advice}");
    let half = ["replay", SLICE, "--l1", "16GiB"];
    assert!(kvkeep(&half).out.contains("no L1 here has 95 % of the hits of an endless cache"));
    let svg = fs::read_to_string(&plot).unwrap();
    well_formed(&svg);
    assert!(svg.contains(">lru + L2 2 TiB</text>") && svg.contains(">1 TiB</text>"), "{svg}");

    // Blocks that never come again need no cache.
    let trace = dir.path().join("trace.jsonl");
    let line = r#"{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}"#;
    fs::write(&trace, format!("{line}\n")).unwrap();
    assert!(kvkeep(&["replay", trace.to_str().unwrap()]).out.contains("no cache helps"), "{}", ran.out);
}

#[test]
fn a_simulation_counts_what_the_real_cache_counts() {
    for (policy, l1) in [("lru", "4MiB"), ("s3fifo", "8MiB"), ("mq", "4MiB"), ("none", "8MiB"), ("lru", "1MiB")] {
        let args = ["replay", SLICE, "--limit", "500", "--l1", l1, "--policy", policy, "--block-bytes", "4096"];
        for more in [&["--watermark-high-percent", "100"][..], &["--watermark-high-percent", "100", "--mode", "any"]] {
            let simulated = kvkeep(&[&args[..], more].concat());
            let real = kvkeep(&[&args[..], more, &["--real"]].concat());
            for name in ["blocks asked", "hits in L1", "hits", "prefix hits", "L1 commits", "L1 evictions", "L1 holds"]
            {
                assert_eq!(number(&simulated, name), number(&real, name), "{policy} {l1} {more:?}: {name}");
            }
        }
    }
}

#[test]
fn a_simulation_of_two_tiers_counts_nearly_what_the_real_cache_counts() {
    // Writes to the directory and eviction in the background take time in the real cache: some blocks leave L1 later.
    let near = |one: u64, other: u64, of: u64| one.abs_diff(other) * 100 <= of;
    for policy in ["lru", "mq"] {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}?capacity=24MiB&policy={policy}", dir.path().display());
        let args = ["replay", SLICE, "--limit", "400", "--l1", "2MiB", "--policy", policy, "--block-bytes", "4096"];
        let simulated = kvkeep(&[&args[..], &["--l2", "24MiB"]].concat());
        let real = kvkeep(&[&args[..], &["--real", "--l2", &url]].concat());
        assert_eq!((simulated.code, real.code), (0, 0), "{}{}", simulated.err, real.err);
        let asked = number(&real, "blocks asked");
        let hits = |l2: &str, ran: &Ran| [number(ran, l2), number(ran, "prefix hits"), number(ran, "hits in L1")];
        let (simulated, real) = (hits("hits in L2", &simulated), hits("hits in fs", &real));
        assert!(real[0] > 0 && real[2] > 0, "{policy}: {real:?}");
        for (simulated, real) in simulated.into_iter().zip(real) {
            assert!(near(simulated, real, asked), "{policy}: {simulated} and {real} of {asked}");
        }
    }
}

/// Every tag is closed, in order, every attribute is quoted, and no number went wrong.
fn well_formed(xml: &str) {
    let mut open = Vec::new();
    for part in xml.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(!text.contains('>') && !part.contains("NaN") && !part.contains("inf"), "{part}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.to_owned()));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap().to_owned());
        }
    }
    assert!(open.is_empty() && xml.starts_with("<svg ") && xml.ends_with("</svg>\n"), "{open:?}");
}

#[test]
fn p7_verify_finds_a_flipped_byte_a_truncated_file_and_a_renamed_one() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().to_str().unwrap();
    let whole = kvkeep(&["verify", path]);
    assert_eq!(whole.code, 0, "{}{}", whole.out, whole.err);
    let files = objects(dir.path());
    assert!(whole.out.contains("0  corrupt objects") && whole.out.contains("in 1 space"), "{}", whole.out);

    let mut bytes = fs::read(&files[0]).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&files[0], &bytes).unwrap();
    fs::File::options().write(true).open(&files[1]).unwrap().set_len(5000).unwrap();
    fs::File::options().write(true).open(&files[2]).unwrap().set_len(100).unwrap();
    let hash = files[3].file_name().unwrap().to_str().unwrap();
    let other = files[3].with_file_name(hash.replace("-0-0", "-0-1"));
    fs::rename(&files[3], &other).unwrap();
    fs::write(files[4].with_file_name(".tmp-ab-1-1-0.0"), b"half").unwrap();

    let ran = kvkeep(&["verify", path]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("4  corrupt objects"), "{}", ran.out);
    let reason = |file: &Path| {
        let start = format!("corrupt: {}: ", file.display());
        ran.out.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{start}\n{}", ran.out))
    };
    assert!(reason(&files[0]).contains("do not match their checksum"));
    assert!(reason(&files[1]).contains("904 were read"));
    assert!(reason(&files[2]).contains("ends after 100 bytes"));
    assert!(reason(&other).contains("is that of key"));
    assert!(ran.out.contains("1  being written now"), "{}", ran.out);
}

#[test]
fn quarantine_lists_what_is_wrong_and_clears_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().to_str().unwrap();
    let empty = kvkeep(&["quarantine", path]);
    assert!(empty.code == 0 && empty.out.contains("0  objects in quarantine"), "{}{}", empty.out, empty.err);

    // As a load that finds a flipped byte leaves it.
    let file = objects(dir.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    let space = file.parent().unwrap().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let quarantine = dir.path().join("quarantine");
    fs::create_dir_all(&quarantine).unwrap();
    let moved = quarantine.join(format!("{space}-{}", file.file_name().unwrap().to_str().unwrap()));
    fs::rename(&file, &moved).unwrap();

    let ran = kvkeep(&["quarantine", path]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("1  objects in quarantine") && ran.out.contains("do not match their checksum"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains(moved.to_str().unwrap()), "{}", ran.out);
    assert!(kvkeep(&["stat", path]).out.contains("see kvkeep quarantine"));
    let ran = kvkeep(&["quarantine", "--clear", path]);
    assert!(ran.code == 0 && ran.out.contains("1 objects removed") && !moved.exists(), "{}{}", ran.out, ran.err);
    let ran = kvkeep(&["quarantine", dir.path().join("nothing").to_str().unwrap()]);
    assert!(ran.code == 2 && ran.err.contains("is not a directory"), "{}", ran.err);
}

#[test]
fn stat_counts_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let path = dir.path().to_str().unwrap();
    let files = objects(dir.path());
    fs::write(files[0].with_file_name("notes.txt"), b"mine").unwrap();
    let ran = kvkeep(&["stat", "--json", path]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let count = files.len() as u64;
    assert_eq!((value["objects"].as_u64(), value["bytes"].as_u64()), (Some(count), Some(count * 4096)));
    assert_eq!(value["spaces"][0]["objects"].as_u64(), Some(count));
    assert_eq!(value["spaces"].as_array().unwrap().len(), 1);
    assert_eq!(value["sizes"], serde_json::json!([{"at_most_bytes": 4096, "objects": count}]));
    assert_eq!(value["foreign"], 1);
    assert!(value["oldest_use"].as_u64() <= value["newest_use"].as_u64());

    let ran = kvkeep(&["stat", path]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("1  foreign files") && ran.out.contains(" UTC"), "{}", ran.out);

    let empty = tempfile::tempdir().unwrap();
    let ran = kvkeep(&["stat", empty.path().to_str().unwrap()]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("0  objects"), "{}", ran.out);
}

/// A space of which `objects` objects of `size` bytes are stored.
fn stored(node: &Node, spec: &SpaceSpec, objects: u8, size: u64) {
    let space = node.open_space(spec.clone()).unwrap();
    let session = node.begin_session(space, "", None).unwrap();
    let keys: Vec<Key> = (0..objects).map(|first| Key { hash: [first; 32], rank: 0, group: 0 }).collect();
    let mut views = vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; keys.len()];
    assert!(node.reserve_write(session, &keys, &vec![size; keys.len()], false, &mut views).unwrap());
    assert!(node.finish_write(session, &keys, None).unwrap());
    node.end_session(session).unwrap();
    node.flush(60_000).unwrap();
}

#[test]
fn stat_names_the_spaces_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (path, url) = (dir.path().to_str().unwrap(), format!("fs://{}", dir.path().display()));
    let spec = |model: &str, layout: &str, chunk_tokens| SpaceSpec {
        model: model.to_owned(),
        layout: layout.to_owned(),
        tenant: "acme \"x\"".to_owned(),
        chunk_tokens,
        quota_bytes: 0,
        generation: 3,
    };
    let (one, other, empty) = (spec("llama", "bf16", 256), spec("llama", "", 16), spec("never stored", "", 16));
    let open = |urls: Vec<String>| Node::open(NodeConfig { backend_urls: urls, ..NodeConfig::new(4 << 20) }).unwrap();
    // One space is open before its backend is, one after.
    let node = open(Vec::new());
    let early = [&one, &empty].map(|spec| node.open_space(spec.clone()).unwrap());
    assert_ne!(early[0], early[1]);
    node.add_backend(&url).unwrap();
    stored(&node, &one, 7, 4096);
    stored(&node, &other, 3, 1000);
    node.close();
    let spaces = || -> Vec<serde_json::Value> {
        let ran = kvkeep(&["stat", "--json", path]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((value["objects"].as_u64(), value["foreign"].as_u64()), (Some(10), Some(0)), "{value}");
        let mut spaces = value["spaces"].as_array().unwrap().clone();
        spaces.sort_by_key(|space| space["objects"].as_u64());
        spaces
    };
    let seen = |spaces: &[serde_json::Value]| -> Vec<(u64, u64, bool)> {
        let number = |space: &serde_json::Value, name: &str| space[name].as_u64().unwrap();
        let row = |space| (number(space, "objects"), number(space, "bytes"), space["model"] == "llama");
        spaces.iter().map(row).collect()
    };
    let named = spaces();
    assert_eq!(seen(&named), [(3, 3000, true), (7, 7 * 4096, true)]);
    assert_eq!((&named[0]["chunk_tokens"], &named[1]["chunk_tokens"]), (&16.into(), &256.into()));
    assert_eq!((&named[1]["tenant"], &named[1]["generation"]), (&"acme \"x\"".into(), &3.into()));
    let text = kvkeep(&["stat", path]).out;
    let line = "\n  model \"llama\", layout \"bf16\", tenant \"acme \\\"x\\\"\", 256 tokens a chunk, generation 3\n";
    assert!(text.contains(line) && !text.contains("never stored"), "{text}");
    assert_eq!(kvkeep(&["verify", path]).code, 0);

    // Damaged, missing, and that of another space: each is shown by its tag alone, with the same sums.
    let file = |space: &serde_json::Value| dir.path().join(space["space"].as_str().unwrap()).join("space.json");
    let [first, second] = [file(&named[0]), file(&named[1])];
    let whole = fs::read(&second).unwrap();
    fs::write(&second, &whole[..whole.len() / 2]).unwrap();
    fs::remove_file(&first).unwrap();
    assert_eq!(seen(&spaces()), [(3, 3000, false), (7, 7 * 4096, false)]);
    fs::write(&first, &whole).unwrap();
    assert_eq!(seen(&spaces()), [(3, 3000, false), (7, 7 * 4096, false)]);

    // Whoever opens the spaces anew writes the files anew, and finds the objects that there were.
    let node = open(vec![url]);
    let mut stats = Stats::default();
    node.stats(&mut stats);
    assert_eq!(stats.l2_objects, 10);
    let space = node.open_space(one).unwrap();
    node.open_space(other).unwrap();
    let began = Instant::now();
    while !seen(&spaces()).iter().all(|(.., named)| *named) {
        assert!(began.elapsed() < Duration::from_secs(60), "the files are not written");
    }
    // They go with their spaces.
    node.forget_space(space).unwrap();
    node.flush(60_000).unwrap();
    assert!(!second.parent().unwrap().exists() && first.exists());
    node.close();
}

#[test]
fn wrong_usage_names_its_cause_and_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nothing");
    let missing = missing.to_str().unwrap();
    for (args, says) in [
        (&["replay"][..], "<TRACE>"),
        (&["replay", missing], "cannot be opened"),
        (&["replay", SLICE, "--policy", "clock"], "lru, s3fifo, mq, none and all"),
        (&["replay", SLICE, "--l1", "12 apples"], "write 4096, 64MiB or 200GiB"),
        (&["replay", SLICE, "--l1", "0"], "0 bytes is no size"),
        (&["replay", SLICE, "--real", "--l1", "1000", "--block-bytes", "64"], "at least 4096 bytes"),
        (&["replay", SLICE, "--real", "--l1", "4096TiB"], "make L1 smaller"),
        (
            &["replay", SLICE, "--real", "--l1", "1MiB", "--block-bytes", "2MiB"],
            "no block of 2 MiB fits an L1 of 1 MiB",
        ),
        (&["replay", SLICE, "--l1", "1MiB", "--block-bytes", "2MiB"], "no block of 2 MiB fits an L1 of 1 MiB"),
        (&["replay", SLICE, "--block-bytes", "9000000TiB"], "at most 64 GiB"),
        (&["replay", SLICE, "--real", "--l2", "fsx:///x"], "fsx"),
        (&["replay", SLICE, "--real", "--l2", "fs://relative"], "not absolute"),
        (&["replay", SLICE, "--real", "--l2", "2TiB"], "--l2 'fs:///PATH?capacity=2TiB'"),
        (&["replay", SLICE, "--l2", "fs:///x"], "needs --real"),
        (&["replay", SLICE, "--l2", "2 apples"], "write 4096, 64MiB or 200GiB"),
        (&["replay", SLICE, "--sizes", "5"], "such as 5%"),
        (&["replay", SLICE, "--sizes", "0%"], "above 0%"),
        (&["replay", SLICE, "--sizes", "5%", "--l1", "1GiB"], "cannot be used with"),
        (&["replay", SLICE, "--real", "--policy", "all"], "one policy, or leave out --real"),
        (&["replay", SLICE, "--real", "--l1", "1GiB,2GiB"], "one size to --l1"),
        (&["replay", SLICE, "--real", "--svg", "x.svg"], "cannot be used with"),
        (&["replay", SLICE, "--svg", dir.path().to_str().unwrap()], "give --svg another file"),
        (&["replay", SLICE, "--speed", "realtime"], "--real"),
        (
            &["replay", SLICE, "--watermark-high-percent", "50", "--watermark-low-percent", "60"],
            "not be above the high",
        ),
        (&["verify", missing], "is not a directory"),
        (&["stat", SLICE], "is not a directory"),
        (&["mend"], "unrecognized subcommand"),
    ] {
        let ran = kvkeep(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(says), "{args:?}: {}", ran.err);
        assert!(ran.out.is_empty(), "{args:?}: {}", ran.out);
    }
}

#[test]
fn a_malformed_line_is_named_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let good = r#"{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}"#;
    fs::write(&trace, format!("{good}\n\n{good}\n{{\"timestamp\": 3}}\n")).unwrap();
    let path = trace.to_str().unwrap();
    let ran = kvkeep(&["replay", path]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("line 4") && ran.err.contains("input_length"), "{}", ran.err);

    let ran = kvkeep(&["replay", path, "--limit", "2", "--l1", "1GiB"]);
    assert_eq!((ran.code, number(&ran, "hits")), (0, 2));

    // A last line that its writer did not end is left out; one that is wrong is not.
    fs::write(&trace, format!("{good}\n{good}\n{{\"timestamp\": 3, \"input")).unwrap();
    let ran = kvkeep(&["replay", path, "--l1", "1GiB"]);
    assert_eq!((ran.code, number(&ran, "hits")), (0, 2));
    assert!(ran.err.contains("line 3, the last one, is cut off"), "{}", ran.err);
    fs::write(&trace, format!("{good}\n{{\"timestamp\": 3, \"input\n")).unwrap();
    assert!(kvkeep(&["replay", path]).err.contains("line 2"));

    fs::write(&trace, "").unwrap();
    assert!(kvkeep(&["replay", path]).err.contains("asks for no block"));
}

#[test]
fn real_time_takes_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let line = |ms| format!("{{\"timestamp\": {ms}, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1]}}\n");
    fs::write(&trace, line(1000) + &line(1300)).unwrap();
    let began = std::time::Instant::now();
    let ran = kvkeep(&["replay", trace.to_str().unwrap(), "--real", "--speed", "realtime"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(began.elapsed().as_millis() >= 300);
}

#[test]
fn help_has_examples_and_the_version_is_the_library_s() {
    let ran = kvkeep(&["--version"]);
    assert_eq!((ran.code, ran.out.trim()), (0, concat!("kvkeep ", env!("CARGO_PKG_VERSION"))));
    for verb in ["replay", "verify", "stat"] {
        let ran = kvkeep(&[verb, "--help"]);
        assert!(ran.code == 0 && ran.out.contains("Example") && ran.out.contains("kvkeep "), "{}", ran.out);
    }
}
