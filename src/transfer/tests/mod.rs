//! Transfers in flight for as long as a test wants: their effect on everything else meanwhile.

mod parted;

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use zerocopy::FromZeros as _;

use super::copy_device::{CopyPiece, CopyWork, Device, StreamEvent, StreamPoint};
use super::cpu_copy::{self, Fragment, Promise, Way};
use super::layout::Segment;
use super::submit::{AskedTransfer, CheckedRequest};
use super::transfers::Transfers;
use super::{PoolSpec, TransferRequest};
use crate::abi::{Completion, JobResult, Stats, View};
use crate::cache::Cache;
use crate::config::{NodeConfig, Notify, PrefetchRequest, SpaceSpec, StoreMode};
use crate::error::{
    Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_DEVICE, KVKEEP_ERR_LIMIT, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NO_MEMORY,
    KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, KVKEEP_PARTIAL, Result, Status,
};
use crate::key::Key;
use crate::node::Node;

const BLOCK: u64 = 4096;
const PER_CHUNK: u32 = 2;
const OBJECT: u64 = BLOCK * PER_CHUNK as u64;
/// So many chunks' blocks there are, to store from and to load into.
const CHUNKS: u8 = 3;
/// So many objects fill L1.
const ROOM: u32 = 4;

/// A device that copies when the test has it do so.
#[derive(Default)]
struct Slow {
    started: Mutex<VecDeque<Arc<dyn CopyWork>>>,
}

struct InFlight {
    work: Arc<dyn CopyWork>,
    piece: CopyPiece,
    fragments: Vec<Fragment>,
}

impl Device for Slow {
    fn open(&self) -> Result<()> {
        Ok(())
    }

    fn point(&self, _stream: u64, _way: Way) -> Result<StreamPoint> {
        Ok(StreamPoint::default())
    }

    fn follow(&self, _stream: u64, _event: Option<&dyn StreamEvent>) -> Result<bool> {
        Ok(false)
    }

    fn start(&self, work: Arc<dyn CopyWork>, _after: StreamPoint) {
        self.started.lock().push_back(work);
    }

    fn close(&self) {}
}

impl Slow {
    /// Takes what was started in hand, as a device that has begun to copy.
    fn begin(&self) -> Vec<InFlight> {
        let mut begun = Vec::new();
        loop {
            let Some(work) = self.started.lock().pop_front() else { return begun };
            let mut fragments = Vec::new();
            while let Some(piece) = work.next(&mut fragments) {
                begun.push(InFlight { work: work.clone(), piece, fragments: std::mem::take(&mut fragments) });
            }
        }
    }
}

fn land(in_flight: Vec<InFlight>) {
    for InFlight { work, piece, fragments } in in_flight {
        cpu_copy::run(&fragments, piece.way, piece.cold);
        work.landed(piece, Ok(()));
    }
}

struct Fixture {
    cache: Arc<Node>,
    slow: Arc<Slow>,
    transfers: Arc<Transfers>,
    space: u64,
    pool: u64,
    pages: Vec<u64>,
}

fn key(number: u8) -> Key {
    Key { hash: [number; 32], rank: 0, group: 0 }
}

fn fixture() -> Fixture {
    fixture_of(NodeConfig { store_mode: StoreMode::Never, ..NodeConfig::new(u64::from(ROOM) * OBJECT) })
}

fn fixture_of(config: NodeConfig) -> Fixture {
    let cache = Node::open(NodeConfig { watermark_high_percent: 100, ..config }).unwrap();
    let slow = Arc::new(Slow::default());
    let transfers = Transfers::by(cache.clone(), slow.clone());
    let (model, layout, tenant) = ("m".to_owned(), String::new(), String::new());
    let spec = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
    let space = cache.open_space(spec.clone()).unwrap();
    transfers.note_space(space, &spec);
    let pages: Vec<u64> = (0..u64::from(CHUNKS) * OBJECT / 8).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let address = pages.as_ptr().expose_provenance() as u64;
    let segments = vec![Segment { address, block_bytes: BLOCK, block_stride: BLOCK, group: 0, layer: 0, part: 0 }];
    let (blocks, blocks_per_chunk) = (u32::from(CHUNKS) * PER_CHUNK, PER_CHUNK);
    let promise = Promise::of_a_test();
    let pool = PoolSpec { device: -1, rank: 0, blocks, blocks_per_chunk, segments, promise };
    let pool = transfers.open_pool(space, pool).unwrap();
    Fixture { cache, slow, transfers, space, pool, pages }
}

impl Fixture {
    fn session(&self) -> u64 {
        self.cache.begin_session(self.space, "r", None).unwrap()
    }

    /// Submits and lets the device begin.
    fn in_flight(&self, session: u64, store: bool, blocks: [i32; 2]) -> (u64, Vec<InFlight>) {
        let mut job = 0;
        let (keys, request) = ([key(1)], TransferRequest::default());
        let asked = AskedTransfer { pool: self.pool, session, keys: &keys, blocks: &blocks };
        if store {
            self.transfers.submit_store(asked, request, &mut job).unwrap();
        } else {
            self.transfers.submit_load(asked, request, &mut job).unwrap();
        }
        let begun = self.slow.begin();
        assert!(!begun.is_empty());
        (job, begun)
    }

    fn commit(&self, session: u64, keys: &[Key]) {
        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
        assert!(self.cache.reserve_write(session, keys, &vec![OBJECT; keys.len()], false, &mut views).unwrap());
        assert!(self.cache.finish_write(session, keys, None).unwrap());
    }

    /// As `OpenCache` does.
    fn leave(&self, session: u64, abort: bool) {
        if abort {
            self.cache.abort_session(session).unwrap();
            self.transfers.abort_session(session);
        } else {
            self.cache.end_session(session).unwrap();
        }
    }

    /// Fills what room there is with other bytes, and gives it back. How many objects fitted?
    fn fill(&self) -> usize {
        let session = self.session();
        let keys: Vec<Key> = (100..100 + ROOM as u8).map(key).collect();
        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
        let sizes = vec![OBJECT; keys.len()];
        self.cache.reserve_write(session, &keys, &sizes, false, &mut views).unwrap();
        let staged = views.iter().filter(|view| view.status == KVKEEP_OK as i32);
        let fitted = staged.map(|view| self.cache.copy_in(view, &[0xee; OBJECT as usize]).unwrap()).count();
        assert!(views[fitted..].iter().all(|view| view.status == KVKEEP_ERR_NO_MEMORY as i32));
        self.cache.abort_session(session).unwrap();
        fitted
    }

    fn is_there(&self) -> bool {
        let (session, mut views) = (self.session(), [View::none(KVKEEP_OK)]);
        let there = self.cache.reserve_read(session, &[key(1)], 0, &mut views).unwrap();
        assert!(there || views[0].status == KVKEEP_ERR_NOT_FOUND as i32);
        self.cache.abort_session(session).unwrap();
        there
    }

    fn status(&self, job: u64) -> Option<Status> {
        let mut result = JobResult::default();
        let known = self.transfers.query(job, &mut result).unwrap() == KVKEEP_OK;
        known.then(|| Status::from_number(result.status).unwrap())
    }

    fn blocks(&self, chunk: usize) -> &[u64] {
        &self.pages[chunk * OBJECT as usize / 8..][..OBJECT as usize / 8]
    }

    fn close(self) {
        land(self.slow.begin());
        let mut stats = Stats::default();
        Cache::stats(&*self.cache, &mut stats).unwrap();
        assert_eq!((stats.sessions, stats.l1_shares, stats.l1_staged), (0, 0, 0));
        self.transfers.close();
        self.cache.close();
    }
}

#[test]
fn p2_memory_under_a_load_in_flight_stays_whatever_becomes_of_its_session_and_its_object() {
    for abort in [false, true] {
        let fixture = fixture();
        let session = fixture.session();
        let (stored, begun) = fixture.in_flight(session, true, [0, 1]);
        land(begun);
        assert_eq!(fixture.status(stored), Some(KVKEEP_OK));

        let (job, begun) = fixture.in_flight(session, false, [2, 3]);
        let mut statuses = [0];
        fixture.cache.delete(fixture.space, &[key(1)], Some(&mut statuses)).unwrap();
        assert_eq!(statuses[0], KVKEEP_ERR_LOCKED as i32);
        fixture.leave(session, abort);
        assert_eq!(fixture.fill(), ROOM as usize - 1);
        // Hidden at once, freed when it landed.
        fixture.cache.clear(0, true).unwrap();
        assert!(!fixture.is_there());
        assert_eq!(fixture.fill(), ROOM as usize - 1);
        assert_eq!(fixture.status(job), None);
        land(begun);
        assert!(fixture.blocks(1) == fixture.blocks(0));
        land(fixture.slow.begin());
        assert_eq!(fixture.status(job), Some(if abort { KVKEEP_ERR_CANCELLED } else { KVKEEP_OK }));
        assert_eq!(fixture.fill(), ROOM as usize);
        fixture.close();
    }
}

#[test]
fn p2_memory_under_a_store_in_flight_stays_and_an_aborted_one_commits_nothing() {
    for abort in [false, true] {
        let fixture = fixture();
        let session = fixture.session();
        let (job, begun) = fixture.in_flight(session, true, [0, 1]);
        fixture.leave(session, abort);
        fixture.cache.clear(0, true).unwrap();
        assert_eq!(fixture.fill(), ROOM as usize - 1);
        assert!(!fixture.is_there());
        assert_eq!(fixture.status(job), None);
        land(begun);
        land(fixture.slow.begin());
        assert_eq!(fixture.status(job), Some(if abort { KVKEEP_ERR_CANCELLED } else { KVKEEP_OK }));
        assert_eq!(fixture.is_there(), !abort);
        assert_eq!(fixture.fill(), ROOM as usize);
        fixture.close();
    }
}

#[test]
fn a_store_for_a_session_that_another_process_aborted_commits_nothing() {
    let fixture = fixture();
    let session = fixture.session();
    let (job, begun) = fixture.in_flight(session, true, [0, 1]);
    // Only the cache knows.
    fixture.cache.abort_session(session).unwrap();
    land(begun);
    assert_eq!(fixture.status(job), Some(KVKEEP_ERR_CANCELLED));
    assert!(!fixture.is_there());
    fixture.close();
}

#[test]
fn a_pool_and_a_cache_close_when_what_is_in_flight_has_landed() {
    for whole in [false, true] {
        let fixture = fixture();
        let session = fixture.session();
        let (job, begun) = fixture.in_flight(session, true, [0, 1]);
        let (stopped, hear) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if whole {
                    fixture.transfers.close();
                } else {
                    fixture.transfers.close_pool(fixture.pool).unwrap();
                }
                stopped.send(()).unwrap();
            });
            // It has been stopped before it lands.
            while fixture.slow.started.lock().is_empty() {
                std::thread::yield_now();
            }
            assert!(hear.try_recv().is_err());
            land(fixture.slow.begin());
            assert!(hear.try_recv().is_err());
            land(begun);
            hear.recv().unwrap();
        });
        assert_eq!(fixture.status(job), Some(KVKEEP_ERR_CANCELLED));
        assert!(!fixture.is_there());
        fixture.cache.end_session(session).unwrap();
        fixture.close();
    }
}

#[test]
fn a_transfer_that_is_stopped_while_it_is_submitted_ends_once_and_after_that() {
    let fixture = fixture();
    let session = fixture.session();
    let (keys, blocks) = ([key(1)], [0, 1]);
    let asked = AskedTransfer { pool: fixture.pool, session, keys: &keys, blocks: &blocks };
    let pool = fixture.transfers.pool(fixture.pool).unwrap();
    let checked = CheckedRequest { pool, way: Way::Gather, blocks: blocks.to_vec() };
    let request = TransferRequest { notify: Notify::EventFd, ..TransferRequest::default() };
    let reserve =
        |copy, views: &mut [View]| fixture.cache.reserve_write(copy, &keys, &[OBJECT], false, views).map(drop);
    let mut job = 0;
    let (transfer, views) = fixture.transfers.accept(&asked, checked, request, reserve, &mut job).unwrap();
    fixture.transfers.abort_session(session);
    assert!(fixture.slow.begin().is_empty());
    assert_eq!(fixture.status(job), None);
    transfer.progress.lock().take_in(&transfer.targets, &*fixture.cache, &[0], &views);
    drop(transfer);
    assert!(fixture.slow.begin().is_empty());
    assert_eq!(fixture.status(job), Some(KVKEEP_ERR_CANCELLED));
    let mut completions = [Completion::new_zeroed(); 2];
    assert_eq!(fixture.cache.take_completions(&mut completions), 1);
    assert!(!fixture.is_there());
    fixture.cache.end_session(session).unwrap();
    fixture.close();
}

/// Two objects are there and copied in one piece; the one between them comes from below.
#[test]
fn a_piece_that_fails_spoils_no_key_that_is_not_in_it() {
    let config = NodeConfig {
        store_mode: StoreMode::WriteThrough,
        backend_urls: vec!["memory:".to_owned()],
        ..NodeConfig::new(u64::from(ROOM) * OBJECT)
    };
    let fixture = fixture_of(config);
    let (session, keys) = (fixture.session(), [1, 2, 3].map(key));
    fixture.commit(session, &keys);
    fixture.cache.flush(60_000).unwrap();
    fixture.cache.clear(0, false).unwrap();
    fixture.commit(session, &[keys[0], keys[2]]);
    let (mut job, blocks) = (0, [0, 1, 2, 3, 4, 5]);
    let asked = AskedTransfer { pool: fixture.pool, session, keys: &keys, blocks: &blocks };
    fixture.transfers.submit_load(asked, TransferRequest::default(), &mut job).unwrap();
    let mut begun = fixture.slow.begin();
    let InFlight { work, piece, .. } = begun.remove(0);
    work.landed(piece, Err(Error::new(KVKEEP_ERR_DEVICE, "it broke: mend it")));
    land(begun);
    while fixture.status(job).is_none() {
        land(fixture.slow.begin());
        std::thread::yield_now();
    }
    assert_eq!(fixture.status(job), Some(KVKEEP_PARTIAL));
    let mut statuses = [0; 6];
    assert_eq!(fixture.transfers.query_blocks(job, &mut statuses).unwrap(), KVKEEP_OK);
    let [bad, good] = [KVKEEP_ERR_DEVICE as i32, KVKEEP_OK as i32];
    assert_eq!(statuses, [bad, bad, good, good, bad, bad]);
    fixture.cache.end_session(session).unwrap();
    fixture.close();
}

#[test]
fn layouts_are_counted_once_for_each_rank_and_group() {
    const GROUPS: u32 = 4096;
    const RANKS: u32 = (1 << 16) / GROUPS;
    let fixture = fixture();
    let address = fixture.pages.as_ptr().expose_provenance() as u64;
    let open = |rank, groups| {
        let segment = |group| Segment { address, block_bytes: BLOCK, block_stride: BLOCK, group, layer: 0, part: 0 };
        let (blocks, blocks_per_chunk, promise) = (PER_CHUNK, PER_CHUNK, Promise::of_a_test());
        let segments = (0..groups).map(segment).collect();
        fixture
            .transfers
            .open_pool(fixture.space, PoolSpec { device: -1, rank, blocks, blocks_per_chunk, segments, promise })
    };
    // Rank 0 has one group's already.
    for rank in 0..RANKS {
        let pool = open(rank, GROUPS).unwrap();
        fixture.transfers.close_pool(pool).unwrap();
    }
    let refused = open(RANKS, 1).unwrap_err();
    assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
    assert!(refused.message.contains("layouts of 65536"), "{refused}");
    open(RANKS - 1, GROUPS).unwrap();
    fixture.close();
}

#[test]
fn who_copies_is_explained() {
    let fixture = fixture();
    let session = fixture.session();
    land(fixture.in_flight(session, true, [0, 1]).1);
    let (job, begun) = fixture.in_flight(session, false, [2, 3]);
    let whose = format!("copy for session {session}, r");
    let key_explained = fixture.cache.explain_key(fixture.space, &key(1)).unwrap();
    let pid = format!("pid {}", std::process::id());
    assert!(key_explained.contains(&whose) && key_explained.contains(&pid), "{key_explained}");
    assert!(fixture.cache.explain_session(0).unwrap().contains(&whose));
    land(begun);
    assert_eq!(fixture.status(job), Some(KVKEEP_OK));
    assert!(!fixture.cache.explain_key(fixture.space, &key(1)).unwrap().contains(&whose));
    assert!(!fixture.cache.explain_session(0).unwrap().contains(&whose));
    fixture.cache.end_session(session).unwrap();
    fixture.close();
}

#[test]
fn what_a_load_needs_counts_as_asked_once() {
    let config = NodeConfig { backend_urls: vec!["memory:".to_owned()], ..NodeConfig::new(u64::from(ROOM) * OBJECT) };
    let fixture = fixture_of(config);
    let load = |session, numbers: [u8; 2]| {
        let (keys, mut job) = (numbers.map(key), 0);
        let asked = AskedTransfer { pool: fixture.pool, session, keys: &keys, blocks: &[0, 1, 2, 3] };
        fixture.transfers.submit_load(asked, TransferRequest::default(), &mut job).unwrap();
        while fixture.status(job).is_none() {
            land(fixture.slow.begin());
            std::thread::yield_now();
        }
        assert_eq!(fixture.status(job), Some(KVKEEP_OK));
    };
    let counted = || {
        let mut stats = Stats::default();
        Cache::stats(&*fixture.cache, &mut stats).unwrap();
        assert_eq!(stats.read_misses, stats.l2_hits + stats.l2_misses);
        (stats.read_hits, stats.l2_hits, stats.l2_misses, stats.prefetch_asked_chunks)
    };
    let evict = |number| assert!(fixture.cache.evict(fixture.space, &[key(number)], None).unwrap());
    let session = fixture.session();
    fixture.commit(session, &[key(1), key(2)]);
    fixture.cache.flush(60_000).unwrap();
    evict(2);
    // One of L1 and one of the backend, for which the load has a job of its own.
    load(session, [1, 2]);
    assert_eq!(counted(), (1, 1, 0, 1));
    // A prefetch asks for both; a load at once after it asks for nothing more, wherever the bytes are by then.
    evict(2);
    let mut job = 0;
    fixture.cache.submit_prefetch(session, &[key(1), key(2)], PrefetchRequest::default(), &mut job).unwrap();
    load(session, [1, 2]);
    assert_eq!(counted(), (2, 2, 0, 3));
    fixture.cache.wait(job, 60_000).unwrap();
    load(session, [1, 2]);
    assert_eq!(counted(), (2, 2, 0, 3));
    fixture.cache.release_job(job).unwrap();
    fixture.leave(session, false);
    fixture.close();
}
