//! What tests share: servers, processes, stores, layouts, random numbers.
#![allow(dead_code, reason = "each test binary uses what it needs")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

pub mod certificates;
pub mod daemon;
pub mod device;
pub mod fs;
pub mod process;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod s3;
pub mod skip;
pub mod tcp_proxy;

/// The name under which the test harness knows the test `name` of the module whose `module_path!()` this is: a process that starts
/// its own program again asks for one test by it.
pub fn test_name(module: &str, name: &str) -> String {
    match module.split_once("::") {
        Some((_, module)) => format!("{module}::{name}"),
        None => name.to_owned(),
    }
}
