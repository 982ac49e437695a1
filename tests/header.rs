//! The committed header and version script are those that the sources generate, and the layout file knows all of the header.
//!
//! `KVKEEP_UPDATE_HEADER=1 cargo test --test header` rewrites both.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn is_fresh(generated: &str, committed: &str) {
    let fresh = fs::read_to_string(Path::new(env!("OUT_DIR")).join(generated)).unwrap();
    if std::env::var_os("KVKEEP_UPDATE_HEADER").is_some_and(|value| value == "1") {
        fs::write(root(committed), &fresh).unwrap();
    }
    let old = fs::read_to_string(root(committed)).unwrap();
    let differs = old.lines().zip(fresh.lines()).position(|(old, fresh)| old != fresh);
    assert!(
        old == fresh,
        "{committed} differs from the sources at line {}: run KVKEEP_UPDATE_HEADER=1 cargo test --test header",
        differs.map_or(old.lines().count().min(fresh.lines().count()), |line| line) + 1
    );
}

#[test]
fn the_committed_header_is_fresh() {
    is_fresh("kvkeep.h", "include/kvkeep.h");
}

#[test]
fn the_committed_version_script_is_fresh() {
    is_fresh("kvkeep.map", "cmake/kvkeep.map");
}

/// Names of the structs of the header, each with its fields.
fn structs(header: &str) -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    let mut fields: Option<Vec<String>> = None;
    for line in header.lines() {
        if line == "typedef struct {" {
            fields = Some(Vec::new());
        } else if let Some(name) = line.strip_prefix("} ").and_then(|rest| rest.strip_suffix(';')) {
            if let Some(fields) = fields.take() {
                all.push((name.to_owned(), fields));
            }
        } else if let Some(fields) = &mut fields
            && let Some(declaration) = line.trim().strip_suffix(';')
            && !declaration.starts_with("///")
        {
            let name = declaration.split('[').next().unwrap().rsplit([' ', '*']).next().unwrap();
            fields.push(name.to_owned());
        }
    }
    all
}

#[test]
fn the_layout_file_names_every_struct_and_field() {
    let header = fs::read_to_string(root("include/kvkeep.h")).unwrap();
    let golden = fs::read_to_string(root("c_tests/layout.golden")).unwrap();
    let names: Vec<&str> = golden.lines().filter_map(|line| line.split(' ').next()).collect();
    let structs = structs(&header);
    assert!(structs.len() >= 10, "the header has structs");
    let expected: Vec<String> = structs
        .iter()
        .flat_map(|(name, fields)| {
            std::iter::once(name.clone()).chain(fields.iter().map(move |field| format!("{name}.{field}")))
        })
        .collect();
    for name in &expected {
        assert!(names.contains(&name.as_str()), "{name} is missing from c_tests/layout.c and layout.golden");
    }
    assert_eq!(names.len(), expected.len(), "layout.golden names what the header does not have");
}
