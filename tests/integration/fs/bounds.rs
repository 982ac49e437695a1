//! How full the directory gets: one eviction for one need, neighbours in one directory, a smaller capacity at a restart.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, mpsc};

use kvkeep::l2::fs::{EngineKind, Fs, FsOptions};
use kvkeep::l2::{Backend, Found, Health, Stored};
use kvkeep::log::{Log, LogLevel};

use crate::support::fs::*;

const BIG: usize = 1 << 20;
const SMALL: usize = 4096;
const LEN: usize = 10_000;

fn bounded(dir: &Path, engine: EngineKind, capacity: u64) -> Arc<Fs> {
    Fs::open(FsOptions { capacity, ..options(dir, engine) }).unwrap()
}

fn written(results: Vec<kvkeep::error::Result<Stored>>) {
    assert!(results.into_iter().all(|result| result.unwrap() == Stored::Written));
}

fn objects(numbers: std::ops::Range<u64>, len: usize) -> Vec<(u64, usize)> {
    numbers.map(|number| (number, len)).collect()
}

fn on_disk(dir: &Path) -> u64 {
    files(dir).iter().map(|(_, len)| len.next_multiple_of(4096)).sum()
}

#[test]
fn stores_under_way_together_evict_what_they_need_and_no_more() {
    for engine in engines() {
        for count in [1, 8, 64] {
            let dir = tempfile::tempdir().unwrap();
            let fs = bounded(dir.path(), engine, 16 * disk(BIG));
            written(store_all(&fs, &objects(0..16, BIG)));
            written(store_all(&fs, &objects(100..100 + count, SMALL)));
            assert_eq!(fs.usage().evicted, 1, "for {count} small objects");
            // The room that one large object left is enough for 128.
            written(store_all(&fs, &objects(200..200 + 128 - count, SMALL)));
            assert_eq!((fs.usage().evicted, fs.usage().objects), (1, 15 + 128));
            assert_eq!(on_disk(dir.path()), 15 * disk(BIG) + 128 * disk(SMALL));
            // And large ones evict no more small ones than they need, whatever is under way.
            written(store_all(&fs, &objects(400..408, BIG)));
            assert_eq!(fs.usage().objects, 15 + 128 + 8 - (fs.usage().evicted - 1));
            assert!(on_disk(dir.path()) <= 16 * disk(BIG));
            assert!(on_disk(dir.path()) > 15 * disk(BIG), "{} bytes are left", on_disk(dir.path()));
        }
    }
}

#[test]
fn neighbours_in_one_directory_keep_each_others_objects() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let capacity = 120 * disk(LEN);
        let (one, two) = (bounded(dir.path(), engine, capacity), bounded(dir.path(), engine, capacity));
        written(store_all(&one, &objects(0..120, LEN)));
        written(store_all(&two, &objects(1000..1120, LEN)));
        // What the other stored comes under the capacity when it is found, in place of the oldest of its own.
        let numbers: Vec<u64> = (0..60).collect();
        assert_eq!(lookup(&two, &numbers, true).unwrap(), vec![Found::Present(LEN as u64); 60]);
        unpin(&two, &numbers);
        wait_until(&two, |usage| usage.bytes <= capacity);
        assert_eq!((two.usage().evicted, two.usage().objects), (60, 120));
        let lost: HashSet<u64> = (1000..1120).filter(|number| !file(dir.path(), *number).exists()).collect();
        assert!(lost.len() <= 60 && (0..120).all(|number| file(dir.path(), number).exists()));
        // Four stores evict four objects.
        written(store_all(&two, &objects(2000..2004, LEN)));
        assert_eq!(two.usage().evicted, 64);
        two.close();
        assert_eq!(files(dir.path()).len(), 120 + 120 - 64 + 4);
        (0..60).for_each(|number| check(&one, number, LEN));
    }
}

#[test]
fn a_smaller_capacity_is_worked_off_oldest_first_while_stores_go_on() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = bounded(dir.path(), engine, 0);
        for first in (0..500).step_by(10) {
            written(store_all(&fs, &objects(first..first + 10, LEN)));
        }
        fs.close();
        let capacity = 50 * disk(LEN);
        let fs = bounded(dir.path(), engine, capacity);
        for number in 1000..1010 {
            assert_eq!(store(&fs, number, LEN).unwrap(), Stored::Written);
            assert!(fs.usage().bytes <= 500 * disk(LEN));
        }
        wait_until(&fs, |usage| usage.bytes <= capacity);
        assert_eq!((fs.usage().evicted, fs.usage().objects), (460, 50));
        (1000..1010).for_each(|number| check(&fs, number, LEN));
        (460..500).for_each(|number| check(&fs, number, LEN));
        fs.close();
        assert_eq!(on_disk(dir.path()), capacity);
        // Closed before it is done, it goes on at the next open.
        drop(bounded(dir.path(), engine, disk(LEN)));
        let fs = bounded(dir.path(), engine, disk(LEN));
        wait_until(&fs, |usage| usage.objects == 1);
    }
}

#[test]
fn a_surplus_is_told_of_until_it_is_worked_off() {
    for engine in engines() {
        let dir = tempfile::tempdir().unwrap();
        let fs = bounded(dir.path(), engine, 0);
        for first in (0..1000).step_by(100) {
            written(store_all(&fs, &objects(first..first + 100, 1)));
        }
        fs.close();
        let (to, lines) = mpsc::channel();
        let log = Log::new(LogLevel::Info, move |_, line: &str| to.send(line.to_owned()).unwrap_or_default());
        let capacity = 10 * disk(1);
        let fs = Fs::open(FsOptions { capacity, log, ..options(dir.path(), engine) }).unwrap();
        // Each line is said with the state that it tells of.
        let until = |words: &str| loop {
            let line = lines.recv_timeout(WATCHDOG).unwrap();
            if line.contains(words) {
                return line;
            }
        };
        let line = until("above its bounds: the oldest objects are evicted in the background");
        assert!(line.contains("MiB above"), "{line}");
        let line = until("is within its bounds again");
        assert!(line.contains("990 objects were evicted"), "{line}");
        assert_eq!((fs.health(), fs.usage().objects), (Health::Good, 10));
    }
}
