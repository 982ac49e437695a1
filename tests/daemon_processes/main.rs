//! A daemon and its clients as real processes: who shares, who dies, who lies.
#![allow(unsafe_code, reason = "what a mapping allows is asked of the kernel itself")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../daemon_common/mod.rs"]
mod common;
mod copying;
mod death;
mod malice;
mod parallel;
mod parting;
mod restart;
mod security;
mod staging;

use common::DaemonPart;
use serde::{Deserialize, Serialize};

/// What a process of these tests does.
#[derive(Serialize, Deserialize)]
enum Part {
    Daemon(DaemonPart),
    Scheduler(parallel::Scheduler),
    Worker(parallel::Worker),
    Busy(death::Busy),
    Attached(death::Attached),
    Copying(copying::Copying),
    Hanging(death::Hanging),
    Caller(restart::Caller),
    Starved(parting::Starved),
    Reader(security::Reader),
    Stranger(security::Stranger),
    Stager(staging::Stager),
}

#[test]
fn plays_its_part() {
    match common::part() {
        None => {}
        Some(Part::Daemon(part)) => part.play(),
        Some(Part::Scheduler(part)) => part.play(),
        Some(Part::Worker(part)) => part.play(),
        Some(Part::Busy(part)) => part.play(),
        Some(Part::Attached(part)) => part.play(),
        Some(Part::Copying(part)) => part.play(),
        Some(Part::Hanging(part)) => part.play(),
        Some(Part::Caller(part)) => part.play(),
        Some(Part::Starved(part)) => part.play(),
        Some(Part::Reader(part)) => part.play(),
        Some(Part::Stranger(part)) => part.play(),
        Some(Part::Stager(part)) => part.play(),
    }
}

/// Starts a daemon that serves by the time this returns.
fn daemon(part: &DaemonPart) -> common::Process {
    let mut process = common::Process::start(&Part::Daemon(part.clone()));
    process.expect("serving");
    process
}
