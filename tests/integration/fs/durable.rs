//! Stores and deletions that are synced before they are answered.

use kvkeep::l2::fs::{Durability, Fs, FsOptions};
use kvkeep::l2::{Backend, Found, Stored};

use crate::support::fs::*;

const LEN: usize = 20_000;
/// More than wait to be synced at once.
const OBJECTS: u64 = 200;
const KEPT: u64 = 100;

#[test]
fn what_is_synced_is_stored_evicted_and_deleted_as_anything_else() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (capacity, durability) = (KEPT * disk(LEN), Durability::Power);
            Fs::open(FsOptions { capacity, durability, ..options(dir.path(), engine) }).unwrap()
        };
        let (fs, other) = (open(), open());
        let objects: Vec<(u64, usize)> = (0..OBJECTS).map(|number| (number, LEN)).collect();
        for stored in store_all(&fs, &objects) {
            assert_eq!(stored.unwrap(), Stored::Written);
        }
        assert_eq!(fs.usage().objects, KEPT);
        let kept: Vec<u64> = (0..OBJECTS).filter(|&number| cached(&fs, number) == Found::Present(LEN as u64)).collect();
        unpin(&fs, &kept);
        kept.iter().for_each(|&number| check(&fs, number, LEN));
        // Another process has it already, and its name and bytes are synced for this one.
        for stored in store_all(&other, &kept.iter().map(|&number| (number, LEN)).collect::<Vec<_>>()) {
            assert_eq!(stored.unwrap(), Stored::Already);
        }
        other.close();
        assert_eq!(deleted(&fs, &kept), KEPT);
        fs.close();
        assert_eq!(open().usage().objects, 0);
        assert!(files(dir.path()).is_empty());
    }
}
