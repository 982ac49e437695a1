//! Removing the files of a space that this process does not know: other processes have stored them.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::core::Core;
use super::root::Root;
use super::tasks::{ForeignSweep, MaintenanceTask};
use super::{durability, path};
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};

/// Unlinks the unknown objects of one more shard, or takes the empty directories of one more space away, then queues the sweep again, so that
/// other tasks have their turn.
pub fn step(core: &Core, mut sweep: ForeignSweep) {
    let root = &core.root;
    let stepped = match &mut sweep.left {
        None => directories_of(root, sweep.space).map(|directories| sweep.left = Some(directories)),
        Some(left) => match left.pop() {
            Some((space, Some(shard))) => sweep_shard(root, space, &shard).map(|removed| sweep.removed += removed),
            Some((space, None)) => {
                core.directories.prune_space(root, space);
                Ok(())
            }
            None => return sweep.reply.send(Ok(sweep.removed)),
        },
    };
    match stepped {
        Ok(()) => root.tasks.push(MaintenanceTask::Sweep(sweep)),
        Err(error) => sweep.refuse(error),
    }
}

/// The directory of a space, or of every space, each followed by its shards.
fn directories_of(root: &Root, space: Option<SpaceTag>) -> Result<Vec<(SpaceTag, Option<String>)>> {
    let spaces = match space {
        Some(space) => vec![space],
        None => names(&root.dir)?.iter().filter_map(|name| path::parse_space(name)).collect(),
    };
    let mut directories = Vec::new();
    for space in spaces {
        directories.push((space, None));
        let names = names(&root.dir.join(crate::key::hex(&space.0)))?;
        directories.extend(names.into_iter().filter(|name| path::is_shard(name)).map(|name| (space, Some(name))));
    }
    Ok(directories)
}

/// The names in a directory; none if it is not there.
fn names(dir: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("reading {}", dir.display()), &error)),
    }
}

fn sweep_shard(root: &Root, space: SpaceTag, shard: &str) -> Result<u64> {
    let names = names(&root.dir.join(crate::key::hex(&space.0)).join(shard))?;
    let objects: Vec<ObjectKey> = names.iter().filter_map(|name| path::parse_object(space, shard, name)).collect();
    let mut removed = 0;
    for key in &objects {
        if root.index(|index| index.knows(key)) {
            continue;
        }
        let file = path::object(key);
        match unlinkat(&root.dirfd, file.as_str(), AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(root.error("deleting", &file, &error.into())),
        }
    }
    if root.durable && removed > 0 {
        let paths: Vec<String> = objects.iter().map(path::object).collect();
        let synced = durability::sync_names(root, paths.iter().map(String::as_str));
        synced.map_err(|error| root.error("syncing", "", &error))?;
    }
    Ok(removed)
}
