//! The files that name spaces: one in the directory of each space, for people who look at the directory. Nothing else depends on them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, open, openat, renameat, unlinkat};

use super::path;
use super::tasks::{MaintenanceTask, TaskQueue};
use crate::hash::tag_of_names;
use crate::key::{SpaceTag, hex};
use crate::space_names::SpaceNames;

/// The name of such a file. No shard has such a name.
pub const SPACE_FILE: &str = "space.json";
/// Most spaces whose names are remembered. Others have no file.
const NAMED_MAX: usize = 1 << 16;
/// Most bytes of a file that is read.
const BYTES_MAX: u64 = 1 << 16;

/// The names of the spaces that were open here since the directory was opened.
#[derive(Default)]
pub struct SpaceFiles {
    named: Mutex<HashMap<SpaceTag, SpaceNames>>,
}

impl SpaceFiles {
    /// Remembers the names of a space, and has its file written if the space has a directory.
    pub fn name(&self, tasks: &TaskQueue, space: SpaceTag, names: &SpaceNames) {
        let mut named = self.named.lock();
        if named.len() < NAMED_MAX && !named.contains_key(&space) {
            named.insert(space, names.clone());
            drop(named);
            self.made(tasks, space);
        }
    }

    /// The directory of a space was made: its file is to be written.
    pub fn made(&self, tasks: &TaskQueue, space: SpaceTag) {
        if self.named.lock().contains_key(&space) {
            tasks.push(MaintenanceTask::NameSpace(space));
        }
    }

    /// Writes the file of a space by way of the temporary file `made`, unless it is there, or the space has no directory. Called by the
    /// maintenance thread.
    pub fn write(&self, dir: &Path, dirfd: &OwnedFd, made: &str, space: SpaceTag) -> io::Result<()> {
        let directory = dir.join(hex(&space.0));
        let Some(names) = self.named.lock().get(&space).cloned() else { return Ok(()) };
        if !directory.is_dir() || read(&directory, space).is_some() {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(dirfd, made, flags, Mode::from_raw_mode(path::FILE_MODE))?;
        let named = format!("{}/{SPACE_FILE}", hex(&space.0));
        let written = File::from(file)
            .write_all(names.to_text().as_bytes())
            .and_then(|()| Ok(renameat(dirfd, made, dirfd, named.as_str())?));
        if written.is_err() {
            let _ = unlinkat(dirfd, made, AtFlags::empty());
        }
        match written {
            // The directory has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }
}

/// The names in the directory of a space; none where the file is missing, damaged or that of another space.
pub fn read(directory: &Path, space: SpaceTag) -> Option<SpaceNames> {
    let mut text = Vec::new();
    // Nothing but a file is waited for, and nothing elsewhere is read.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(directory.join(SPACE_FILE), flags, Mode::empty()).ok()?;
    File::from(file).take(BYTES_MAX).read_to_end(&mut text).ok()?;
    SpaceNames::parse(&text).filter(|names| tag_of_names(names) == space)
}

/// Whether a directory has such a file and nothing else.
pub fn is_alone_in(directory: &Path) -> bool {
    let names = || -> io::Result<bool> {
        let mut entries = std::fs::read_dir(directory)?;
        let is_file = |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name() == SPACE_FILE);
        Ok(entries.next().is_some_and(|entry| is_file(entry).unwrap_or(false)) && entries.next().is_none())
    };
    names().unwrap_or(false)
}
