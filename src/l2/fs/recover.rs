//! Recovery: reading a directory when it is opened, and the parts of it that could not be read again later.

use std::fs::{DirEntry, ReadDir, read_dir, remove_file};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::failures::file_error;
use super::file_format::payload_of;
use super::path;
use super::path::WriterId;
use super::writers::{gone_is_none, is_stale};
use crate::error::{Error, Result};
use crate::key::{ObjectKey, SpaceTag};

/// Threads that read directories: cold ones wait for the disk, warm ones for the processor.
const THREADS: usize = 4;

/// An object found in the directory.
pub struct FoundObject {
    pub key: ObjectKey,
    /// Bytes of the payload.
    pub size: u64,
    /// Time of last use in nanoseconds.
    pub used: u64,
    /// When its file was made, where the file system has that, in nanoseconds.
    pub made: u64,
}

/// A directory of objects.
#[derive(Clone)]
pub struct ObjectDir {
    pub space: SpaceTag,
    pub path: PathBuf,
}

/// The result of reading a directory, or a part of it.
#[derive(Default)]
pub struct Recovered {
    /// The objects, in no order.
    pub found: Vec<FoundObject>,
    /// Shards, or whole spaces, that could not be read to their end.
    pub unlisted: Vec<ObjectDir>,
    /// Why not, of one of them.
    pub why: Option<Error>,
    /// Why a useless file could not be removed, of one of them.
    pub unremoved: Option<Error>,
}

impl Recovered {
    fn skip(&mut self, place: ObjectDir, error: &io::Error) {
        self.why.get_or_insert_with(|| file_error("listing", &place.path, error));
        self.unlisted.push(place);
    }

    fn append(&mut self, mut other: Recovered) {
        self.found.append(&mut other.found);
        self.unlisted.append(&mut other.unlisted);
        self.why = self.why.take().or(other.why);
        self.unremoved = self.unremoved.take().or(other.unremoved);
    }

    /// A sentence about what could not be read, if anything.
    pub fn missing(&self, dir: &Path) -> Option<String> {
        let why = self.why.as_ref()?;
        let what = if self.unlisted.len() == 1 { "directory" } else { "directories" };
        let count = self.unlisted.len();
        Some(format!("{count} {what} of objects in {} cannot be listed; one of them: {why}", dir.display()))
    }
}

/// Reads `dir` and removes what dead writers left. Fails only if `dir` itself cannot be listed.
pub fn recover(dir: &Path, this: &WriterId) -> Result<Recovered> {
    let failed = |error: io::Error| Error::io(format!("scanning {}", dir.display()), &error);
    let mut recovered = Recovered::default();
    remove_strays(dir, this, &mut recovered).map_err(failed)?;
    recovered.append(read(spaces(dir).map_err(failed)?, this));
    Ok(recovered)
}

/// Reads spaces and shards.
pub fn read(places: Vec<ObjectDir>, this: &WriterId) -> Recovered {
    let mut recovered = Recovered::default();
    let shards = shards(places, |place, error| recovered.skip(place, &error));
    let next = AtomicUsize::new(0);
    let all = Mutex::new(recovered);
    thread::scope(|scope| {
        for _ in 0..THREADS.min(shards.len()) {
            scope.spawn(|| {
                let mut part = Recovered::default();
                while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = read_shard(shard, this, &mut part) {
                        part.skip(shard.clone(), &error);
                    }
                }
                all.lock().append(part);
            });
        }
    });
    all.into_inner()
}

fn name_of(entry: &DirEntry) -> Option<String> {
    entry.file_name().into_string().ok()
}

/// The spaces of a directory.
pub fn spaces(dir: &Path) -> io::Result<Vec<ObjectDir>> {
    let mut spaces = Vec::new();
    for entry in read_dir(dir)? {
        let entry = entry?;
        let Some(space) = name_of(&entry).and_then(|name| path::parse_space(&name)) else { continue };
        spaces.push(ObjectDir { space, path: entry.path() });
    }
    Ok(spaces)
}

/// The shards of spaces, and those places that are shards themselves. Calls `failed` for each that cannot be listed.
pub fn shards(places: Vec<ObjectDir>, mut failed: impl FnMut(ObjectDir, io::Error)) -> Vec<ObjectDir> {
    let mut shards = Vec::new();
    for place in places {
        let name = place.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path::is_shard(name) {
            shards.push(place);
        } else if let Err(error) = shards_of(&place, &mut shards) {
            failed(place, error);
        }
    }
    shards
}

fn shards_of(space: &ObjectDir, shards: &mut Vec<ObjectDir>) -> io::Result<()> {
    let Some(entries) = listed(&space.path)? else { return Ok(()) };
    for shard in entries {
        let shard = shard?;
        if name_of(&shard).is_some_and(|name| path::is_shard(&name)) {
            shards.push(ObjectDir { space: space.space, path: shard.path() });
        }
    }
    Ok(())
}

/// The entries of a directory; none if it is gone, or is no directory.
fn listed(dir: &Path) -> io::Result<Option<ReadDir>> {
    match read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        result => result.map(Some),
    }
}

/// Reads what it can of a shard, and fails with the first thing that it cannot.
fn read_shard(place: &ObjectDir, this: &WriterId, recovered: &mut Recovered) -> io::Result<()> {
    let shard = place.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(entries) = listed(&place.path)? else { return Ok(()) };
    let mut result = Ok(());
    for entry in entries {
        let entry = entry?;
        let Some(name) = name_of(&entry) else { continue };
        match gone_is_none(look(place.space, shard, &name, &entry, this)) {
            Ok(Some(ShardFile::Object(seen))) => recovered.found.push(seen),
            Ok(Some(ShardFile::Leftover)) => {
                if let Err(error) = gone_is_none(remove_file(entry.path())) {
                    recovered.unremoved.get_or_insert_with(|| file_error("removing", &entry.path(), &error));
                }
            }
            Ok(Some(ShardFile::Other) | None) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// Removes the temporary files of dead writers in the directory itself: of those that died while they opened it, and of earlier builds.
fn remove_strays(dir: &Path, this: &WriterId, recovered: &mut Recovered) -> io::Result<()> {
    for entry in read_dir(dir)? {
        let entry = entry?;
        let Some(writer) = name_of(&entry).and_then(|name| path::parse_temporary(&name)) else { continue };
        let stale = entry.metadata().and_then(|meta| is_stale(writer.as_ref(), &meta, this));
        if stale.is_ok_and(|stale| stale)
            && let Err(error) = gone_is_none(remove_file(entry.path()))
        {
            recovered.unremoved.get_or_insert_with(|| file_error("removing", &entry.path(), &error));
        }
    }
    Ok(())
}

/// A file in a shard, by its name and size.
enum ShardFile {
    Object(FoundObject),
    /// A temporary file of a dead writer, or half a header.
    Leftover,
    Other,
}

fn look(space: SpaceTag, shard: &str, name: &str, entry: &DirEntry, this: &WriterId) -> io::Result<ShardFile> {
    if let Some(writer) = path::parse_temporary(name) {
        let stale = is_stale(writer.as_ref(), &entry.metadata()?, this)?;
        return Ok(if stale { ShardFile::Leftover } else { ShardFile::Other });
    }
    let Some(key) = path::parse_object(space, shard, name) else { return Ok(ShardFile::Other) };
    let meta = entry.metadata()?;
    if !meta.is_file() {
        return Ok(ShardFile::Other);
    }
    let used = nanoseconds(meta.modified()?);
    let made = meta.created().map_or(used, nanoseconds);
    // Shorter than a header: a power cut left this of a new file.
    Ok(payload_of(meta.len())
        .map_or(ShardFile::Leftover, |size| ShardFile::Object(FoundObject { key, size, used, made })))
}
