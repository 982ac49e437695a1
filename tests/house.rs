//! Rules of this house that no compiler checks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 500;
const FUNCTIONS_MAX: usize = 70;
const README_LINES_MAX: usize = 150;

/// Where `unsafe` may live: the C ABI, raw memory, the ring, foreign code and shared mappings.
const UNSAFE_ROOMS: [&str; 9] = [
    "src/ffi/",
    "src/arena.rs",
    "src/threads.rs",
    "src/l1/tests/model/",
    "src/l2/fs/engine/ring",
    "src/l2/plugin",
    "src/transfer/cuda",
    "src/transfer/cpu_copy",
    "src/daemon/server/peer.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder by one of their endings, but for those that were built, generated or kept as they once were.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    const LEFT_OUT: [&str; 5] = ["build", "target", "__pycache__", "_ffi.py", "former"];
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), files);
            } else {
                files.push(entry.path());
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    files(folder, &["rs"])
}

/// The code of a line: without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

fn is_unsafe(line: &str) -> bool {
    let code = code(line);
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
        && !code.contains("#[unsafe(")
        && !code.contains("#![")
}

#[test]
fn no_source_file_is_too_long() {
    let folders = ["src", "tests", "benches", "c_tests", "bindings", "e2e", "examples", "scripts", "cmake"];
    let endings = ["rs", "c", "h", "hpp", "cpp", "cu", "py", "sh", "html", "cmake", "txt"];
    let all: Vec<(String, String)> = folders.iter().flat_map(|folder| files(folder, &endings)).collect();
    assert!(all.len() > 200, "only {} files were found", all.len());
    let long: Vec<String> = all
        .iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(name, text)| format!("{name}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "files over {LINES_MAX} lines: {long:#?}");
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let strays: Vec<String> = rust_files("src")
        .iter()
        .filter(|(name, _)| !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)))
        .flat_map(|(name, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| is_unsafe(line))
                .map(move |(number, _)| format!("{name}:{}", number + 1))
        })
        .collect();
    assert!(strays.is_empty(), "unsafe outside its rooms: {strays:#?}");
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut silent = Vec::new();
    for (name, text) in rust_files("src") {
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = code(line);
            let opens = code.contains("unsafe {") || code.contains("unsafe impl");
            // The sentence may span some lines, and a statement may begin above its block.
            let above = lines[number.saturating_sub(6)..=number].iter().any(|line| line.contains("SAFETY:"));
            if opens && !above {
                silent.push(format!("{name}:{}", number + 1));
            }
        }
    }
    assert!(silent.is_empty(), "unsafe without a SAFETY comment: {silent:#?}");
}

#[test]
fn nothing_is_left_for_later() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["X", "XX"].concat()];
    let left: Vec<String> = ["src", "tests", "examples"]
        .into_iter()
        .flat_map(rust_files)
        .flat_map(|(name, text)| {
            text.lines()
                .enumerate()
                .filter(|(_, line)| words.iter().any(|word| line.contains(word.as_str())))
                .map(|(number, _)| format!("{name}:{}", number + 1))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(left.is_empty(), "left for later: {left:#?}");
}

#[test]
fn no_files_import_each_other_in_a_circle_and_no_type_name_occurs_twice() {
    let script = root().join("scripts/structure.py");
    let output = Command::new(&script).args(["--circles", "--doubles"]).output().unwrap();
    let numbers = String::from_utf8(output.stdout).unwrap();
    for row in ["import circles", "type names that occur twice"] {
        let line = numbers.lines().find(|line| line.starts_with(row)).unwrap_or_default();
        assert!(line.ends_with(" 0"), "{numbers}");
    }
}

/// Name and doc comment of each function of the header.
fn functions() -> Vec<(String, String)> {
    let header = fs::read_to_string(root().join("include/kvkeep.h")).unwrap();
    let (_, declarations) = header.split_once("extern \"C\" {").unwrap();
    let mut functions = Vec::new();
    let mut doc = String::new();
    for line in declarations.lines() {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
            doc.push('\n');
        } else if !line.starts_with([' ', '#', '}'])
            && let Some((before, _)) = line.split_once('(')
        {
            let name = before.rsplit([' ', '*']).next().unwrap();
            functions.push((name.to_owned(), std::mem::take(&mut doc)));
        }
    }
    functions
}

#[test]
fn the_header_stays_small() {
    let count = functions().len();
    assert!(
        (30..FUNCTIONS_MAX).contains(&count),
        "the header has {count} functions, fewer than {FUNCTIONS_MAX} allowed"
    );
}

#[test]
fn every_function_of_the_header_is_documented() {
    let bare: Vec<String> =
        functions().into_iter().filter(|(_, doc)| doc.trim().len() < 20).map(|(name, _)| name).collect();
    assert!(bare.is_empty(), "functions without words: {bare:#?}");
}

#[test]
fn every_function_of_the_header_says_since_when_it_is_there() {
    let today: Vec<u32> = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
    let since = |doc: &str| {
        let version = doc.lines().last()?.trim().strip_prefix("Since: ")?.strip_suffix('.')?;
        let (major, minor) = version.split_once('.')?;
        Some(vec![major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?])
    };
    let without: Vec<String> = functions()
        .into_iter()
        .filter(|(_, doc)| since(doc).is_none_or(|version| version[..] > today[..2]))
        .map(|(name, _)| name)
        .collect();
    assert!(
        without.is_empty(),
        "functions whose last line is no \"Since: major.minor.\" of a version until today: {without:#?}"
    );
}

#[test]
fn every_function_that_can_fail_says_how() {
    // These fail only as the conventions at the head of the header say for every function, or cannot fail.
    let general = [
        "kvkeep_version",
        "kvkeep_abi_version",
        "kvkeep_status_name",
        "kvkeep_last_error",
        "kvkeep_extra_count",
        "kvkeep_close",
        "kvkeep_get_event_fd",
        "kvkeep_take_completions",
        "kvkeep_query_stats",
        "kvkeep_get_metrics",
        "kvkeep_explain_misses",
    ];
    let silent: Vec<String> = functions()
        .into_iter()
        .filter(|(name, doc)| !doc.contains("Errors:") && !general.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "functions without words on errors: {silent:#?}");
}

/// The pages that people read. What changed is told in the words of its time.
fn pages() -> Vec<(String, String)> {
    let mut pages = files("docs", &["md"]);
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"] {
        pages.push((name.to_owned(), fs::read_to_string(root().join(name)).unwrap()));
    }
    pages.extend(files("bindings", &["md"]));
    pages
}

/// The words of a text that begin with `kvkeep_` or `KVKEEP_`.
fn own_words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.to_ascii_lowercase().starts_with("kvkeep_") && !word.ends_with('_'))
}

#[test]
fn the_readme_fits_in_a_few_screens() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines, {README_LINES_MAX} are allowed");
}

#[test]
fn pages_link_only_to_what_is_there() {
    let mut dead = Vec::new();
    for (name, text) in pages() {
        let folder = root().join(&name).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if !target.contains("://") && !path.is_empty() && !folder.join(path).exists() {
                dead.push(format!("{name}: {target}"));
            }
        }
    }
    assert!(dead.is_empty(), "links to nothing: {dead:#?}");
}

#[test]
fn pages_name_only_files_that_are_there() {
    const FOLDERS: [&str; 13] = [
        "src/",
        "tests/",
        "c_tests/",
        "docs/",
        "bindings/",
        "scripts/",
        "examples/",
        "bench/",
        "benches/",
        "e2e/",
        "cmake/",
        "include/",
        "fuzz/",
    ];
    let mut dead = Vec::new();
    for (name, text) in pages() {
        // What stands between two backticks of one line.
        let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        // In the pages of bindings, `tests/` is their own.
        let near = root().join(&name).parent().unwrap().to_owned();
        for quoted in quoted {
            let is_path =
                FOLDERS.iter().any(|folder| quoted.starts_with(folder)) && !quoted.contains([' ', '…', '*', '<']);
            if is_path && !root().join(quoted).exists() && !near.join(quoted).exists() {
                dead.push(format!("{name}: {quoted}"));
            }
        }
    }
    assert!(dead.is_empty(), "files that are not there: {dead:#?}");
}

#[test]
fn pages_name_only_what_the_header_and_the_metrics_have() {
    let header = fs::read_to_string(root().join("include/kvkeep.h")).unwrap();
    let mut known: HashSet<&str> = own_words(&header).collect();
    // Names of the environment, and of the build.
    let others: Vec<(String, String)> = ["tests", "src", "bindings", "scripts", "bench", "c_tests"]
        .iter()
        .flat_map(|folder| files(folder, &["rs", "py", "sh", "c", "h", "txt"]))
        .collect();
    known.extend(others.iter().flat_map(|(_, text)| own_words(text)).filter(|word| word.starts_with("KVKEEP_")));
    let metrics =
        ["src/prometheus.rs", "src/misses/miss_text.rs"].map(|path| fs::read_to_string(root().join(path)).unwrap());
    let metrics = metrics.concat();
    let is_metric = |word: &str| {
        let name = word.trim_start_matches("kvkeep_");
        let value = name.strip_suffix("_total").unwrap_or(name);
        let of_report = name.strip_prefix("backend_").or(name.strip_prefix("space_")).unwrap_or(name);
        // Times are milliseconds in the header.
        let in_ms = value.strip_suffix("_seconds").map_or(value.to_owned(), |time| format!("{time}_ms"));
        [
            format!("\n    {value} \""),
            format!("\n    {in_ms} \""),
            format!("\"{word}\""),
            format!("\n    {of_report} \""),
        ]
        .iter()
        .any(|text| metrics.contains(text))
    };
    let mut dead = Vec::new();
    for (name, text) in pages() {
        let strange = own_words(&text).filter(|word| !known.contains(word) && !is_metric(word));
        dead.extend(strange.map(|word| format!("{name}: {word}")));
    }
    assert!(dead.is_empty(), "names that are not there: {dead:#?}");
}
