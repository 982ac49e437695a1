//! Failures of a disk that no test can have for real.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::{EngineKind, Fs, FsOptions};
use crate::error::{KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION};
use crate::l2::testing::{load, lookup, store};
use crate::l2::{Backend, Found, Health, Stored};

const LEN: usize = 10_000;

/// An open directory for each engine that this kernel allows.
fn everywhere(test: impl Fn(&Arc<Fs>)) {
    for engine in [EngineKind::Pool, EngineKind::Auto] {
        let dir = tempfile::tempdir().unwrap();
        test(&Fs::open(FsOptions { engine, ..FsOptions::new(dir.path()) }).unwrap());
    }
}

#[test]
fn a_read_that_the_disk_refuses_is_a_miss_of_that_read_and_nothing_more() {
    everywhere(|fs| {
        for number in 0..20 {
            store(&**fs, number, LEN).unwrap();
        }
        for errno in [libc::EIO, libc::ESTALE, libc::EACCES, libc::EPERM, libc::ENOMEM, libc::EBADMSG, libc::EUCLEAN] {
            *fs.core.reads_fail_with.lock() = Some(errno);
            for number in 0..3 {
                let error = load(&**fs, number, LEN).0.unwrap_err();
                let expected = if errno == libc::EACCES { KVKEEP_ERR_PERMISSION } else { KVKEEP_ERR_IO };
                assert!(error.status == expected || errno == libc::EPERM, "{error}");
                assert!(error.message.starts_with(&std::io::Error::from_raw_os_error(errno).to_string()), "{error}");
                assert!(error.message.len() < 128 && error.message.ends_with("-0-0"), "{error}");
            }
            *fs.core.reads_fail_with.lock() = None;
            assert!(load(&**fs, 0, LEN).0.is_ok());
            assert_eq!(fs.health(), Health::Good);
        }
        assert_eq!((fs.quarantined(), fs.usage().objects), (0, 20));
        let numbers: Vec<u32> = (0..20).collect();
        assert_eq!(lookup(&**fs, &numbers, true).unwrap(), vec![Found::Present(LEN as u64); 20]);
        assert_eq!(store(&**fs, 1, LEN).unwrap(), Stored::Already);
        assert!((0..20).all(|number| load(&**fs, number, LEN).0.is_ok()));
    });
}

#[test]
fn many_reads_that_fail_in_a_row_make_the_backend_unhealthy_until_one_succeeds() {
    everywhere(|fs| {
        store(&**fs, 1, LEN).unwrap();
        *fs.core.reads_fail_with.lock() = Some(libc::EIO);
        for _ in 0..8 {
            assert_eq!(fs.health(), Health::Good);
            load(&**fs, 1, LEN).0.unwrap_err();
        }
        let Health::Bad(why) = fs.health() else { panic!("healthy after eight failures") };
        assert!(why.contains("reads fail: Input/output error"), "{why}");
        *fs.core.reads_fail_with.lock() = None;
        assert!(load(&**fs, 1, LEN).0.is_ok());
        assert_eq!(fs.health(), Health::Good);
    });
}
