//! Clients that die while they copy between their pages and the daemon's L1: their copies' memory is returned, and what they stored
//! is whole or not there.

use kvkeep::cache::Cache as _;
use kvkeep::error::{KVKEEP_ERR_NOT_FOUND, KVKEEP_OK};
use kvkeep::key::Key;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::layout::Segment;
use kvkeep::transfer::submit::AskedTransfer;
use kvkeep::transfer::{PoolSpec, TransferRequest};
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;
use crate::support::random::{Random, rounds, seed};

const BLOCK_WORDS: u64 = 4096;
const LAYERS: u64 = 4;
const BLOCKS: u32 = 8;

/// Stores blocks and loads others, each as a copy of its own, until it is killed. One load never ends.
#[derive(Serialize, Deserialize)]
pub struct Copying {
    daemon: DaemonPart,
    seed: u64,
    first: u64,
}

impl Copying {
    pub fn play(&self) {
        let opened = OpenCache::new(self.daemon.client());
        let space = opened.open_space(spec("m", "")).unwrap();
        let mut pages = vec![0u64; (LAYERS * u64::from(BLOCKS) * BLOCK_WORDS) as usize];
        let stretch = u64::from(BLOCKS) * BLOCK_WORDS * 8;
        let (address, block_bytes) = (pages.as_mut_ptr().expose_provenance() as u64, BLOCK_WORDS * 8);
        let segment = |layer: u64| {
            let address = address + layer * stretch;
            Segment { address, block_bytes, block_stride: block_bytes, group: 0, layer: layer as u32, part: 0 }
        };
        let spec = PoolSpec {
            device: -1,
            rank: 0,
            blocks: BLOCKS,
            blocks_per_chunk: 1,
            segments: (0..LAYERS).map(segment).collect(),
            // SAFETY: the pages live as long as the process, which is killed, and only words of idle blocks are written.
            promise: unsafe { Promise::given() },
        };
        let pool = opened.transfers().open_pool(space, spec).unwrap();
        let session = opened.begin_session(space, "copying", None).unwrap();
        let submit = |key: Key, block: i32, store: bool| {
            let mut job = 0;
            let asked = AskedTransfer { pool, session, keys: &[key], blocks: &[block] };
            if store {
                opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
            } else {
                opened.transfers().submit_load(asked, TransferRequest::default(), &mut job).unwrap();
            }
            job
        };
        // Of what only L2 has, which does not answer.
        submit(key(0, 0), 0, false);
        let mut random = Random(self.seed);
        for number in self.first.. {
            let block = 1 + random.below(u64::from(BLOCKS) / 2 - 1) as i32;
            for layer in 0..LAYERS as usize {
                let at = (layer * BLOCKS as usize + block as usize) * BLOCK_WORDS as usize;
                pages[at..at + BLOCK_WORDS as usize].fill(number);
            }
            let stored = submit(key(number, 0), block, true);
            let loaded = (number > self.first).then(|| submit(key(number - 1, 0), BLOCKS as i32 - block, false));
            say(&format!("lap {number}"));
            for job in [Some(stored), loaded].into_iter().flatten() {
                opened.wait(job, WATCHDOG_MS).unwrap();
                opened.release_job(job).unwrap();
            }
        }
    }
}

#[test]
fn p2_a_client_killed_while_it_copies_leaves_nothing_held_and_nothing_torn() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let first = daemon(&part);
    let client = part.client();
    store(&client, open_space(&client), &keys(0..1));
    client.close();
    drop(first);
    let url = format!("fault:fs://{}/l2?fault.load_hang=1", dir.path().display());
    // What hangs does so for longer than the test.
    let part = DaemonPart { backend_timeout_ms: 3_600_000, ..DaemonPart::with_l2(dir.path(), &url) };
    let _daemon = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let rounds = rounds("KVKEEP_KILL_ROUNDS", 12);
    let mut random = Random(seed("KVKEEP_KILL_SEED"));
    let mut next = 1;
    for _ in 0..rounds {
        let playing = Copying { daemon: part.clone(), seed: random.next(), first: next };
        let mut copying = Process::start(&Part::Copying(playing));
        for _ in 0..1 + random.below(10) {
            next = copying.expect("lap").parse::<u64>().unwrap() + 1;
        }
        // Who copies, for whom, and in which process: of the load that never ends.
        let explained = client.explain_session(0).unwrap();
        assert!(explained.contains("copy for session ") && explained.contains(", copying"), "{explained}");
        assert!(explained.contains(&copying.pid().to_string()), "{explained}");
        for step in 0..random.below(200_000) {
            std::hint::black_box(step);
        }
        copying.kill();
        while let Some(line) = copying.hear() {
            next = line.strip_prefix("lap ").map_or(next, |number| number.parse::<u64>().unwrap() + 1);
        }
        until("all returned", || {
            let stats = stats(&client);
            // The backend that hangs keeps the memory of its one load.
            (stats.clients, stats.sessions, stats.l1_shares, stats.l1_staged, stats.jobs) == (1, 0, 0, 1, 0)
        });
        let session = client.begin_session(space, "keeper", None).unwrap();
        for number in next.saturating_sub(20).max(1)..next {
            let mut out = views(1);
            if !client.reserve_read(session, &[key(number, 0)], 0, &mut out).unwrap() {
                assert_eq!(out[0].status, KVKEEP_ERR_NOT_FOUND as i32);
                continue;
            }
            assert_eq!((out[0].status, out[0].size), (KVKEEP_OK as i32, LAYERS * BLOCK_WORDS * 8));
            // SAFETY: a share of it is held, and its bytes never change.
            let words = unsafe { std::slice::from_raw_parts(out[0].data.cast::<u64>(), (out[0].size / 8) as usize) };
            assert!(words.iter().all(|&word| word == number), "object {number} is torn");
        }
        client.end_session(session).unwrap();
    }
    assert!(next > rounds);
    client.close();
}
