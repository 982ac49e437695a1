//! Names the shared library and writes the C header and the version script to the build's own directory, where a test compares
//! them with `include/kvkeep.h` and `cmake/kvkeep.map`.
#![allow(clippy::expect_used)]
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=src/abi.rs");
    println!("cargo::rerun-if-changed=src/backend_state.rs");
    println!("cargo::rerun-if-changed=src/misses/miss_report.rs");
    println!("cargo::rerun-if-changed=src/events.rs");
    println!("cargo::rerun-if-changed=src/error.rs");
    println!("cargo::rerun-if-changed=src/key.rs");
    println!("cargo::rerun-if-changed=src/l2/plugin/vtable.rs");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    let [major, minor, patch] =
        ["MAJOR", "MINOR", "PATCH"].map(|part| env::var(format!("CARGO_PKG_VERSION_{part}")).expect("set by cargo"));
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libkvkeep.so.{major}.{minor}");

    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml reads");
    let version = format!(
        r#"
/* Version of the library that this header was made with. Of two, the later has the greater number. */
#define KVKEEP_VERSION_MAJOR {major}
#define KVKEEP_VERSION_MINOR {minor}
#define KVKEEP_VERSION_PATCH {patch}
#define KVKEEP_VERSION "{major}.{minor}.{patch}"
#define KVKEEP_VERSION_NUMBER (KVKEEP_VERSION_MAJOR * 1000000 + KVKEEP_VERSION_MINOR * 1000 + KVKEEP_VERSION_PATCH)
"#
    );
    config.after_includes = Some(format!("{version}{}", config.after_includes.unwrap_or_default()));
    // In the order of the header. Other sources have nothing to say in it.
    const SOURCES: [&str; 16] = [
        "ffi/version.rs",
        "ffi/options.rs",
        "error.rs",
        "key.rs",
        "abi.rs",
        "backend_state.rs",
        "misses/miss_report.rs",
        "events.rs",
        "l2/plugin/vtable.rs",
        "ffi/handle.rs",
        "ffi/cache.rs",
        "ffi/session.rs",
        "ffi/object.rs",
        "ffi/prefetch.rs",
        "ffi/device.rs",
        "ffi/observe.rs",
    ];
    let builder = SOURCES
        .iter()
        .fold(cbindgen::Builder::new(), |builder, source| builder.with_src(root.join("src").join(source)));
    let header = out.join("kvkeep.h");
    builder.with_config(config).generate().expect("the header generates").write_to_file(&header);
    let header = fs::read_to_string(header).expect("was just written");
    fs::write(out.join("kvkeep.map"), version_script(&header)).expect("beside the header");
}

/// The linker's version script: each function of the header has the version that it says it is there since.
fn version_script(header: &str) -> String {
    let mut nodes: BTreeMap<(u32, u32), Vec<String>> = BTreeMap::new();
    let mut since = None;
    // A long declaration begins on a line of its own.
    for line in header.replace("\nKVKEEP_API\n", "\nKVKEEP_API ").lines() {
        if let Some(version) = line.strip_prefix("/// Since: ") {
            let (major, minor) = version.trim_end_matches('.').split_once('.').expect("major.minor");
            since = Some((major.parse().expect("a number"), minor.parse().expect("a number")));
        } else if let Some(declaration) = line.strip_prefix("KVKEEP_API ") {
            let (before, _) = declaration.split_once('(').expect("a function");
            let name = before.rsplit([' ', '*']).next().expect("of a name");
            nodes.entry(since.take().expect("every function says Since")).or_default().push(name.to_owned());
        }
    }
    let mut script = String::from("# Versions of the library's symbols. Generated with the header: do not edit.\n");
    let mut former = String::new();
    for ((major, minor), mut names) in nodes {
        names.sort_unstable();
        let names: String = names.iter().map(|name| format!("        {name};\n")).collect();
        let local = if former.is_empty() { "    local:\n        *;\n" } else { "" };
        let node = format!("KVKEEP_{major}.{minor}");
        script += &format!("{node} {{\n    global:\n{names}{local}}}{former};\n");
        former = format!(" {node}");
    }
    script
}
