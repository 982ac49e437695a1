//! A directory seen from outside: the kinds of its files, and whether an object's bytes are whole. Opens no backend and changes
//! nothing.

use std::fs::{File, read_dir};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file_format::{BLOCK, payload_of};
use super::path::{self, QUARANTINE, WriterId};
use super::recover::{ObjectDir, shards, spaces};
use super::space_files;
use super::writers::{gone_is_none, is_stale, temporaries};
use crate::error::{Error, KVKEEP_ERR_CORRUPT, Result};
use crate::key::{ObjectKey, SpaceTag, hex};
use crate::l2::object_header::{HEADER_BYTES, Header};
use crate::space_names::SpaceNames;

/// The kind of a file, by its place and name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// The object of this key.
    Object(ObjectKey),
    /// An object being written, or what a writer left; stale once its writer is gone.
    Temporary {
        /// Any backend that opens the directory, or has it open, removes it.
        stale: bool,
    },
    /// An object found broken, kept for an inspection: that of this key, if its name has one.
    Quarantined(Option<ObjectKey>),
    /// A file that kvkeep did not write.
    Foreign,
}

/// One file of a directory.
#[derive(Clone, Debug)]
pub struct FileEntry {
    /// The path of the file.
    pub path: PathBuf,
    /// The kind of file, by its name.
    pub kind: FileKind,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was last used (an object) or written.
    pub used: SystemTime,
}

impl FileEntry {
    /// Bytes of an object without what the store adds.
    pub fn payload_bytes(&self) -> u64 {
        payload_of(self.bytes).unwrap_or(0)
    }
}

/// The files of a directory in the order of their paths, from their names and sizes alone. Files that another process
/// removes meanwhile are left out.
pub fn list(dir: &Path) -> Result<Vec<FileEntry>> {
    let failed = |error: io::Error| Error::io(format!("reading {}", dir.display()), &error);
    let this = WriterId::this();
    let mut entries = Vec::new();
    list_files(dir, &this, &mut entries, |_| FileKind::Foreign).map_err(failed)?;
    // Foreign files in the directory itself do no harm; a process that is killed while it opens the directory leaves a file there.
    entries.retain(|entry| matches!(entry.kind, FileKind::Temporary { .. }));
    for file in temporaries(dir, &this).map_err(failed)? {
        let (kind, bytes) = (FileKind::Temporary { stale: file.stale }, file.meta.len());
        entries.push(FileEntry { path: file.path, kind, bytes, used: file.meta.modified().map_err(failed)? });
    }
    let mut unlisted = Ok(());
    let shards = shards(spaces(dir).map_err(failed)?, |_, error| unlisted = Err(error));
    unlisted.map_err(failed)?;
    for ObjectDir { space, path: shard } in shards {
        let name = shard.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        list_files(&shard, &this, &mut entries, |file| {
            path::parse_object(space, name, file).map_or(FileKind::Foreign, FileKind::Object)
        })
        .map_err(failed)?;
    }
    list_files(&dir.join(QUARANTINE), &this, &mut entries, |name| FileKind::Quarantined(path::parse_quarantined(name)))
        .map_err(failed)?;
    entries.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

fn list_files(
    dir: &Path,
    this: &WriterId,
    entries: &mut Vec<FileEntry>,
    kind: impl Fn(&str) -> FileKind,
) -> io::Result<()> {
    let Some(files) = gone_is_none(read_dir(dir))? else { return Ok(()) };
    for file in files {
        let file = file?;
        let Some(meta) = gone_is_none(file.metadata())? else { continue };
        let name = file.file_name();
        let kind = match name.to_str() {
            Some(name) if meta.is_file() => match path::parse_temporary(name) {
                Some(writer) => FileKind::Temporary { stale: is_stale(writer.as_ref(), &meta, this)? },
                None => kind(name),
            },
            _ => FileKind::Foreign,
        };
        entries.push(FileEntry { path: file.path(), kind, bytes: meta.len(), used: meta.modified()? });
    }
    Ok(())
}

/// Reads the object of `key` and checks its header, identity, length and checksum. Returns its bytes of payload, or `None`
/// if the file is gone. The error `CORRUPT` names the defect; any other means that the file could not be read.
pub fn verify(path: &Path, key: &ObjectKey) -> Result<Option<u64>> {
    let failed = |error: io::Error| Error::io(format!("reading {}", path.display()), &error);
    let Some(mut file) = gone_is_none(File::open(path)).map_err(failed)? else { return Ok(None) };
    let bytes = file.metadata().map_err(failed)?.len();
    let Some(length) = payload_of(bytes) else {
        return Err(Error::new(KVKEEP_ERR_CORRUPT, format!("the file ends after {bytes} bytes, before its payload")));
    };
    let mut header = Header([0; HEADER_BYTES]);
    file.read_exact(&mut header.0).map_err(failed)?;
    file.seek(SeekFrom::Start(BLOCK as u64)).map_err(failed)?;
    header.verify_read(key, length, &mut file).map_err(failed)??;
    Ok(Some(length))
}

/// The names of a space whose objects are in the directory `dir`; none where they are not there, or damaged.
pub fn space_names(dir: &Path, space: SpaceTag) -> Option<SpaceNames> {
    space_files::read(&dir.join(hex(&space.0)), space)
}
