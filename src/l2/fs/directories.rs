//! The bytes of disk that directories take, which count under the capacity, and the removal of empty ones.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, mkdirat, statat, unlinkat};
use rustix::io::Errno;

use super::path::{self, QUARANTINE, TMP};
use super::recover;
use super::root::Root;
use super::space_files::{self, SPACE_FILE};
use crate::key::{ObjectKey, SpaceTag, hex};

/// Directories of more than this part of the capacity are taken away as soon as they are empty, others now and then.
const CAPACITY_SHARE: u64 = 16;

/// Directories do not count under a capacity that those of one space could fill: it is one of objects alone.
const CAPACITY_MIN: u64 = 4 << 20;

/// Bytes of disk of the directories.
#[derive(Default)]
pub struct Directories {
    /// They count under the capacity.
    count: bool,
    known: Mutex<DirectorySizes>,
    /// They are much of the capacity.
    matter: AtomicBool,
    /// Shards that stores have made and have not put their files into yet: they stay, though they are empty. By path, with the number of
    /// stores.
    awaiting: Mutex<HashMap<String, u32>>,
}

#[derive(Default)]
struct DirectorySizes {
    /// The directory itself, `tmp/` and `quarantine/`.
    base: u64,
    spaces: BTreeMap<SpaceTag, u64>,
    /// The space that was measured last.
    last: Option<SpaceTag>,
}

fn bytes_of(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512)
}

impl Directories {
    /// Nothing is measured yet. Directories `count` under the capacity or do not.
    pub fn new(count: bool) -> Directories {
        Directories { count, ..Directories::default() }
    }

    /// Changes the sizes, and updates the index with their sum.
    fn change<T>(&self, root: &Root, change: impl FnOnce(&mut DirectorySizes) -> T) -> T {
        let mut known = self.known.lock();
        let result = change(&mut known);
        if self.count {
            let bytes = known.base + known.spaces.values().sum::<u64>();
            // Within the lock, so that the last number stands.
            root.index(|index| {
                index.overhead_mut().directories = if index.capacity() < CAPACITY_MIN { 0 } else { bytes };
                let matter = bytes > index.capacity() / CAPACITY_SHARE;
                self.matter.store(matter, Ordering::Relaxed);
            });
        }
        result
    }

    /// Measures all directories, when the backend is opened.
    pub fn measure_all(&self, root: &Root) {
        for space in recover::spaces(&root.dir).unwrap_or_default() {
            self.measure_space(root, space.space, false);
        }
        self.measure_base(root);
    }

    /// Measures the directories of the next space, and takes away those that are empty.
    pub fn measure_next(&self, root: &Root) {
        let Ok(mut spaces) = recover::spaces(&root.dir) else { return };
        spaces.sort_unstable_by_key(|space| space.space);
        let last = self.known.lock().last;
        let next = spaces.iter().find(|space| Some(space.space) > last).or(spaces.first());
        if let Some(space) = next {
            self.measure_space(root, space.space, true);
        }
        self.change(root, |known| {
            known.last = next.map(|space| space.space);
            known.spaces.retain(|tag, _| spaces.iter().any(|space| space.space == *tag));
        });
        self.measure_base(root);
    }

    fn measure_base(&self, root: &Root) {
        let parts: u64 = path::tmp_parts(&root.dir).map(|part| bytes_of(&part)).sum();
        let base = [&root.dir, &root.dir.join(TMP), &root.dir.join(QUARANTINE)].map(|dir| bytes_of(dir));
        let base = parts + base.iter().sum::<u64>();
        self.change(root, |known| known.base = base);
    }

    fn measure_space(&self, root: &Root, tag: SpaceTag, prune: bool) {
        let name = hex(&tag.0);
        let place = recover::ObjectDir { space: tag, path: root.dir.join(&name) };
        // A directory that cannot be listed cannot be measured either.
        let shards = recover::shards(vec![place], |_, _| {});
        let mut bytes = 0;
        for shard in shards {
            let file = shard.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !(prune && self.remove_empty(root, &format!("{name}/{file}"))) {
                bytes += bytes_of(&shard.path);
            }
        }
        if prune && self.remove_space(root, tag) {
            self.change(root, |known| known.spaces.remove(&tag));
        } else {
            bytes += bytes_of(&root.dir.join(&name)) + bytes_of(&root.dir.join(&name).join(SPACE_FILE));
            self.change(root, |known| known.spaces.insert(tag, bytes));
        }
    }

    /// Takes a directory away if it is empty.
    fn remove_empty(&self, root: &Root, path: &str) -> bool {
        // Held, so that no store makes a shard in it meanwhile.
        let awaiting = self.awaiting.lock();
        !awaiting.contains_key(path) && unlinkat(&root.dirfd, path, AtFlags::REMOVEDIR).is_ok()
    }

    /// Takes the directory of a space away if it is empty but for the file that names the space.
    fn remove_space(&self, root: &Root, space: SpaceTag) -> bool {
        let name = hex(&space.0);
        // Held, so that no store of this process makes a shard in it meanwhile.
        let _awaiting = self.awaiting.lock();
        let remove = || unlinkat(&root.dirfd, name.as_str(), AtFlags::REMOVEDIR).is_ok();
        if remove() {
            return true;
        }
        if !space_files::is_alone_in(&root.dir.join(&name)) {
            return false;
        }
        let _ = unlinkat(&root.dirfd, format!("{name}/{SPACE_FILE}"), AtFlags::empty());
        let removed = remove();
        if !removed {
            // Another process stores in it.
            root.space_files.made(&root.tasks, space);
        }
        removed
    }

    /// Takes the directories of a space away that are empty.
    pub fn prune_space(&self, root: &Root, space: SpaceTag) {
        self.measure_space(root, space, true);
    }

    /// Makes the directories that the file of an object goes to. They stay until [`shard_filled`](Directories::shard_filled) if this is the
    /// `first` time for a store.
    pub fn make_shard(&self, root: &Root, key: &ObjectKey, first: bool) -> io::Result<()> {
        let mut made = 0;
        let mut awaiting = self.awaiting.lock();
        if first {
            *awaiting.entry(path::shard(key)).or_default() += 1;
        }
        for (path, is_space) in [(hex(&key.space.0), true), (path::shard(key), false)] {
            match mkdirat(&root.dirfd, path.as_str(), Mode::from_raw_mode(path::DIRECTORY_MODE)) {
                Ok(()) => {
                    made += directory_bytes(root, &path);
                    if is_space {
                        root.space_files.made(&root.tasks, key.space);
                    }
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        drop(awaiting);
        if made > 0 {
            self.change(root, |known| *known.spaces.entry(key.space).or_default() += made);
        }
        Ok(())
    }

    /// The file of an object is in its directory, or comes no more.
    pub fn shard_filled(&self, key: &ObjectKey) {
        let mut awaiting = self.awaiting.lock();
        if let Entry::Occupied(mut count) = awaiting.entry(path::shard(key)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The file of an object is gone: removes its directory if that is empty, and directories are much of the capacity.
    pub fn prune(&self, root: &Root, key: &ObjectKey) {
        if !self.matter.load(Ordering::Relaxed) {
            return;
        }
        let shard = path::shard(key);
        let bytes = directory_bytes(root, &shard);
        if self.remove_empty(root, &shard) {
            self.change(root, |known| {
                let of_space = known.spaces.entry(key.space).or_default();
                *of_space = of_space.saturating_sub(bytes);
            });
        }
    }
}

fn directory_bytes(root: &Root, path: &str) -> u64 {
    statat(&root.dirfd, path, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_blocks as u64 * 512)
}
