//! Where the kernel refuses io_uring, `engine=auto` means the pool, and `engine=uring` says what to do.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvkeep::abi::Stats;
use kvkeep::config::NodeConfig;
use kvkeep::error::KVKEEP_ERR_UNSUPPORTED;
use kvkeep::l2::fs::{EngineKind, Fs};
use kvkeep::l2::{Backend as _, Stored};
use kvkeep::log::{Log, LogLevel};
use kvkeep::node::Node;

use crate::support::fs::*;
use crate::support::skip::skipped;

/// Has the kernel answer EPERM to the system call `number`, whenever this thread or one that it starts makes it.
fn refuse(number: libc::c_long) -> io::Result<()> {
    refuse_with(number, None)
}

/// The same, if its third argument is `third`.
fn refuse_with(number: libc::c_long, third: Option<u32>) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Offset 0 of what a filter sees is the number of the system call.
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, number as u32),
        // The lower half of that argument.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 32),
        step(
            libc::BPF_JMP | if third.is_some() { libc::BPF_JEQ } else { libc::BPF_JGE } | libc::BPF_K,
            0,
            1,
            third.unwrap_or(0),
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain calls; the program and its filter are live locals, which the kernel copies.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn no_filter(error: &io::Error) -> String {
    format!("this process may not filter its system calls ({error})")
}

#[test]
fn what_refuses_io_uring_at_any_step_leaves_the_pool() {
    if engines().len() == 1 {
        return skipped("what_refuses_io_uring_at_any_step_leaves_the_pool", "io_uring is refused here anyway");
    }
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_register, libc::SYS_io_uring_enter] {
        // A filter stays for the life of its thread.
        let thread = std::thread::spawn(move || {
            if let Err(error) = refuse(number) {
                return skipped("what_refuses_io_uring_at_any_step_leaves_the_pool", no_filter(&error));
            }
            let dir = tempfile::tempdir().unwrap();
            let error = Fs::open(options(dir.path(), EngineKind::Uring)).err().expect("a refusal");
            assert_eq!(error.status, KVKEEP_ERR_UNSUPPORTED);
            assert!(error.message.contains("engine=pool"), "{error}");
            let fs = open(dir.path(), EngineKind::Auto);
            assert_eq!((fs.engine(), fs.usage().io_uring_refused), ("pool", 1));
            assert_eq!(store(&fs, 1, 100_000).unwrap(), Stored::Written);
            check(&fs, 1, 100_000);
        });
        thread.join().unwrap();
    }
    // The filters are gone with their threads.
    let dir = tempfile::tempdir().unwrap();
    let fs = open(dir.path(), EngineKind::Auto);
    assert_eq!((fs.engine(), fs.usage().io_uring_refused), ("uring", 0));
}

#[test]
fn what_the_machine_refuses_is_said_once_and_counted() {
    let thread = std::thread::spawn(|| {
        for refused in
            [refuse(libc::SYS_io_uring_setup), refuse_with(libc::SYS_madvise, Some(libc::MADV_COLLAPSE as u32))]
        {
            if let Err(error) = refused {
                return skipped("what_the_machine_refuses_is_said_once_and_counted", no_filter(&error));
            }
        }
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let said = Arc::new(Mutex::new(Vec::new()));
        let says = said.clone();
        let log = Log::new(LogLevel::Info, move |_, line| says.lock().unwrap().push(line.to_owned()));
        let urls = dirs.iter().map(|dir| format!("fs://{}", dir.path().display())).collect();
        let node = Node::open(NodeConfig { log, backend_urls: urls, ..NodeConfig::new(8 << 20) }).unwrap();
        let lines = |word: &str| said.lock().unwrap().iter().filter(|line| line.contains(word)).count();
        let began = Instant::now();
        while lines("huge") == 0 {
            assert!(began.elapsed() < WATCHDOG, "nothing was said of huge pages");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut stats = Stats::default();
        node.stats(&mut stats);
        assert_eq!((stats.io_uring_refused, stats.huge_pages_refused), (2, 1));
        assert_eq!((stats.registrations_refused, stats.memlock_refused), (0, 0));
        node.close();
        assert_eq!((lines("io_uring is refused"), lines("huge")), (2, 1), "one line for each backend, one for L1");
    });
    thread.join().unwrap();
}
