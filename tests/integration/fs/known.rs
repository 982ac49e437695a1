//! The seal of a small object is read once: what is known of it stands for it from then on, and is never taken for more than it is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvkeep::arena::Buffer;
use kvkeep::error::KVKEEP_ERR_CORRUPT;
use kvkeep::l2::Found;
use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::object_header::Header;

use crate::support::fs::*;

const HEADER: usize = 4096;
/// A tail of a block or none, in whole blocks, and the largest that counts as small.
const SMALL: [usize; 4] = [1, 4096, 10_000, 65_536];

fn everywhere(test: impl Fn(&Path, EngineKind, bool)) {
    for engine in engines() {
        for direct in [true, false] {
            test(tempfile::tempdir().unwrap().path(), engine, direct);
        }
    }
}

fn start(dir: &Path, engine: EngineKind, direct: bool) -> std::sync::Arc<Fs> {
    Fs::open(FsOptions { direct, ..options(dir, engine) }).unwrap()
}

/// Changes a byte of a file in place.
fn damage(path: &Path, at: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at as u64).unwrap();
}

fn refused(fs: &Fs, number: u64) -> String {
    let error = fetch(fs, number).unwrap_err();
    assert_eq!(error.status, KVKEEP_ERR_CORRUPT, "{error}");
    error.message
}

#[test]
fn the_header_of_what_was_stored_or_loaded_here_is_not_read_again() {
    everywhere(|dir, engine, direct| {
        for len in SMALL {
            let dir = &dir.join(len.to_string());
            fs::create_dir(dir).unwrap();
            let here = start(dir, engine, direct);
            store(&here, 0, len).unwrap();
            damage(&file(dir, 0), 3);
            check(&here, 0, len);
            damage(&file(dir, 0), 3);
            let later = start(dir, engine, direct);
            check(&later, 0, len);
            damage(&file(dir, 0), 3);
            check(&later, 0, len);
            let unknowing = start(dir, engine, direct);
            assert!(refused(&unknowing, 0).contains("no kvkeep header"));
        }
    });
}

#[test]
fn what_was_stored_beside_the_object_loaded_before_is_read_with_its_header_from_a_disk() {
    everywhere(|dir, engine, direct| {
        let before = start(dir, engine, direct);
        for number in 0..3 {
            store(&before, number, 4096).unwrap();
        }
        let fs = start(dir, engine, direct);
        (0..3).for_each(|number| check(&fs, number, 4096));
        damage(&file(dir, 2), 3);
        check(&fs, 2, 4096);
        check(&fs, 1, 4096);
        if fs.is_direct() {
            assert!(refused(&fs, 2).contains("no kvkeep header"));
        } else {
            check(&fs, 2, 4096);
        }
    });
}

#[test]
fn without_checksums_the_header_is_read_every_time_and_no_byte_is_summed() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        for (number, len) in (0..).zip(SMALL) {
            store(&fs, number, len).unwrap();
            let load = || {
                let size = lookup(&fs, &[number], false).unwrap()[0];
                assert_eq!(size, Found::Present(len as u64));
                let loaded = load_verified(&fs, vec![(number, Buffer::heap(len).unwrap())], false).remove(0);
                unpin(&fs, &[number]);
                loaded
            };
            damage(&file(dir, number), HEADER);
            assert!(load().unwrap().bytes() != payload(number, len).bytes());
            damage(&file(dir, number), HEADER);
            damage(&file(dir, number), 3);
            assert_eq!(load().err().map(|error| error.status), Some(KVKEEP_ERR_CORRUPT));
        }
    });
}

#[test]
fn the_header_of_what_is_large_is_read_every_time() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        store(&fs, 1, 65_537).unwrap();
        check(&fs, 1, 65_537);
        damage(&file(dir, 1), 3);
        assert!(refused(&fs, 1).contains("no kvkeep header"));
    });
}

#[test]
fn p7_no_byte_of_a_known_object_changes_unnoticed() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        for (number, len) in (0..).zip(SMALL) {
            store(&fs, number, len).unwrap();
            check(&fs, number, len);
            for at in [0, len / 2, len - 1] {
                damage(&file(dir, number), HEADER + at);
                assert!(refused(&fs, number).contains("do not match their checksum"));
                damage(&file(dir, number), HEADER + at);
                check(&fs, number, len);
            }
        }
    });
}

#[test]
fn p7_a_known_object_that_was_cut_says_where() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        for (number, left) in [(0, 9_000), (1, 5_000), (2, HEADER), (3, 100), (4, 0)] {
            store(&fs, number, 10_000).unwrap();
            OpenOptions::new().write(true).open(file(dir, number)).unwrap().set_len(left as u64).unwrap();
            let why = refused(&fs, number);
            assert!(why.contains(&format!("ends after {left} of 14096 bytes")), "{why}");
        }
    });
}

/// Another process evicted the object and stored it anew: same tokens, other bytes, as GPUs compute them.
#[test]
fn an_object_that_another_process_wrote_anew_is_read_as_it_is() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        store(&fs, 1, 5_000).unwrap();
        check(&fs, 1, 5_000);
        let other: Buffer = payload(2, 5_000);
        let mut whole = vec![0; HEADER];
        let header = Header::new(&key(1), &LAYOUT, other.bytes(), true);
        whole[..header.0.len()].copy_from_slice(&header.0);
        whole.extend_from_slice(other.bytes());
        let path = file(dir, 1);
        fs::write(path.with_extension("new"), &whole).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        for _ in 0..2 {
            assert!(fetch(&fs, 1).unwrap() == other.bytes());
        }
        damage(&path, 3);
        assert!(fetch(&fs, 1).unwrap() == other.bytes(), "the new seal was not remembered");
    });
}

#[test]
fn p7_the_object_of_another_name_in_its_place_is_told() {
    everywhere(|dir, engine, direct| {
        let fs = start(dir, engine, direct);
        for number in [1, 2] {
            store(&fs, number, 5_000).unwrap();
        }
        fs::copy(file(dir, 2), file(dir, 1)).unwrap();
        assert!(refused(&fs, 1).contains("is that of key"));
        check(&fs, 2, 5_000);
    });
}
