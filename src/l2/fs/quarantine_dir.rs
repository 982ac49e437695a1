//! The quarantine: files of objects found broken, kept within bounds for an inspection.

use std::fs::{DirEntry, read_dir, remove_file};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::file_format::disk_bytes;
use super::root::Root;
use super::{path, writers};
use crate::key::ObjectKey;
use crate::log::LogLevel;

/// Most files kept in quarantine.
const FILES_MAX: usize = 64;
/// Most bytes of disk kept in quarantine, and the part of the capacity that they may be.
const BYTES_MAX: u64 = 1 << 30;
const CAPACITY_SHARE: u64 = 100;

/// Counts the objects that were quarantined. The maintenance thread alone changes the folder.
#[derive(Default)]
pub struct Quarantine {
    moved: AtomicU64,
}

impl Quarantine {
    /// Objects quarantined since the backend was opened.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Removes the oldest files until the rest is within its bounds. Gives the bytes left.
    pub fn trim(root: &Root) -> io::Result<u64> {
        Quarantine::trim_to(root, FILES_MAX, Quarantine::most_bytes(root))
    }

    /// Most bytes of disk that the quarantine may take.
    fn most_bytes(root: &Root) -> u64 {
        root.index(|index| index.capacity() / CAPACITY_SHARE).min(BYTES_MAX)
    }

    /// Moves the file of a hidden object into quarantine, or unlinks it where it does not fit. The caller ends the unlink in the index afterwards.
    pub fn move_away(&self, root: &Root, key: ObjectKey) {
        let (from, to) = (path::object(&key), path::quarantined(&key));
        let bytes = root.stat(&from).ok().flatten().map_or(0, |(size, _)| disk_bytes(size));
        let most = Quarantine::most_bytes(root);
        let kept = if bytes <= most { Quarantine::make_room(root, most - bytes).map(Some) } else { Ok(None) };
        let moved = match kept {
            Ok(Some(others)) => renameat(&root.dirfd, from.as_str(), &root.dirfd, to.as_str())
                .map(|()| others + bytes)
                .map_err(io::Error::from),
            Ok(None) => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
            Err(error) => Err(error),
        };
        match moved {
            Ok(bytes) => {
                self.moved.fetch_add(1, Ordering::Relaxed);
                root.index(|index| index.overhead_mut().quarantine = bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Better gone than served.
            Err(error) => match unlinkat(&root.dirfd, from.as_str(), AtFlags::empty()) {
                Ok(()) => {
                    self.moved.fetch_add(1, Ordering::Relaxed);
                    let line = || format!("fs: {from} is corrupt and was deleted: no room in quarantine ({error})");
                    root.log.often("fs quarantine", LogLevel::Warn, line);
                }
                Err(Errno::NOENT) => {}
                Err(error) => {
                    root.error("quarantining", &from, &error.into());
                }
            },
        }
    }

    /// Removes the oldest files until one more fits beside `most` bytes of others. Gives the bytes of those others.
    fn make_room(root: &Root, most: u64) -> io::Result<u64> {
        path::make_directory(&root.dir.join(path::QUARANTINE))?;
        Quarantine::trim_to(root, FILES_MAX - 1, most)
    }

    /// Removes the files that have been in quarantine longest until at most `files` and `bytes` are left. Gives the bytes left.
    fn trim_to(root: &Root, files: usize, bytes: u64) -> io::Result<u64> {
        let Some(entries) = writers::gone_is_none(read_dir(root.dir.join(path::QUARANTINE)))? else { return Ok(0) };
        let seen = |entry: io::Result<DirEntry>| {
            let entry = entry?;
            let meta = entry.metadata()?;
            // The last change of a file there is that of its name.
            Ok(((meta.ctime(), meta.ctime_nsec()), meta.blocks() * 512, entry.path()))
        };
        let mut kept = Vec::new();
        for entry in entries {
            kept.extend(writers::gone_is_none(seen(entry))?);
        }
        kept.sort_unstable();
        let (mut count, mut sum) = (kept.len(), kept.iter().map(|(_, bytes, _)| bytes).sum::<u64>());
        for (_, of, file) in kept {
            if count <= files && sum <= bytes {
                break;
            }
            writers::gone_is_none(remove_file(file))?;
            (count, sum) = (count - 1, sum - of);
        }
        Ok(sum)
    }
}
