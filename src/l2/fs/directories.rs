//! Directories take room too, and count under the capacity. Empty ones are taken away.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, mkdirat, statat, unlinkat};
use rustix::io::Errno;

use super::object_io::Core;
use super::path::{self, QUARANTINE, TMP};
use super::recover;
use crate::key::{ObjectKey, SpaceTag, hex};

/// Directories of more than this part of the capacity are taken away as soon as they are empty, others now and then.
const CAPACITY_SHARE: u64 = 16;

/// Directories do not count under a capacity that those of one space could fill: it is one of objects alone.
const CAPACITY_MIN: u64 = 4 << 20;

/// Bytes of disk of the directories.
#[derive(Default)]
pub struct Directories {
    known: Mutex<Known>,
    /// They are much of the capacity.
    matter: AtomicBool,
    /// Shards that stores have made and have not put their files into yet: they stay, though they are empty.
    awaiting: Mutex<HashMap<String, u32>>,
}

#[derive(Default)]
struct Known {
    /// The directory itself, `tmp/` and `quarantine/`.
    base: u64,
    spaces: BTreeMap<SpaceTag, u64>,
    /// The space that was measured last.
    last: Option<SpaceTag>,
}

fn bytes_of(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512)
}

impl Core {
    /// Changes what is known of the directories, and has it count.
    fn know_directories<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.directories.known.lock();
        let result = change(&mut known);
        if self.count_directories {
            let bytes = known.base + known.spaces.values().sum::<u64>();
            // Within the lock, so that the last number stands.
            self.index(|index| {
                index.overhead_mut().directories = if index.capacity() < CAPACITY_MIN { 0 } else { bytes };
                let matter = bytes > index.capacity() / CAPACITY_SHARE;
                self.directories.matter.store(matter, Ordering::Relaxed);
            });
        }
        result
    }

    /// Measures all directories.
    pub fn measure_directories(&self) {
        for space in recover::spaces(&self.dir).unwrap_or_default() {
            self.measure_space(space.space, false);
        }
        self.measure_base();
    }

    /// Measures the directories of the next space, and takes away those that are empty.
    pub fn measure_some_directories(&self) {
        let Ok(mut spaces) = recover::spaces(&self.dir) else { return };
        spaces.sort_unstable_by_key(|space| space.space);
        let last = self.directories.known.lock().last;
        let next = spaces.iter().find(|space| Some(space.space) > last).or(spaces.first());
        if let Some(space) = next {
            self.measure_space(space.space, true);
        }
        self.know_directories(|known| {
            known.last = next.map(|space| space.space);
            known.spaces.retain(|tag, _| spaces.iter().any(|space| space.space == *tag));
        });
        self.measure_base();
    }

    fn measure_base(&self) {
        let base =
            bytes_of(&self.dir) + [TMP, QUARANTINE].map(|name| bytes_of(&self.dir.join(name))).iter().sum::<u64>();
        self.know_directories(|known| known.base = base);
    }

    fn measure_space(&self, tag: SpaceTag, prune: bool) {
        let name = hex(&tag.0);
        let place = recover::Place { space: tag, path: self.dir.join(&name) };
        // What cannot be listed cannot be measured either.
        let shards = recover::shards(vec![place], |_, _| {});
        let mut bytes = 0;
        for shard in shards {
            let file = shard.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !(prune && self.remove_empty(&format!("{name}/{file}"))) {
                bytes += bytes_of(&shard.path);
            }
        }
        if prune && self.remove_empty(&name) {
            self.know_directories(|known| known.spaces.remove(&tag));
        } else {
            bytes += bytes_of(&self.dir.join(&name));
            self.know_directories(|known| known.spaces.insert(tag, bytes));
        }
    }

    /// Takes a directory away if it is empty.
    fn remove_empty(&self, path: &str) -> bool {
        // Held, so that no store makes a shard in it meanwhile.
        let awaiting = self.directories.awaiting.lock();
        !awaiting.contains_key(path) && unlinkat(&self.dirfd, path, AtFlags::REMOVEDIR).is_ok()
    }

    /// Makes the directories that the file of an object goes to. They stay until [`filled_shard`](Core::filled_shard) if this is the
    /// `first` time for a store.
    pub fn make_shard(&self, key: &ObjectKey, first: bool) -> io::Result<()> {
        let mut made = 0;
        let mut awaiting = self.directories.awaiting.lock();
        if first {
            *awaiting.entry(path::shard(key)).or_default() += 1;
        }
        for path in [hex(&key.space.0), path::shard(key)] {
            match mkdirat(&self.dirfd, path.as_str(), Mode::from_raw_mode(path::DIRECTORY_MODE)) {
                Ok(()) => made += self.directory_bytes(&path),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        drop(awaiting);
        if made > 0 {
            self.know_directories(|known| *known.spaces.entry(key.space).or_default() += made);
        }
        Ok(())
    }

    /// The file of an object is in its directory, or comes no more.
    pub fn filled_shard(&self, key: &ObjectKey) {
        let mut awaiting = self.directories.awaiting.lock();
        if let Entry::Occupied(mut count) = awaiting.entry(path::shard(key)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn directory_bytes(&self, path: &str) -> u64 {
        statat(&self.dirfd, path, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }

    /// The file of an object is away: its directory goes too if it is empty, and directories are much of the capacity.
    pub fn prune(&self, key: &ObjectKey) {
        if !self.directories.matter.load(Ordering::Relaxed) {
            return;
        }
        let shard = path::shard(key);
        let bytes = self.directory_bytes(&shard);
        if self.remove_empty(&shard) {
            self.know_directories(|known| {
                let of_space = known.spaces.entry(key.space).or_default();
                *of_space = of_space.saturating_sub(bytes);
            });
        }
    }
}
