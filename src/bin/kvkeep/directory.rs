//! What `verify` and `stat` share: the files of an `fs` directory, sorted by what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kvkeep::key::{ObjectKey, SpaceTag};
use kvkeep::l2::fs::listing::{FileEntry, FileKind, list, space_names};
use kvkeep::space_names::SpaceNames;

/// The files of one directory.
pub struct Directory {
    pub objects: Vec<(ObjectKey, FileEntry)>,
    pub writing: Vec<FileEntry>,
    pub stale: Vec<FileEntry>,
    pub quarantined: Vec<(Option<ObjectKey>, FileEntry)>,
    pub foreign: Vec<FileEntry>,
    /// The names of the objects' spaces, where the directory has them.
    pub names: BTreeMap<SpaceTag, SpaceNames>,
}

/// Reads names and sizes.
pub fn read(dir: &Path) -> Result<Directory, String> {
    if !dir.is_dir() {
        return Err(format!(
            "{} is not a directory: name the one of an fs backend, as in fs:///var/cache/kvkeep",
            dir.display()
        ));
    }
    let mut directory = Directory {
        objects: Vec::new(),
        writing: Vec::new(),
        stale: Vec::new(),
        quarantined: Vec::new(),
        foreign: Vec::new(),
        names: BTreeMap::new(),
    };
    for entry in list(dir).map_err(|error| format!("{error}; run as a user who may read the directory"))? {
        match entry.kind {
            FileKind::Object(key) => directory.objects.push((key, entry)),
            FileKind::Temporary { stale: false } => directory.writing.push(entry),
            FileKind::Temporary { stale: true } => directory.stale.push(entry),
            FileKind::Quarantined(key) => directory.quarantined.push((key, entry)),
            FileKind::Foreign => directory.foreign.push(entry),
        }
    }
    let spaces: BTreeSet<SpaceTag> = directory.objects.iter().map(|(key, _)| key.space).collect();
    directory.names = spaces.into_iter().filter_map(|space| Some((space, space_names(dir, space)?))).collect();
    Ok(directory)
}

impl Directory {
    /// Lines about the other files of the directory; empty if there are none.
    pub fn leftovers(&self) -> String {
        let mut text = String::new();
        let sum = |entries: &[FileEntry]| (entries.len(), entries.iter().map(|entry| entry.bytes).sum());
        let quarantined = (self.quarantined.len(), self.quarantined.iter().map(|(_, entry)| entry.bytes).sum());
        for ((count, bytes), what) in [
            (sum(&self.writing), "being written now"),
            (sum(&self.stale), "stale temporaries; who has the directory open, or opens it, removes them"),
            (quarantined, "quarantined: found broken by an earlier load; see kvkeep quarantine"),
            (sum(&self.foreign), "foreign files that kvkeep did not put there"),
        ] {
            if count > 0 {
                let (count, bytes) = (crate::text::count(count as u64), crate::text::bytes(bytes));
                text += &format!("{count:>12}  {what} ({bytes})\n");
            }
        }
        text
    }
}
