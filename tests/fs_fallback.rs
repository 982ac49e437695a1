//! Where the kernel refuses io_uring, `engine=auto` means the pool, and `engine=uring` says what to do.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

mod fs_common;

use std::io;

use fs_common::*;
use kvkeep::error::KVKEEP_ERR_UNSUPPORTED;
use kvkeep::l2::Stored;
use kvkeep::l2::fs::{EngineKind, Fs};

/// Has the kernel answer EPERM to the system call `number`, whenever this thread or one that it starts makes it.
fn refuse(number: libc::c_long) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Offset 0 of what a filter sees is the number of the system call.
    let filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
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

#[test]
fn what_refuses_io_uring_at_any_step_leaves_the_pool() {
    if engines().len() == 1 {
        return eprintln!("skipped: io_uring is refused here anyway");
    }
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_register, libc::SYS_io_uring_enter] {
        // A filter stays for the life of its thread.
        let thread = std::thread::spawn(move || {
            if let Err(error) = refuse(number) {
                return eprintln!("skipped: this process may not filter its system calls ({error})");
            }
            let dir = tempfile::tempdir().unwrap();
            let error = Fs::open(options(dir.path(), EngineKind::Uring)).err().expect("a refusal");
            assert_eq!(error.status, KVKEEP_ERR_UNSUPPORTED);
            assert!(error.message.contains("engine=pool"), "{error}");
            let fs = open(dir.path(), EngineKind::Auto);
            assert_eq!(fs.engine(), "pool");
            assert_eq!(store(&fs, 1, 100_000).unwrap(), Stored::Written);
            check(&fs, 1, 100_000);
        });
        thread.join().unwrap();
    }
    // The filters are gone with their threads.
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(open(dir.path(), EngineKind::Auto).engine(), "uring");
}
