//! The tests of the library, the daemon and the command that can share one process, in one program because linking is what building
//! tests costs. They run side by side: a test that changes what belongs to the process, or needs the machine for itself, is one of the
//! other programs beside this one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod command;
mod cuda;
mod daemon;
mod device;
mod embedded;
mod fs;
mod fuzz;
mod http;
mod memory_limit;
mod monitoring;
mod page;
mod policy_trace;
mod processes;
mod promises;
mod recorded_trace;
mod redis;
#[cfg(feature = "s3")]
mod s3;
mod serve;
mod store_wait;
mod stream;
