//! Processes that write to a directory, and which of them are gone.
//!
//! Each open backend holds a lock on a file of its own in `tmp/`. The kernel lets the lock go with the process, whatever
//! container or process namespace it ran in, so that a lock that can be taken proves a dead writer. Where locks of other
//! machines are not seen (network file systems), the holder renews the time of its file, and an old one proves the same.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions, read_dir, remove_file};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock, statfs};

use super::failures::file_error;
use super::path::{self, TMP, Temporaries, WriterId};
use crate::error::Error;

/// A writer that cannot be asked, and has changed nothing for so long, is gone.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// A temporary that is not this process's counts as a leftover once it is so old: a younger one is being written.
const WRITING_MOST: Duration = Duration::from_secs(60);
/// How the names of the locked files begin.
const LOCK_NAME: &str = ".writer-";

/// A locked file in `tmp/` that shows other processes that this writer lives.
pub struct WriterLock {
    file: File,
    path: PathBuf,
}

impl WriterLock {
    /// Takes the lock. Fails where the file system has no locks.
    pub fn new(dir: &Path, names: &Temporaries) -> io::Result<WriterLock> {
        let made = dir.join(TMP).join(names.name());
        let path = dir.join(TMP).join(format!("{LOCK_NAME}{}", names.writer()));
        OpenOptions::new().write(true).create_new(true).mode(path::FILE_MODE).open(&made)?;
        // Locked before it has its name: no process finds it there unlocked.
        let locked = lock(&made).and_then(|file| std::fs::rename(&made, &path).map(|()| file));
        if locked.is_err() {
            let _ = remove_file(&made);
        }
        locked.map(|file| WriterLock { file, path })
    }

    /// Renews the time of the file, for machines that cannot see its lock.
    pub fn renew(&self) {
        // Where it fails, the lock still shows it.
        let _ = self.file.set_modified(SystemTime::now());
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        let _ = remove_file(&self.path);
    }
}

/// Locks a file, or fails at once.
fn lock(path: &Path) -> io::Result<File> {
    let open = |write| OpenOptions::new().read(true).write(write).custom_flags(libc::O_NOFOLLOW).open(path);
    let locked = |file: File| Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).map(|()| file)?);
    // A file system on which a file is open for writing cannot be mounted anew for reading. NFS locks no other.
    match open(false).and_then(locked) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => open(true).and_then(locked),
        result => result,
    }
}

/// A temporary file in `tmp/`.
pub struct Temporary {
    pub path: PathBuf,
    pub meta: Metadata,
    /// The open backend that writes it, by its name.
    writer: String,
    /// Its writer is gone.
    pub stale: bool,
}

/// The files in `tmp/`, by kind.
#[derive(Default)]
struct TmpFiles {
    temporaries: Vec<Temporary>,
    /// The files of writers that are gone, locked where they can be.
    dead: Vec<(PathBuf, Option<File>)>,
}

/// The temporary files in `tmp/`, each with whether its writer is gone.
pub fn temporaries(dir: &Path, this: &WriterId) -> io::Result<Vec<Temporary>> {
    Ok(find(dir, this)?.temporaries)
}

fn find(dir: &Path, this: &WriterId) -> io::Result<TmpFiles> {
    let mut found = TmpFiles::default();
    let Some(entries) = gone_is_none(read_dir(dir.join(TMP)))? else { return Ok(found) };
    let local = statfs(dir).is_ok_and(|stat| is_local(stat.f_type as u64));
    let mut alive = HashMap::new();
    let mut files = Vec::new();
    let mut parts = path::tmp_parts(dir).filter_map(|part| gone_is_none(read_dir(part)).transpose());
    for entry in entries.chain(parts.by_ref().collect::<io::Result<Vec<_>>>()?.into_iter().flatten()) {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some(writer) = name.strip_prefix(LOCK_NAME) {
            let sees_lock = local || path::parse_writer(writer).is_some_and(|writer| this.shares_kernel(&writer));
            let (lives, lock) = lives(&entry.path(), sees_lock);
            if !lives {
                found.dead.push((entry.path(), lock));
            }
            alive.insert(writer.to_owned(), lives);
        } else if let Some((writer, _)) = name.strip_prefix(path::TEMPORARY).and_then(|name| name.rsplit_once('.')) {
            files.push((entry, writer.to_owned()));
        }
    }
    for (entry, writer) in files {
        let Some(meta) = gone_is_none(entry.metadata())? else { continue };
        let stale = match alive.get(&writer) {
            Some(lives) => !lives,
            None => is_stale(path::parse_writer(&writer).as_ref(), &meta, this)?,
        };
        found.temporaries.push(Temporary { path: entry.path(), meta, writer, stale });
    }
    Ok(found)
}

/// Whether the writer whose locked file is at `path` lives; the lock, taken, if it does not.
fn lives(path: &Path, sees_lock: bool) -> (bool, Option<File>) {
    match lock(path) {
        Ok(file) if sees_lock => (false, Some(file)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (true, None),
        Ok(_) | Err(_) => (path.symlink_metadata().is_ok_and(|meta| !is_old(&meta, STALE_AFTER)), None),
    }
}

fn is_old(meta: &Metadata, age: Duration) -> bool {
    meta.modified().is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed > age))
}

/// Whether all that see a file system of this kind see the same locks.
pub fn is_local(kind: u64) -> bool {
    // ext, XFS, Btrfs, tmpfs, overlay, ZFS, F2FS, ramfs, bcachefs.
    const LOCAL: [u64; 9] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0x794c_7630,
        0x2fc1_2fc1,
        0xf2f5_2010,
        0x8584_58f6,
        0xca45_1a4e,
    ];
    LOCAL.contains(&(kind & 0xffff_ffff))
}

/// Whether the writer of a temporary file is gone, where it has no locked file.
pub fn is_stale(writer: Option<&WriterId>, file: &Metadata, this: &WriterId) -> io::Result<bool> {
    Ok(match writer.and_then(|writer| this.knows_alive(writer)) {
        Some(alive) => !alive,
        None => is_old(file, STALE_AFTER),
    })
}

/// Another process may remove a file while we look.
pub fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The leftovers that stay in `tmp/`.
#[derive(Default)]
pub struct Leftovers {
    /// Bytes of disk of leftovers whose writers may still live.
    pub bytes: u64,
    /// Why a leftover could not be removed, of one of them.
    pub unremoved: Option<Error>,
}

/// Removes what dead writers left in `tmp/`. `own` is the writer that looks.
pub fn remove_leftovers(dir: &Path, this: &WriterId, own: &str) -> io::Result<Leftovers> {
    let mut left = Leftovers::default();
    let TmpFiles { temporaries, dead } = find(dir, this)?;
    for Temporary { path, meta, writer, stale } in temporaries {
        let removed = stale.then(|| gone_is_none(remove_file(&path)));
        if let Some(Err(error)) = &removed {
            left.unremoved.get_or_insert_with(|| file_error("removing", &path, error));
        }
        if !matches!(removed, Some(Ok(_))) && writer != own && is_old(&meta, WRITING_MOST) {
            left.bytes += meta.blocks() * 512;
        }
    }
    // Not before its temporary files are gone: they would count as those of a writer without a lock.
    for (path, _lock) in dead {
        let _ = remove_file(path);
    }
    Ok(left)
}
