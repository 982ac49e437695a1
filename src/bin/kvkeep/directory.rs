//! What `verify` and `stat` share: the files of an `fs` directory, sorted by what they are.

use std::path::Path;

use kvkeep::key::ObjectKey;
use kvkeep::l2::fs::inspect::{Entry, Kind, list};

/// The files of one directory.
pub struct Directory {
    pub objects: Vec<(ObjectKey, Entry)>,
    pub writing: Vec<Entry>,
    pub stale: Vec<Entry>,
    pub quarantined: Vec<Entry>,
    pub foreign: Vec<Entry>,
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
    };
    for entry in list(dir).map_err(|error| format!("{error}; run as a user who may read the directory"))? {
        match entry.kind {
            Kind::Object(key) => directory.objects.push((key, entry)),
            Kind::Temporary { stale: false } => directory.writing.push(entry),
            Kind::Temporary { stale: true } => directory.stale.push(entry),
            Kind::Quarantined => directory.quarantined.push(entry),
            Kind::Foreign => directory.foreign.push(entry),
        }
    }
    Ok(directory)
}

impl Directory {
    /// The lines that say what else is there; empty if nothing is.
    pub fn leftovers(&self) -> String {
        let mut text = String::new();
        for (entries, what) in [
            (&self.writing, "being written now"),
            (&self.stale, "stale temporaries; the next open removes them"),
            (&self.quarantined, "quarantined: found broken by an earlier load; delete them when inspected"),
            (&self.foreign, "foreign files that kvkeep did not put there"),
        ] {
            if !entries.is_empty() {
                let bytes = entries.iter().map(|entry| entry.bytes).sum();
                text += &format!(
                    "{:>12}  {what} ({})\n",
                    crate::text::count(entries.len() as u64),
                    crate::text::bytes(bytes)
                );
            }
        }
        text
    }
}
