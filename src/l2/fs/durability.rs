//! Making changes durable: what was synced is there after a power cut.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat, syncfs};
use rustix::io::Errno;

use super::root::Root;

/// Makes the bytes of a file durable, and closes it.
pub fn sync_file(file: OwnedFd) -> io::Result<()> {
    File::from(file).sync_data()
}

/// Makes the bytes of the file at the relative path `path` durable.
pub fn sync_object(root: &Root, path: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    sync_file(openat(&root.dirfd, path, flags, Mode::empty())?)
}

/// Makes the names of objects durable, whether they are there or not: syncs each directory above one of `paths` once.
pub fn sync_names<'a>(root: &Root, paths: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let above = |path: &'a str| Path::new(path).ancestors().skip(1);
    let directories: BTreeSet<&Path> = paths.flat_map(above).collect();
    for directory in directories {
        let path = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        match openat(&root.dirfd, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(directory) => File::from(directory).sync_all()?,
            // An empty one was taken away, of which the one above it tells.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes everything durable that the file system has, of the directory and of others.
pub fn sync_everything(directory: &OwnedFd) -> io::Result<()> {
    Ok(syncfs(directory)?)
}
