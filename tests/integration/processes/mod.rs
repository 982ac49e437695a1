//! A daemon and its clients as real processes: who shares, who dies, who lies.
#![allow(unsafe_code, reason = "what a mapping allows is asked of the kernel itself")]

mod copying;
mod death;
mod malice;
mod parallel;
mod parting;
mod restart;
mod security;
mod shapes;
mod staging;
mod stopped;

use serde::{Deserialize, Serialize};

use crate::support::process::{self, DaemonPart, Process};

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
    Engine(shapes::Engine),
}

impl process::Part for Part {
    const MODULE: &str = module_path!();
}

#[test]
#[ignore = "the other tests start it in processes"]
fn plays_its_part() {
    match process::part() {
        Part::Daemon(part) => part.play(),
        Part::Scheduler(part) => part.play(),
        Part::Worker(part) => part.play(),
        Part::Busy(part) => part.play(),
        Part::Attached(part) => part.play(),
        Part::Copying(part) => part.play(),
        Part::Hanging(part) => part.play(),
        Part::Caller(part) => part.play(),
        Part::Starved(part) => part.play(),
        Part::Reader(part) => part.play(),
        Part::Stranger(part) => part.play(),
        Part::Stager(part) => part.play(),
        Part::Engine(part) => part.play(),
    }
}

/// Sets how many descriptors a process may have, 0 for this one, and gives how many it might have before.
fn allow_descriptors(pid: u32, most: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain calls on a struct of ours.
    unsafe {
        let pid = pid as libc::pid_t;
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, most);
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()), 0);
        before
    }
}

/// The numbers of a process's open descriptors.
fn descriptors(pid: u32) -> Vec<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Starts a daemon that serves by the time this returns.
fn daemon(part: &DaemonPart) -> Process {
    let mut process = Process::start(&Part::Daemon(part.clone()));
    process.expect("serving");
    process
}
