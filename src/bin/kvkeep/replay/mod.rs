//! `kvkeep replay`: a request trace through the library, every byte checked.

mod content;
mod engine;
mod plain;
mod svg;
mod table;
mod trace;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvkeep::l2::url;
use kvkeep::policy;

use crate::{Outcome, text};

/// Largest block: no engine has larger ones, and sizes made from it do not overflow.
const BLOCK_BYTES_MAX: u64 = 64 << 30;

/// Replay a request trace through the library and check every byte
///
/// Each request of the trace is one session: prefetch what the cache has, read it and check every byte, return the shares,
/// store the missing blocks in order, end. A block's bytes are made from its id. Requests run one after another.
///
/// Without --sizes, the trace runs once through an L1 (and, with --l2, the tiers below it) and a report says what was hit,
/// moved and measured. With --sizes (or --policy all), it runs through an L1 alone for every policy and size, which gives
/// tables of block and prefix hit rates and a plot.
#[derive(Args)]
#[command(after_help = "Examples:
  kvkeep replay trace.jsonl --l1 256MiB
  kvkeep replay trace.jsonl --l1 64MiB --l2 'fs:///var/cache/kvkeep?capacity=10GiB'
  kvkeep replay trace.jsonl --policy all --sizes 1%,5%,10%,20%,50% --svg rates.svg

The trace has one JSON object a line: timestamp (ms), input_length and output_length (tokens), and hash_ids, one id per 512
tokens of the prompt, where two requests share an id only if all tokens before it are equal too.

Exit status: 0 every byte was right, 1 bytes were wrong, 2 wrong usage or an input/output error.")]
pub struct ReplayArgs {
    /// The trace, as JSON lines
    trace: PathBuf,
    /// Size of L1, such as 256MiB [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "sizes")]
    l1: Option<u64>,
    /// A backend below L1, such as fs:///var/cache/kvkeep?capacity=10GiB; may be given again for further ones, in order
    #[arg(long, value_name = "URL", conflicts_with = "sizes")]
    l2: Vec<String>,
    /// Eviction policy of L1: lru, s3fifo, mq or none; all for a table of every one
    #[arg(long, value_name = "NAME", default_value = "lru", value_parser = policy_name)]
    policy: String,
    /// Make a table: sizes of L1 as shares of the trace's unique blocks, such as 1%,10% [default with --policy all:
    /// 1%,5%,10%,20%,50%]
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = share)]
    sizes: Vec<f64>,
    /// Which blocks count as found. prefix: those before the first missing one, since an engine can use no others.
    /// any: each for itself, as studies of caches count. [default: prefix; any for a table]
    #[arg(long, value_enum)]
    mode: Option<FoundMode>,
    /// Bytes of a block; for a table, multiples of 4096 make the sizes exact
    #[arg(long, value_name = "N", default_value = "4096", value_parser = block_size)]
    block_bytes: u64,
    /// File for the plot of a table [default: replay.svg]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// realtime: requests come when the trace says. max: each comes when the one before has ended, and waits while more than
    /// an eighth of L1 is still to be written to L2
    #[arg(long, value_enum, default_value = "max")]
    speed: Speed,
    /// Replay the first N requests only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Leave out the checksums of objects in L2, to see what they cost: then nothing but this command finds a wrong byte
    #[arg(long)]
    no_checksum: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum FoundMode {
    Prefix,
    Any,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Speed {
    Realtime,
    Max,
}

fn size(text: &str) -> Result<u64, String> {
    match url::size(text) {
        Ok(0) => Err("0 bytes is no size; write 4096, 64MiB or 200GiB".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.message),
    }
}

fn block_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes > BLOCK_BYTES_MAX {
        return Err(format!("a block has at most {}", text::bytes(BLOCK_BYTES_MAX)));
    }
    Ok(bytes)
}

fn policy_name(text: &str) -> Result<String, String> {
    if text == "all" || policy::NAMES.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("there is no such policy; there are {} and all", policy::NAMES.join(", ")))
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    number
        .filter(|number| *number > 0.0 && *number <= 100.0)
        .ok_or_else(|| "a size is a share of the unique blocks, above 0% and up to 100%, such as 5%".to_owned())
}

/// Replays the trace once, or once for each cell of a table. False if bytes were wrong.
pub fn run(args: &ReplayArgs) -> Outcome {
    let of_table = args.policy == "all" || !args.sizes.is_empty();
    if of_table && (args.l1.is_some() || !args.l2.is_empty()) {
        return Err(
            "--policy all makes a table, which has sizes of its own and no L2: leave out --l1 and --l2".to_owned()
        );
    }
    if of_table && args.speed == Speed::Realtime {
        return Err("a table is made at full speed: leave out --speed realtime".to_owned());
    }
    if !of_table && args.svg.is_some() {
        return Err("--svg is the plot of a table: give --sizes or --policy all too".to_owned());
    }
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let requests = trace::read(&args.trace, limit)?;
    if of_table { table::run(args, &requests) } else { plain::run(args, &requests) }
}
