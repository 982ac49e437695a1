//! Tests that cannot run where they are.

use std::fmt::Display;
use std::io::Write as _;

/// Says that `test`, or a part of one, cannot run here, and notes it in the file that `KVKEEP_SKIPPED` names: `make test` prints that
/// file at its end. A test that needs more than the system must allow is `#[ignore]`d instead.
pub fn skipped(test: &str, why: impl Display) {
    let line = format!("{test}: {}\n", why.to_string().replace('\n', " "));
    eprint!("skipped: {line}");
    if let Some(list) = std::env::var_os("KVKEEP_SKIPPED") {
        // One write, since other tests and processes append to it too.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of KVKEEP_SKIPPED can be written");
    }
}
