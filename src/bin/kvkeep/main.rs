//! The `kvkeep` command: serves a cache to many processes, replays request traces, and looks after directories of objects.

mod clear;
mod daemon;
mod directory;
mod explain;
mod quarantine;
mod refusals;
mod replay;
mod serve;
mod stat;
mod text;
mod top;
mod verify;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps the KV cache of language-model requests outside the GPU
#[derive(Parser)]
#[command(name = "kvkeep", version, about, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 all is well, 1 something was found wrong, 2 wrong usage or an input/output error."
)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Serve(Box<serve::ServeArgs>),
    Stat(stat::StatArgs),
    Top(top::TopArgs),
    Explain(explain::ExplainArgs),
    Why(why::WhyArgs),
    Clear(clear::ClearArgs),
    Replay(replay::ReplayArgs),
    Verify(verify::VerifyArgs),
    Quarantine(quarantine::QuarantineArgs),
}

/// Whether all was well, or a sentence with cause and remedy.
type Outcome = Result<bool, String>;

fn main() -> ExitCode {
    kvkeep::threads::defer_background();
    let outcome = match Command::parse().verb {
        Verb::Serve(args) => serve::run(&args),
        Verb::Top(args) => top::run(&args),
        Verb::Explain(args) => explain::run(&args),
        Verb::Why(args) => why::run(&args),
        Verb::Clear(args) => clear::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Quarantine(args) => quarantine::run(&args),
        Verb::Stat(args) => stat::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(sentence) => {
            eprintln!("kvkeep: {sentence}");
            ExitCode::from(2)
        }
    }
}
