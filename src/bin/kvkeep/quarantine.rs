//! `kvkeep quarantine`: lists the objects of a directory that were found broken, or removes them.

use std::path::PathBuf;

use kvkeep::l2::fs::listing;

use crate::{Outcome, directory, text};

/// List or remove the objects that were found broken
///
/// A load that finds an object short, of another identity or with a wrong checksum moves it into quarantine, where no lookup
/// finds it. What is there counts under the capacity and is bounded: at most 64 files, and at most one hundredth of the capacity
/// or 1 GiB, the oldest go first. Many of them tell of a disk that loses what it was given.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep quarantine /var/cache/kvkeep\n  kvkeep quarantine --clear /var/cache/kvkeep\n\nExit status: 0 \
    the quarantine is empty, or was emptied, 1 there are objects in it, 2 it cannot be read or emptied."
)]
pub struct QuarantineArgs {
    /// The directory of an fs backend
    dir: PathBuf,
    /// Remove them
    #[arg(long)]
    clear: bool,
}

/// Lists or removes the quarantined objects. False if there are some.
pub fn run(args: &QuarantineArgs) -> Outcome {
    let quarantined = directory::read(&args.dir)?.quarantined;
    let bytes = text::bytes(quarantined.iter().map(|(_, entry)| entry.bytes).sum());
    let count = text::count(quarantined.len() as u64);
    if args.clear {
        for (_, entry) in &quarantined {
            match std::fs::remove_file(&entry.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{error}: removing {}; run as a user who may", entry.path.display()));
                }
                _ => {}
            }
        }
        text::print(&format!("{count} objects removed ({bytes})\n"));
        return Ok(true);
    }
    let mut report = format!("{count:>12}  objects in quarantine ({bytes})\n");
    for (key, entry) in &quarantined {
        let why = match key.map(|key| listing::verify(&entry.path, &key)) {
            Some(Ok(Some(_))) => "is whole when read now".to_owned(),
            Some(Ok(None)) => continue,
            Some(Err(error)) => error.to_string(),
            None => "has no name that kvkeep gives".to_owned(),
        };
        report += &format!("{} ({}): {why}\n", entry.path.display(), text::bytes(entry.bytes));
    }
    text::print(&report);
    Ok(quarantined.is_empty())
}
