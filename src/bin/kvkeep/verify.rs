//! `kvkeep verify`: reads every object of a directory and checks it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use kvkeep::error::KVKEEP_ERR_CORRUPT;
use kvkeep::l2::fs::listing;

use crate::{Outcome, directory, text};

/// Files read at once: enough to keep a disk busy while others are summed.
const THREADS: usize = 4;

/// Check every object of an fs directory
///
/// Reads each object and checks header, identity, length and checksum. Opens no cache and changes nothing, so that it may
/// run beside a live one; what is written or evicted meanwhile is not counted. A corrupt object is no danger to an engine:
/// the library checks each one it loads, and treats a broken one as a miss.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  kvkeep verify /var/cache/kvkeep\n\nExit status: 0 every object is whole, 1 some are \
    corrupt, 2 the directory or a file cannot be read."
)]
pub struct VerifyArgs {
    /// The directory of an fs backend
    dir: PathBuf,
}

#[derive(Default)]
struct Findings {
    objects: u64,
    bytes: u64,
    gone: u64,
    corrupt: Vec<String>,
    unreadable: Vec<String>,
}

/// Reads and checks every object. False if some are corrupt.
pub fn run(args: &VerifyArgs) -> Outcome {
    let directory = directory::read(&args.dir)?;
    let files: u64 = directory.objects.iter().map(|(_, entry)| entry.bytes).sum();
    let bar = text::bar(files, "bytes");
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Findings::default());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((key, entry)) = directory.objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = listing::verify(&entry.path, key);
                    bar.inc(entry.bytes);
                    let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    match found {
                        Ok(Some(bytes)) => {
                            all.objects += 1;
                            all.bytes += bytes;
                        }
                        Ok(None) => all.gone += 1,
                        Err(error) if error.status == KVKEEP_ERR_CORRUPT => {
                            all.corrupt.push(format!("{}: {error}", entry.path.display()));
                        }
                        Err(error) => all.unreadable.push(error.to_string()),
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut found = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let spaces: BTreeSet<_> = directory.objects.iter().map(|(key, _)| key.space).collect();

    let mut report = String::new();
    let _ = writeln!(
        report,
        "{:>12}  whole objects ({}) in {} space{}",
        text::count(found.objects),
        text::bytes(found.bytes),
        spaces.len(),
        if spaces.len() == 1 { "" } else { "s" }
    );
    let _ = writeln!(report, "{:>12}  corrupt objects", text::count(found.corrupt.len() as u64));
    if found.gone > 0 {
        let _ = writeln!(report, "{:>12}  removed by another process meanwhile", text::count(found.gone));
    }
    report += &directory.leftovers();
    found.corrupt.sort_unstable();
    found.corrupt.iter().for_each(|line| report += &format!("corrupt: {line}\n"));
    text::print(&report);
    if let Some(first) = found.unreadable.first() {
        return Err(format!("{} objects could not be read; the first: {first}", found.unreadable.len()));
    }
    Ok(found.corrupt.is_empty())
}
