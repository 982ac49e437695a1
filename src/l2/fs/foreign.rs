//! Removing the files of a space that this process does not know: other processes have stored them.

use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::maintenance::Job;
use super::object_io::Core;
use super::path;
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::Reply;

/// A walk through the directories of a space, or of all spaces, one directory at a time.
pub struct Sweep {
    space: Option<SpaceTag>,
    /// Directories that are still to be looked into; `None` before they are known.
    left: Option<Vec<(SpaceTag, String)>>,
    removed: u64,
    reply: Reply<u64>,
}

impl Sweep {
    pub fn new(space: Option<SpaceTag>, reply: Reply<u64>) -> Sweep {
        Sweep { space, left: None, removed: 0, reply }
    }

    /// Answers that it is not done.
    pub fn refuse(self, error: Error) {
        self.reply.send(Err(error));
    }
}

impl Core {
    /// Looks into one more directory, then lets the keeper's other work have its turn.
    pub fn sweep(&self, mut sweep: Sweep) {
        let stepped = match &mut sweep.left {
            None => self.shards_of(sweep.space).map(|shards| sweep.left = Some(shards)),
            Some(left) => match left.pop() {
                Some((space, shard)) => self.sweep_shard(space, &shard).map(|removed| sweep.removed += removed),
                None => return sweep.reply.send(Ok(sweep.removed)),
            },
        };
        match stepped {
            Ok(()) => self.keeper.insist(Job::Sweep(sweep)),
            Err(error) => sweep.refuse(error),
        }
    }

    fn shards_of(&self, space: Option<SpaceTag>) -> Result<Vec<(SpaceTag, String)>> {
        let spaces = match space {
            Some(space) => vec![space],
            None => self.names(&self.dir)?.iter().filter_map(|name| path::parse_space(name)).collect(),
        };
        let mut shards = Vec::new();
        for space in spaces {
            let names = self.names(&self.dir.join(crate::key::hex(&space.0)))?;
            shards.extend(names.into_iter().filter(|name| path::is_shard(name)).map(|name| (space, name)));
        }
        Ok(shards)
    }

    /// The names in a directory; none if it is not there.
    fn names(&self, dir: &Path) -> Result<Vec<String>> {
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

    fn sweep_shard(&self, space: SpaceTag, shard: &str) -> Result<u64> {
        let names = self.names(&self.dir.join(crate::key::hex(&space.0)).join(shard))?;
        let objects: Vec<ObjectKey> = names.iter().filter_map(|name| path::parse_object(space, shard, name)).collect();
        let mut removed = 0;
        for key in objects {
            if self.index(|index| index.knows(&key)) {
                continue;
            }
            let file = path::object(&key);
            match unlinkat(&self.dirfd, file.as_str(), AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(self.error("deleting", &file, &error.into())),
            }
        }
        Ok(removed)
    }
}
