//! What is in the directory when it is opened.

use std::fs::{DirEntry, Metadata, read_dir, remove_file};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::core::payload_of;
use super::path::{self, QUARANTINE, Writer};
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};

/// Temporary files whose writer cannot be asked are stale after this long unchanged.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// Threads that read directories: a cold scan waits for the disk, a warm one for the processor.
const THREADS: usize = 4;

/// One object found.
pub struct Seen {
    pub key: ObjectKey,
    /// Bytes of payload.
    pub size: u64,
    /// Time of last use in nanoseconds.
    pub used: u64,
    /// When its file was made, where the file system tells, in nanoseconds.
    pub made: u64,
}

/// Reads `dir`, removes what dead writers left, and returns the objects, in no order.
pub fn scan(dir: &Path, this: &Writer) -> Result<Vec<Seen>> {
    let failed = |error: io::Error| Error::io(format!("scanning {}", dir.display()), &error);
    sweep(dir, this).map_err(failed)?;
    let shards = shards(dir).map_err(failed)?;
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Ok(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS.min(shards.len()) {
            scope.spawn(|| {
                let mut seen = Vec::new();
                let mut result = Ok(());
                while let Some((space, shard)) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                    result = result.and(scan_shard(*space, shard, this, &mut seen));
                }
                let mut all = all.lock();
                match (&mut *all, result) {
                    (Ok(all), Ok(())) => all.append(&mut seen),
                    (all, Err(error)) => *all = Err(error),
                    (Err(_), Ok(())) => {}
                }
            });
        }
    });
    all.into_inner().map_err(failed)
}

fn name_of(entry: &DirEntry) -> Option<String> {
    entry.file_name().into_string().ok()
}

pub fn shards(dir: &Path) -> io::Result<Vec<(SpaceTag, PathBuf)>> {
    let mut shards = Vec::new();
    for entry in read_dir(dir)? {
        let entry = entry?;
        let Some(space) = name_of(&entry).filter(|name| name != QUARANTINE).and_then(|name| path::parse_space(&name))
        else {
            continue;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        for shard in read_dir(entry.path())? {
            let shard = shard?;
            if name_of(&shard).is_some_and(|name| path::is_shard(&name)) && shard.file_type()?.is_dir() {
                shards.push((space, shard.path()));
            }
        }
    }
    Ok(shards)
}

fn scan_shard(space: SpaceTag, dir: &Path, this: &Writer, seen: &mut Vec<Seen>) -> io::Result<()> {
    let shard = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    for entry in read_dir(dir)? {
        let entry = entry?;
        let Some(name) = name_of(&entry) else { continue };
        seen.extend(gone_is_none(scan_file(space, shard, &name, &entry, this))?.flatten());
    }
    Ok(())
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// Another process may remove a file while we look.
pub fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Whether the writer of a temporary file is gone.
pub fn is_stale(writer: Option<&Writer>, file: &Metadata, this: &Writer) -> io::Result<bool> {
    Ok(match writer.and_then(|writer| this.knows_alive(writer)) {
        Some(alive) => !alive,
        None => file.modified()?.elapsed().is_ok_and(|age| age > STALE_AFTER),
    })
}

fn remove_stale(writer: Option<&Writer>, entry: &DirEntry, this: &Writer) -> io::Result<()> {
    if is_stale(writer, &entry.metadata()?, this)? { remove_file(entry.path()) } else { Ok(()) }
}

/// Removes what who died while opening the directory left in it.
fn sweep(dir: &Path, this: &Writer) -> io::Result<()> {
    for entry in read_dir(dir)? {
        let entry = entry?;
        if let Some(writer) = name_of(&entry).and_then(|name| path::parse_temporary(&name)) {
            gone_is_none(remove_stale(writer.as_ref(), &entry, this))?;
        }
    }
    Ok(())
}

fn scan_file(space: SpaceTag, shard: &str, name: &str, entry: &DirEntry, this: &Writer) -> io::Result<Option<Seen>> {
    if let Some(writer) = path::parse_temporary(name) {
        remove_stale(writer.as_ref(), entry, this)?;
        return Ok(None);
    }
    let Some(key) = path::parse_object(space, shard, name) else { return Ok(None) };
    let meta = entry.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    let used = nanoseconds(meta.modified()?);
    let made = meta.created().map_or(used, nanoseconds);
    match payload_of(meta.len()) {
        Some(size) => Ok(Some(Seen { key, size, used, made })),
        None => {
            // Shorter than a header: what a power cut left of a new file.
            remove_file(entry.path())?;
            Ok(None)
        }
    }
}
