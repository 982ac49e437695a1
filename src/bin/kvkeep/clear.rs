//! `kvkeep clear`: empties a daemon's L1, or all its tiers.

use kvkeep::cache::Cache as _;

use crate::{Outcome, daemon, text};

/// Empty the L1 of a daemon, or all its tiers
///
/// Backends keep what they have, unless --all-tiers is given: then nothing stored before is found from now on, and what the
/// backends have is deleted in the background, which stat shows. Objects in use stay, unless --force is given: then no lookup finds them any more, jobs are
/// cancelled, and their memory is freed when the last reader is through.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 nothing is left, 1 something in use stayed, 2 it could not be done.\n\nExamples:\n  kvkeep clear unix:///run/kvkeep.sock\n  kvkeep clear --space 7316245889087154412 --force unix:///run/kvkeep.sock\n  kvkeep clear --space 7316245889087154412 --all-tiers unix:///run/kvkeep.sock"
)]
pub struct ClearArgs {
    /// The daemon, as unix:///PATH
    url: String,
    /// Only this space; explain shows the numbers of spaces
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    space: u64,
    /// Also hide what is in use
    #[arg(long)]
    force: bool,
    /// Forget it in the backends, too, and whatever is being stored, as when the weights have changed
    #[arg(long)]
    all_tiers: bool,
}

/// Clears, and prints how many objects went. False if objects in use stay.
pub fn run(args: &ClearArgs) -> Outcome {
    if args.all_tiers {
        let gone =
            daemon::once(&args.url, true, |client| client.forget_space(args.space).map_err(|error| error.to_string()))?;
        text::print(&format!("{} objects went from L1; the backends delete theirs\n", text::count(gone)));
        return Ok(true);
    }
    let (gone, all) = daemon::once(&args.url, true, |client| {
        client.clear(args.space, args.force).map_err(|error| error.to_string())
    })?;
    let rest = if all { "" } else { "; others are in use and stay: --force hides them" };
    text::print(&format!("{} objects went{rest}\n", text::count(gone)));
    Ok(all)
}
