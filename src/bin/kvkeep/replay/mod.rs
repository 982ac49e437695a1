//! `kvkeep replay`: a request trace through a cache, by keys alone or with every byte.

mod bars;
mod content;
mod engine;
mod plain;
mod request_player;
mod simulated_tier;
mod simulation;
mod sizing;
mod svg;
mod trace;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvkeep::config::NodeConfig;
use kvkeep::l2::url;
use kvkeep::policy;

use crate::{Outcome, text};
use trace::{BLOCK_BYTES_MAX, Trace};

/// Replay a request trace: how large should L1 be?
///
/// Simulates, by keys alone, a cache that serves the trace's requests: the eviction policies are the cache's own, and no bytes are
/// moved, so that hours of requests and terabytes of blocks take seconds. Prints the hit rate by the size of L1, and the size from
/// which on more memory gives little. A hit is a block that an engine can use: one before the first missing block of its request.
///
/// With --real the trace runs through a real cache: each block is stored, loaded, read and compared byte by byte. That proves and
/// measures a machine, its disk and its backends; it needs the memory and the time that the bytes need.
#[derive(Args)]
#[command(after_help = "Examples:
  kvkeep replay trace.jsonl                                     # how large should L1 be?
  kvkeep replay trace.jsonl --l1 32GiB,64GiB,128GiB --l2 2TiB   # and with a directory below it?
  kvkeep replay trace.jsonl --policy all --svg rates.svg        # which policy?
  kvkeep replay trace.jsonl --real --l1 4GiB --l2 'fs:///var/cache/kvkeep?capacity=20GiB'

The trace is one that kvkeep serve --trace has recorded, or has one JSON object a line: timestamp (ms), input_length and
output_length (tokens), and hash_ids, one id per 512 tokens of the prompt, where two requests share an id only if all tokens
before it are equal too.

Exit status: 0 done, 1 bytes were wrong (--real), 2 wrong usage or an input/output error.")]
pub struct ReplayArgs {
    /// The trace, as JSON lines; the older half of a recording first, as in trace.1 trace
    #[arg(required = true)]
    trace: Vec<PathBuf>,
    /// Sizes of L1, such as 64GiB or 32GiB,64GiB [default: powers of two up to what the whole trace needs; 1GiB with --real]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = size, conflicts_with = "sizes")]
    l1: Vec<u64>,
    /// Sizes of a directory below L1, such as 2TiB. With --real the URL of a backend, such as
    /// fs:///var/cache/kvkeep?capacity=10GiB; may be given again for further ones, in order
    #[arg(long, value_name = "SIZES|URL")]
    l2: Vec<String>,
    /// Eviction policies, one or more of lru, s3fifo, mq and none, or all
    #[arg(long, value_name = "NAMES", default_value = "lru", value_delimiter = ',', value_parser = policy_name)]
    policy: Vec<String>,
    /// Sizes of L1 as shares of the bytes of the trace's different blocks, such as 1%,10%
    #[arg(long, value_name = "SHARES", value_delimiter = ',', value_parser = share)]
    sizes: Vec<f64>,
    /// Which blocks count as found. prefix: those before the first missing one, since an engine can use no others.
    /// any: each for itself, as studies of caches count
    #[arg(long, value_enum, default_value = "prefix")]
    mode: FoundMode,
    /// Bytes of a block, where the trace does not say them [default: 64MiB, which is 512 tokens of an 8B model; 4096 with --real]
    #[arg(long, value_name = "N", value_parser = block_size)]
    block_bytes: Option<u64>,
    /// Background eviction starts above this share of L1; 100 is never [default: 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    watermark_high_percent: Option<u32>,
    /// Background eviction stops at this share of L1 [default: 60]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    watermark_low_percent: Option<u32>,
    /// Also draw the hit rates into this file
    #[arg(long, value_name = "FILE", conflicts_with = "real")]
    svg: Option<PathBuf>,
    /// Replay the first N requests only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Run the trace through a real cache and check every byte: each lookup is a request that stores what it misses
    #[arg(long, conflicts_with = "sizes")]
    real: bool,
    /// realtime: requests come when the trace says. max: each comes when the one before has ended, and waits while more than
    /// an eighth of L1 is still to be written to L2
    #[arg(long, value_enum, default_value = "max", requires = "real")]
    speed: Speed,
    /// Leave out the checksums of objects in L2, to see what they cost: then nothing but this command finds a wrong byte
    #[arg(long, requires = "real")]
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

impl ReplayArgs {
    /// The policies, each once.
    fn policies(&self) -> Vec<String> {
        if self.policy.iter().any(|name| name == "all") {
            return policy::NAMES.map(str::to_owned).to_vec();
        }
        let mut policies: Vec<String> = Vec::new();
        for name in &self.policy {
            if !policies.contains(name) {
                policies.push(name.clone());
            }
        }
        policies
    }

    /// The marks between which background eviction keeps L1, with the defaults of a cache.
    fn watermarks(&self) -> Result<(u32, u32), String> {
        let defaults = NodeConfig::new(0);
        let high = self.watermark_high_percent.unwrap_or(defaults.watermark_high_percent);
        let low = self.watermark_low_percent.unwrap_or(defaults.watermark_low_percent.min(high));
        if low > high {
            return Err(format!("watermarks are {high} and {low} percent: the low one must not be above the high one"));
        }
        Ok((high, low))
    }
}

/// Replays the trace. False if bytes were wrong.
pub fn run(args: &ReplayArgs) -> Outcome {
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut trace = Trace::read(&args.trace, limit)?;
    for note in &trace.notes {
        eprintln!("kvkeep: {note}");
    }
    if args.real { plain::run(args, &trace) } else { sizing::run(args, &mut trace) }
}
