//! What the keeper does now and then beside its jobs, and what takes room without being an object: the quarantine, and what dead
//! writers left.

use std::fs::{DirEntry, read_dir, remove_file};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::file_format::disk_bytes;
use super::object_io::Core;
use super::path;
use super::writers;
use crate::key::ObjectKey;
use crate::log::LogLevel;

/// Most files kept in quarantine.
const FILES_MAX: usize = 64;
/// Most bytes of disk kept in quarantine, and the part of the capacity that they may be.
const BYTES_MAX: u64 = 1 << 30;
const CAPACITY_SHARE: u64 = 100;

/// Bytes of disk of what is neither an object nor on its way to be one. They count under the capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overhead {
    /// Objects found broken.
    pub quarantine: u64,
    /// Temporary files whose writers may still live.
    pub leftovers: u64,
    pub directories: u64,
}

impl Overhead {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.quarantine + self.leftovers + self.directories
    }
}

impl Core {
    /// Removes what dead writers left, keeps the quarantine within its bounds, and counts what both take.
    pub fn tidy(&self) {
        if let Some(claim) = &*self.claim.lock() {
            claim.renew();
        }
        match writers::sweep(&self.dir, &self.writer, self.temporaries.writer()) {
            Ok(swept) => {
                self.index(|index| index.overhead_mut().leftovers = swept.bytes);
                if let Some(error) = swept.unremoved {
                    self.log.often("fs unremoved", LogLevel::Warn, || {
                        format!("fs: some leftovers cannot be removed: {error}")
                    });
                }
            }
            Err(error) => {
                self.unread("listing", path::TMP, &error);
            }
        }
        match self.trim_quarantine(FILES_MAX, self.quarantine_most()) {
            Ok(bytes) => self.index(|index| index.overhead_mut().quarantine = bytes),
            Err(error) => {
                self.unread("listing", path::QUARANTINE, &error);
            }
        }
    }

    /// Most bytes of disk that the quarantine may take.
    fn quarantine_most(&self) -> u64 {
        self.index(|index| index.capacity() / CAPACITY_SHARE).min(BYTES_MAX)
    }

    /// Moves the file of a hidden object into quarantine. One that does not fit there goes at once.
    pub fn move_away(&self, key: ObjectKey) {
        let (from, to) = (path::object(&key), path::quarantined(&key));
        let bytes = self.stat(&from).ok().flatten().map_or(0, |(size, _)| disk_bytes(size));
        let most = self.quarantine_most();
        let kept = if bytes <= most { self.make_quarantine_room(most - bytes).map(Some) } else { Ok(None) };
        let moved = match kept {
            Ok(Some(others)) => renameat(&self.dirfd, from.as_str(), &self.dirfd, to.as_str())
                .map(|()| others + bytes)
                .map_err(io::Error::from),
            Ok(None) => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
            Err(error) => Err(error),
        };
        match moved {
            Ok(bytes) => {
                self.quarantined.fetch_add(1, Ordering::Relaxed);
                self.index(|index| index.overhead_mut().quarantine = bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Better gone than served.
            Err(error) => match unlinkat(&self.dirfd, from.as_str(), AtFlags::empty()) {
                Ok(()) => {
                    self.quarantined.fetch_add(1, Ordering::Relaxed);
                    let line = || format!("fs: {from} is corrupt and was deleted: no room in quarantine ({error})");
                    self.log.often("fs quarantine", LogLevel::Warn, line);
                }
                Err(Errno::NOENT) => {}
                Err(error) => {
                    self.error("quarantining", &from, &error.into());
                }
            },
        }
        self.departed(&key);
    }

    /// Makes room for one more file beside `most` bytes of others, and gives their bytes.
    fn make_quarantine_room(&self, most: u64) -> io::Result<u64> {
        path::make_directory(&self.dir.join(path::QUARANTINE))?;
        self.trim_quarantine(FILES_MAX - 1, most)
    }

    /// Removes the files that have been in quarantine longest until at most `files` and `bytes` are left. Gives the bytes left.
    fn trim_quarantine(&self, files: usize, bytes: u64) -> io::Result<u64> {
        let Some(entries) = writers::gone_is_none(read_dir(self.dir.join(path::QUARANTINE)))? else { return Ok(0) };
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
