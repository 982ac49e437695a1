//! Pages to objects and back, bit by bit, over layouts of every kind, on whatever device.
#![allow(unsafe_code)]

use kvkeep::abi::{JobResult, Stats};
use kvkeep::config::SpaceSpec;
use kvkeep::error::{KVKEEP_OK, Status};
use kvkeep::key::Key;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::layout::Segment;
use kvkeep::transfer::submit::AskedTransfer;
use kvkeep::transfer::{PoolSpec, TransferRequest};
use proptest::prelude::*;

use super::random::{Random, number};

/// Long enough for anything that ends.
pub const WAIT_MS: u32 = 120_000;

/// Memory of a device, as words that the test sees and under the address that the device has for it.
pub trait Memory {
    fn words(&self) -> &[u64];
    fn words_mut(&mut self) -> &mut [u64];
    fn address(&self) -> u64;
}

/// Where the pages of workers are.
pub trait Devices {
    /// The device of a worker.
    fn of(&self, worker: u32) -> i32;
    /// Memory of that device.
    fn memory(&self, worker: u32, words: usize) -> Box<dyn Memory>;
}

/// The host's own memory.
pub struct OnHost;

impl Memory for Vec<u64> {
    fn words(&self) -> &[u64] {
        self
    }

    fn words_mut(&mut self) -> &mut [u64] {
        self
    }

    fn address(&self) -> u64 {
        self.as_ptr().expose_provenance() as u64
    }
}

impl Devices for OnHost {
    fn of(&self, _worker: u32) -> i32 {
        -1
    }

    fn memory(&self, _worker: u32, words: usize) -> Box<dyn Memory> {
        Box::new(vec![0; words])
    }
}

/// How an engine lays a layer's bytes of a block out. Whether tokens come first inside a head or heads inside a token (NHD, HND)
/// makes no difference where a block is whole; where heads lie apart, each is a segment.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// K and V in tensors of their own.
    Apart,
    /// Heads outermost: for each of two heads, K and V of all blocks.
    Heads,
    /// One tensor for each layer, K and V of a block side by side, as one segment.
    Fused,
    /// The same as two segments that interleave.
    Interleaved,
    /// One latent, the same on every worker.
    Latent,
    /// All layers of a block side by side.
    CrossLayer,
}

/// A model on an engine.
#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    pub layers: u32,
    pub groups: u32,
    pub tp: u32,
    /// Bytes of a block's K, in a layer.
    pub bytes: u64,
    pub gap: u64,
    pub per_chunk: u32,
    pub chunks: u32,
    /// Blocks of the last chunk.
    pub tail: u32,
    pub skip: u32,
    pub temporary: bool,
    pub seed: u64,
}

pub fn cases_of_any_kind() -> impl Strategy<Value = Case> {
    let kind = prop_oneof![
        Just(Kind::Apart),
        Just(Kind::Heads),
        Just(Kind::Fused),
        Just(Kind::Interleaved),
        Just(Kind::Latent),
        Just(Kind::CrossLayer)
    ];
    // Now and then blocks that are copied past the caches.
    let bytes =
        prop_oneof![8 => (1u64..300).prop_map(|words| words * 4), 1 => (4096u64..9000).prop_map(|words| words * 4)];
    let sizes = (bytes, 0u64..8, 0u32..5, 1u32..6);
    let more = (1u32..=16, 0u32..20, any::<bool>(), any::<u64>());
    (kind, 1u32..=5, 1u32..=3, 1u32..=8, sizes, more).prop_map(
        |(kind, layers, groups, tp, (bytes, gap, per_chunk, chunks), (tail, skip, temporary, seed))| {
            let per_chunk = 1 << per_chunk;
            let tail = 1 + tail % per_chunk;
            Case { kind, layers, groups, tp, bytes, gap: gap * 4, per_chunk, chunks, tail, skip, temporary, seed }
        },
    )
}

/// The paged memory of one worker.
pub struct Pages {
    pub memory: Box<dyn Memory>,
    device: i32,
    pub segments: Vec<Segment>,
    pub blocks: u32,
}

impl Case {
    pub fn latent(&self) -> bool {
        matches!(self.kind, Kind::Latent)
    }

    /// Blocks of each group that hold a chunk's tokens.
    pub fn used(&self) -> u32 {
        (self.chunks - 1) * self.per_chunk + self.tail
    }

    /// Pages of a worker, every word of them `fill`.
    pub fn pages(&self, devices: &dyn Devices, worker: u32, fill: u64) -> Pages {
        // Room for what is stored, as much again to load into, and some that nobody names.
        let blocks = 2 * self.chunks * self.per_chunk + 3;
        let (b, gap, n) = (self.bytes, self.gap, u64::from(blocks));
        let fused = if self.latent() { b } else { 2 * b };
        let words = (u64::from(self.layers) * n * (2 * b + 4 * gap) + 4096) as usize / 8;
        let mut memory = devices.memory(worker, words);
        memory.words_mut().fill(fill);
        let mut at = memory.address();
        let mut segments = Vec::new();
        for layer in 0..self.layers {
            // Groups take layers in turn.
            let group = layer % self.groups;
            let mut segment = |address, block_bytes, block_stride| {
                segments.push(Segment { address, block_bytes, block_stride, group, layer: 10 * layer, part: 0 });
            };
            match self.kind {
                Kind::Apart => {
                    segment(at, b, b + gap);
                    segment(at + n * (b + gap), b, b + gap);
                    at += 2 * n * (b + gap);
                }
                Kind::Heads => {
                    // Odd numbers of words are split unevenly.
                    let half = b / 8 * 4;
                    let heads = [half, b - half].into_iter().filter(|&head| head > 0);
                    for head in heads.flat_map(|head| [head, head]) {
                        segment(at, head, head + gap);
                        at += n * (head + gap);
                    }
                }
                Kind::Fused | Kind::Latent => {
                    segment(at, fused, fused + gap);
                    at += n * (fused + gap);
                }
                Kind::Interleaved => {
                    segment(at, b, fused + gap);
                    segment(at + b, b, fused + gap);
                    at += n * (fused + gap);
                }
                Kind::CrossLayer => {
                    let stride = u64::from(self.layers) * (fused + gap);
                    segment(at + u64::from(layer) * (fused + gap), fused, stride);
                }
            }
        }
        Pages { memory, device: devices.of(worker), segments, blocks }
    }

    pub fn groups(&self) -> u32 {
        self.groups.min(self.layers)
    }

    /// Chunk-major, a key for each group.
    pub fn keys(&self, rank: u32) -> Vec<Key> {
        let key = |chunk: u32, group| {
            let mut hash = [9; 32];
            hash[..8].copy_from_slice(&self.seed.to_le_bytes());
            hash[8..12].copy_from_slice(&chunk.to_le_bytes());
            Key { hash, rank, group }
        };
        (0..self.chunks).flat_map(|chunk| (0..self.groups()).map(move |group| key(chunk, group))).collect()
    }

    /// Block numbers for each key; those of the last chunk's missing tokens are none.
    pub fn blocks(&self, numbers: &[i32]) -> Vec<i32> {
        (0..self.chunks)
            .flat_map(|chunk| std::iter::repeat_n(chunk, self.groups() as usize))
            .flat_map(|chunk| (chunk * self.per_chunk..).take(self.per_chunk as usize))
            .map(|block| if block < self.used() { numbers[block as usize] } else { -1 })
            .collect()
    }
}

impl Pages {
    pub fn bytes(&self, segment: usize, block: i32) -> &[u8] {
        let segment = &self.segments[segment];
        let from = (segment.block(block as u32) - self.memory.address()) as usize;
        let words = self.memory.words();
        // SAFETY: plain memory, all of it initialized.
        let all = unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), size_of_val(words)) };
        &all[from..from + segment.block_bytes as usize]
    }

    pub fn pool(&self, opened: &OpenCache, space: u64, rank: u32, per_chunk: u32) -> u64 {
        // SAFETY: the memory outlives the pool in each test, and nobody touches it while a transfer is not done.
        let promise = unsafe { Promise::given() };
        let spec = PoolSpec {
            device: self.device,
            rank,
            blocks: self.blocks,
            blocks_per_chunk: per_chunk,
            segments: self.segments.clone(),
            promise,
        };
        opened.transfers().open_pool(space, spec).unwrap()
    }
}

pub fn result(opened: &OpenCache, job: u64) -> JobResult {
    let mut result = JobResult::default();
    opened.wait(job, WAIT_MS).unwrap();
    assert_eq!(opened.query_job(job, &mut result).unwrap(), KVKEEP_OK);
    result
}

pub fn status(opened: &OpenCache, job: u64) -> Status {
    Status::from_number(result(opened, job).status).unwrap()
}

/// Stores what all workers have, and loads it elsewhere.
pub fn round_trip(opened: &OpenCache, case: &Case, devices: &dyn Devices, drop_l1: &dyn Fn(u64)) {
    let spec = SpaceSpec {
        generation: 0,
        model: "m".to_owned(),
        layout: format!("{case:?}"),
        tenant: String::new(),
        chunk_tokens: 4 * case.per_chunk,
        quota_bytes: 0,
    };
    let space = opened.open_space(spec).unwrap();
    let mut random = Random(case.seed);
    let session = opened.begin_session(space, "r", None).unwrap();
    let mut stored = Vec::new();
    for worker in 0..case.tp {
        let mut pages = case.pages(devices, worker, 0);
        pages.memory.words_mut().iter_mut().for_each(|word| *word = random.next());
        let mut numbers: Vec<i32> = (0..pages.blocks as i32).collect();
        random.shuffle(&mut numbers);
        // Of a latent, one worker stores for all.
        if !case.latent() || worker == 0 {
            let pool = pages.pool(opened, space, worker, case.per_chunk);
            let (keys, blocks) = (case.keys(worker), case.blocks(&numbers));
            let asked = AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
            let mut job = 0;
            opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
            assert_eq!(status(opened, job), KVKEEP_OK);
            opened.transfers().close_pool(pool).unwrap();
            stored.push((pages, numbers));
        }
    }
    opened.end_session(session).unwrap();
    drop_l1(space);
    let session = opened.begin_session(space, "r", None).unwrap();
    for worker in 0..case.tp {
        let rank = if case.latent() { 0 } else { worker };
        let (source, from) = &stored[rank as usize];
        let pages = case.pages(devices, worker, 0xeeee_eeee_eeee_eeee);
        let untouched = case.pages(devices, worker, 0xeeee_eeee_eeee_eeee);
        let mut to: Vec<i32> = (0..pages.blocks as i32).collect();
        random.shuffle(&mut to);
        let pool = pages.pool(opened, space, rank, case.per_chunk);
        let (keys, blocks) = (case.keys(rank), case.blocks(&to));
        let request = TransferRequest {
            skip_first_tokens: case.skip * 4,
            return_shares: true,
            temporary: case.temporary,
            ..TransferRequest::default()
        };
        let mut job = 0;
        let asked = AskedTransfer { pool, session, keys: &keys, blocks: &blocks };
        opened.transfers().submit_load(asked, request, &mut job).unwrap();
        assert_eq!(status(opened, job), KVKEEP_OK);
        let wanted = case.skip.min(case.used())..case.used();
        for segment in 0..pages.segments.len() {
            for (i, (&from, &to)) in from.iter().zip(&to).enumerate() {
                let loaded = wanted.contains(&(i as u32));
                let expected = if loaded { source.bytes(segment, from) } else { untouched.bytes(segment, to) };
                assert!(pages.bytes(segment, to) == expected, "segment {segment}, block {i} of {wanted:?}");
            }
        }
        let mut statuses = vec![1; blocks.len()];
        assert_eq!(opened.transfers().query_blocks(job, &mut statuses).unwrap(), KVKEEP_OK);
        assert!(statuses.iter().all(|&status| status == KVKEEP_OK as i32));
        // Not a byte between the blocks was touched either.
        let touched = |pages: &Pages| {
            pages.memory.words().iter().filter(|&&word| word != 0xeeee_eeee_eeee_eeee).count() as u64 * 8
        };
        let bytes: u64 = pages.segments.iter().map(|segment| segment.block_bytes).sum();
        assert!(touched(&pages) <= u64::from(wanted.end - wanted.start) * (bytes + 8 * pages.segments.len() as u64));
        opened.transfers().close_pool(pool).unwrap();
        opened.release_job(job).unwrap();
    }
    opened.end_session(session).unwrap();
    let mut stats = Stats::default();
    opened.stats(&mut stats).unwrap();
    assert_eq!((stats.l1_shares, stats.l1_staged, stats.sessions), (0, 0, 0));
}

/// Tries as many layouts as `PROPTEST_CASES` says, or one of so many of those.
pub fn try_layouts(opened: &OpenCache, devices: &dyn Devices, one_of: u32) {
    let cases = number("PROPTEST_CASES", || 1000).div_ceil(u64::from(one_of)) as u32;
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let tried = proptest::test_runner::TestRunner::new(config).run(&cases_of_any_kind(), |case| {
        round_trip(opened, &case, devices, &|space| {
            // Every other time they come from below.
            if case.seed % 2 == 0 {
                opened.flush(WAIT_MS).unwrap();
                opened.clear(space, false).unwrap();
            }
        });
        opened.clear(0, false).unwrap();
        Ok(())
    });
    tried.unwrap();
}
