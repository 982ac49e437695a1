//! Names the shared library and writes the C header to the build's own directory, where a test compares it with
//! `include/kvkeep.h`.
#![allow(clippy::expect_used)]
use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/ffi");
    println!("cargo::rerun-if-changed=src/abi.rs");
    println!("cargo::rerun-if-changed=src/events.rs");
    println!("cargo::rerun-if-changed=src/error.rs");
    println!("cargo::rerun-if-changed=src/key.rs");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    let [major, minor, patch] =
        ["MAJOR", "MINOR", "PATCH"].map(|part| env::var(format!("CARGO_PKG_VERSION_{part}")).expect("set by cargo"));
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libkvkeep.so.{major}.{minor}");

    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo")).join("kvkeep.h");
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
    const SOURCES: [&str; 13] = [
        "ffi/version.rs",
        "ffi/options.rs",
        "error.rs",
        "key.rs",
        "abi.rs",
        "events.rs",
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
    builder.with_config(config).generate().expect("the header generates").write_to_file(out);
}
