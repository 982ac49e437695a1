//! Transfers between pages and L1 on the host, beside the C library's copy of the same fragments and of as much in one piece.
//!
//! One GiB a transfer, blocks in random order, so that no fragment joins its neighbour and nothing is in a cache. The comparators
//! copy between the same pages and memory of L1's kind, on as many threads as the host device has, and on one.

use std::ptr::{copy_nonoverlapping, null_mut, without_provenance_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvkeep::arena::{Arena, MapOptions};
use kvkeep::ffi::device::{
    kvkeep_close_pool, kvkeep_open_pool, kvkeep_query_blocks, kvkeep_submit_load, kvkeep_submit_store,
};
use kvkeep::ffi::options::{KVKEEP_DEVICE_HOST, kvkeep_pool_options, kvkeep_segment};
use kvkeep::ffi::version::KVKEEP_ABI_VERSION;
use kvkeep::key::Key;

use crate::RUNS;
use crate::cache::{Cache, Setup, must};
use crate::fs::cpu_seconds;
use crate::random::Random;
use crate::report::{Report, Wanted};

const BYTES: usize = 1 << 30;
/// More than of other measurements, since each is short.
const ROUNDS: usize = 3 * RUNS;
/// Eight layers, K and V apart.
const SEGMENTS: usize = 16;
/// What a thread of a comparator takes at once.
const TURN_BYTES: usize = 2 << 20;

/// A cache line of words.
#[repr(align(64))]
#[derive(Clone)]
struct Line([u64; 8]);

/// An engine's memory: for each segment, all blocks one after another. Tensors begin at a cache line.
struct Pages {
    memory: Vec<Line>,
    fragment: usize,
    blocks: usize,
}

impl Pages {
    fn new(fragment: usize) -> Pages {
        let mut pages = Pages { memory: vec![Line([0; 8]); BYTES / 64], fragment, blocks: BYTES / SEGMENTS / fragment };
        let of_segment = |segment| (0..pages.blocks).map(move |block| (segment, block));
        let names: Vec<_> = (0..SEGMENTS).flat_map(of_segment).collect();
        for ((segment, block), words) in names.into_iter().zip(pages.memory.chunks_exact_mut(fragment / 64)) {
            words
                .iter_mut()
                .flat_map(|line| &mut line.0)
                .enumerate()
                .for_each(|(i, word)| *word = word_of(segment, block, i));
        }
        pages
    }

    fn address(&self) -> usize {
        self.memory.as_ptr().expose_provenance()
    }

    /// Objects of each size are another rank's, since those of one rank look alike.
    fn rank(&self) -> u32 {
        self.fragment as u32
    }

    /// Every word of each block `to[i]` is that of block `from[i]`.
    fn verify(&self, from: &[i32], to: &[i32]) {
        let lines = self.fragment / 64;
        for segment in 0..SEGMENTS {
            for (&from, &to) in from.iter().zip(to) {
                let there = &self.memory[(segment * self.blocks + to as usize) * lines..][..lines];
                let mut words = there.iter().flat_map(|line| line.0).enumerate();
                let right = words.all(|(i, word)| word == word_of(segment, from as usize, i));
                assert!(right, "segment {segment}, block {to} is not what block {from} was");
            }
        }
    }
}

fn word_of(segment: usize, block: usize, word: usize) -> u64 {
    ((segment << 48 ^ block << 24 ^ word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One side and the other of each fragment.
type Fragments = Vec<(usize, usize, usize)>;

/// The C library's copy on so many threads: GB/s.
fn memcpy(fragments: &Fragments, threads: usize) -> f64 {
    let turn = (TURN_BYTES / fragments[0].2).max(1);
    let (turns, next) = (fragments.len().div_ceil(turn), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for mine in std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < turns)) {
                    for &(from, to, bytes) in fragments.iter().skip(mine * turn).take(turn) {
                        let (from, to) = (std::ptr::with_exposed_provenance::<u8>(from), to);
                        // SAFETY: both sides are live memory of the caller, whose fragments do not overlap.
                        unsafe { copy_nonoverlapping(from, std::ptr::with_exposed_provenance_mut(to), bytes) };
                    }
                }
            });
        }
    });
    BYTES as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// As much in one piece for each thread.
fn large(from: usize, to: usize, threads: usize) -> f64 {
    let part = BYTES / threads;
    memcpy(&(0..threads).map(|i| (from + i * part, to + i * part, part)).collect(), threads)
}

fn pool(cache: &Cache, pages: &Pages, per_chunk: usize) -> u64 {
    let segments: Vec<kvkeep_segment> = (0..SEGMENTS)
        .map(|i| kvkeep_segment {
            address: (pages.address() + i * pages.blocks * pages.fragment) as u64,
            block_bytes: pages.fragment as u64,
            block_stride: 0,
            group: 0,
            layer: i as u32 / 2,
            reserved: [0; 2],
        })
        .collect();
    let options = kvkeep_pool_options {
        struct_size: size_of::<kvkeep_pool_options>() as u32,
        abi_version: KVKEEP_ABI_VERSION,
        device: KVKEEP_DEVICE_HOST,
        rank: pages.rank(),
        block_count: pages.blocks as u32,
        blocks_per_chunk: per_chunk as u32,
        segments: segments.as_ptr(),
        segment_count: segments.len(),
        parts: std::ptr::null(),
        reserved: 0,
    };
    let mut pool = 0;
    // SAFETY: options, segments and pool are live locals; the pages outlive the pool and are touched by nobody meanwhile.
    must(unsafe { kvkeep_open_pool(without_provenance_mut(cache.token()), cache.space, &options, &mut pool) });
    pool
}

/// One transfer, from its submission to its end: GB/s.
fn transfer(cache: &Cache, pool: u64, keys: &[Key], blocks: &[i32], store: bool) -> f64 {
    let (session, handle, mut job) = (cache.begin(), without_provenance_mut(cache.token()), 0);
    let (options, job_at) = (std::ptr::null(), &raw mut job);
    let began = Instant::now();
    let submit = if store { kvkeep_submit_store } else { kvkeep_submit_load };
    // SAFETY: the arrays are live and as long as the counts say; `job` is a live local.
    must(unsafe {
        let (keys, key_count, ids, id_count) = (keys.as_ptr(), keys.len(), blocks.as_ptr(), blocks.len());
        submit(handle, pool, session, keys, key_count, ids, id_count, options, job_at, None, null_mut())
    });
    cache.wait(job);
    let spent = began.elapsed();
    let mut statuses = vec![1; blocks.len()];
    // SAFETY: the array is live and as long as the count says.
    must(unsafe { kvkeep_query_blocks(handle, job, statuses.as_mut_ptr(), statuses.len()) });
    assert!(statuses.iter().all(|&status| status == 0), "not every block was copied");
    cache.release(job);
    cache.end(session);
    BYTES as f64 / spent.as_secs_f64() / 1e9
}

/// What a way was measured at, run by run.
#[derive(Default)]
struct Way {
    ours: Vec<f64>,
    cpu: Vec<f64>,
    fragments: Vec<f64>,
    fragments_alone: Vec<f64>,
    large: Vec<f64>,
    large_alone: Vec<f64>,
}

fn ratio(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// What is reported of a way, in order.
const MEASURED: [&str; 8] = [
    "vs_memcpy",
    "vs_large_memcpy",
    "gb_per_s",
    "cpu_s_per_gib",
    "memcpy_gb_per_s",
    "memcpy_alone_gb_per_s",
    "large_memcpy_gb_per_s",
    "large_memcpy_alone_gb_per_s",
];

fn names(name: &str) -> [String; MEASURED.len()] {
    MEASURED.map(|measured| format!("{name}_{measured}"))
}

impl Way {
    fn report(self, report: &mut Report, name: &str, fragment: usize) {
        let to_large = if fragment >= 512 << 10 { Wanted::AtLeast(0.9) } else { Wanted::Nothing };
        let [to_memcpy, to_whole, ours, cpu, fragments, fragments_alone, whole, whole_alone] = names(name);
        report.add(to_memcpy, "x", ratio(&self.ours, &self.fragments), Wanted::AtLeast(1.4));
        report.add(to_whole, "x", ratio(&self.ours, &self.large), to_large);
        report.add(ours, "GB/s", self.ours, Wanted::Nothing);
        report.add(cpu, "s", self.cpu, Wanted::Nothing);
        report.add(fragments, "GB/s", self.fragments, Wanted::Nothing);
        report.add(fragments_alone, "GB/s", self.fragments_alone, Wanted::Nothing);
        report.add(whole, "GB/s", self.large, Wanted::Nothing);
        report.add(whole_alone, "GB/s", self.large_alone, Wanted::Nothing);
    }
}

fn name_of(way: &str, fragment: usize) -> String {
    format!("device_{way}_{}kib", fragment >> 10)
}

/// Whether anything of fragments of a size is asked for. A store and the load behind it are measured together.
fn wants(report: &Report, fragment: usize) -> bool {
    ["store", "load"].iter().any(|way| {
        let names = names(&name_of(way, fragment));
        report.wants(&names.each_ref().map(String::as_str))
    })
}

fn fragments_of(report: &mut Report, cache: &Cache, beside: usize, fragment: usize, per_chunk: usize) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let mut random = Random::new(fragment as u64);
    let pages = Pages::new(fragment);
    let pool = pool(cache, &pages, per_chunk);
    let mut keys = random.keys(pages.blocks / per_chunk);
    keys.iter_mut().for_each(|key| key.rank = pages.rank());
    let mut blocks: Vec<i32> = (0..pages.blocks as i32).collect();
    random.shuffle(&mut blocks);
    // Where the device finds each fragment, in the order of the objects' bytes.
    let in_pages: Vec<usize> = blocks
        .chunks(per_chunk)
        .flat_map(|ids| (0..SEGMENTS).flat_map(move |segment| ids.iter().map(move |&id| (segment, id))))
        .map(|(segment, id)| pages.address() + (segment * pages.blocks + id as usize) * fragment)
        .collect();
    let beside_at = |i: usize| beside + i * fragment;
    let gather: Fragments = in_pages.iter().enumerate().map(|(i, &page)| (page, beside_at(i), fragment)).collect();
    let scatter: Fragments = gather.iter().map(|&(page, beside, bytes)| (beside, page, bytes)).collect();
    let (mut store, mut load) = (Way::default(), Way::default());
    for _ in 0..ROUNDS {
        cache.clear();
        for (way, stores, fragments) in [(&mut store, true, &gather), (&mut load, false, &scatter)] {
            let cpu = cpu_seconds();
            way.ours.push(transfer(cache, pool, &keys, &blocks, stores));
            way.cpu.push(cpu_seconds() - cpu);
            way.fragments.push(memcpy(fragments, threads));
            way.fragments_alone.push(memcpy(fragments, 1));
            let (from, to) = if stores { (pages.address(), beside) } else { (beside, pages.address()) };
            if stores {
                way.large.push(large(from, to, threads));
                way.large_alone.push(large(from, to, 1));
                // The fragments' copy is what the loads' comparator scatters back into their places.
                memcpy(fragments, threads);
            } else {
                // The pages are in order, not the blocks, where the whole goes back in one piece.
                large(pages.address(), beside, threads);
                way.large.push(large(from, to, threads));
                way.large_alone.push(large(from, to, 1));
            }
        }
    }
    // What came back is verified where it was not before.
    let mut elsewhere = blocks.clone();
    elsewhere.rotate_left(1);
    transfer(cache, pool, &keys, &elsewhere, false);
    pages.verify(&blocks, &elsewhere);
    // SAFETY: no pointers but the handle.
    must(unsafe { kvkeep_close_pool(without_provenance_mut(cache.token()), pool) });
    for (name, way) in [("store", store), ("load", load)] {
        way.report(report, &name_of(name, fragment), fragment);
    }
}

/// Pages, and a cache that their blocks are stored to and loaded from.
#[cfg(feature = "ablation")]
pub struct Setting {
    cache: Cache,
    pages: Pages,
    pool: u64,
    keys: Vec<Key>,
    blocks: Vec<i32>,
}

#[cfg(feature = "ablation")]
impl Setting {
    pub fn new(fragment: usize) -> Setting {
        let per_chunk = 4;
        let (pages, mut random) = (Pages::new(fragment), Random::new(fragment as u64));
        let cache = Cache::open(Setup { l1_bytes: BYTES as u64 + (64 << 20), ..Setup::default() });
        let pool = pool(&cache, &pages, per_chunk);
        let mut keys = random.keys(pages.blocks / per_chunk);
        keys.iter_mut().for_each(|key| key.rank = pages.rank());
        let mut blocks: Vec<i32> = (0..pages.blocks as i32).collect();
        random.shuffle(&mut blocks);
        Setting { cache, pages, pool, keys, blocks }
    }

    /// GB/s of a store and the load behind it.
    pub fn run(&mut self) -> f64 {
        self.cache.clear();
        let [store, load] =
            [true, false].map(|store| transfer(&self.cache, self.pool, &self.keys, &self.blocks, store));
        2.0 / (1.0 / store + 1.0 / load)
    }
}

#[cfg(feature = "ablation")]
impl Drop for Setting {
    fn drop(&mut self) {
        // SAFETY: no pointers but the handle. The pages go after their pool.
        must(unsafe { kvkeep_close_pool(without_provenance_mut(self.cache.token()), self.pool) });
        self.pages.memory.clear();
    }
}

pub fn run(report: &mut Report) {
    let mut sizes = [(16, 16), (64, 8), (512, 4), (2048, 2)].map(|(kib, per_chunk)| (kib << 10, per_chunk)).to_vec();
    sizes.retain(|&(fragment, _)| wants(report, fragment));
    if sizes.is_empty() {
        return;
    }
    let cache = Cache::open(Setup { l1_bytes: BYTES as u64 + (64 << 20), ..Setup::default() });
    let arena = Arena::map(BYTES, MapOptions::default()).expect("memory");
    arena.populate(0, BYTES as u64).expect("pages");
    for (fragment, per_chunk) in sizes {
        fragments_of(report, &cache, arena.at(0).expose_provenance(), fragment, per_chunk);
    }
}
