//! What `verify` and `stat` share: the files of an `fs` directory, sorted by what they are.

use std::path::Path;

use kvkeep::key::ObjectKey;
use kvkeep::l2::fs::inspect::{Entry, Kind, list};

/// The files of one directory.
pub struct Directory {
    pub objects: Vec<(ObjectKey, Entry)>,
    pub writing: Vec<Entry>,
    pub stale: Vec<Entry>,
    pub quarantined: Vec<(Option<ObjectKey>, Entry)>,
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
            Kind::Quarantined(key) => directory.quarantined.push((key, entry)),
            Kind::Foreign => directory.foreign.push(entry),
        }
    }
    Ok(directory)
}

impl Directory {
    /// The lines that say what else is there; empty if nothing is.
    pub fn leftovers(&self) -> String {
        let mut text = String::new();
        let sum = |entries: &[Entry]| (entries.len(), entries.iter().map(|entry| entry.bytes).sum());
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
