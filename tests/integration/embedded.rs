//! The main path of an embedded cache, through its node: store, look up early, prefetch, read, survive a restart.
#![allow(unsafe_code)]

use std::time::Duration;

use kvkeep::abi::{JobResult, Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, PrefetchRequest, SpaceSpec};
use kvkeep::error::{KVKEEP_OK, KVKEEP_PENDING};
use kvkeep::key::Key;
use kvkeep::node::Node;

const MIB: u64 = 1 << 20;

fn spec() -> SpaceSpec {
    SpaceSpec {
        generation: 0,
        model: "toy".to_owned(),
        layout: "f16".to_owned(),
        tenant: String::new(),
        chunk_tokens: 16,
        quota_bytes: 0,
    }
}

fn empty() -> View {
    View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }
}

fn fill(view: &View, seed: u8) {
    // SAFETY: a staged view of this session is ours to write.
    unsafe { std::slice::from_raw_parts_mut(view.data.cast::<u8>(), view.size as usize) }.fill(seed);
}

fn holds(view: &View, seed: u8) -> bool {
    // SAFETY: a view whose shares this session holds is ours to read.
    unsafe { std::slice::from_raw_parts(view.data.cast::<u8>(), view.size as usize) }.iter().all(|&byte| byte == seed)
}

fn keys(node: &Node, session: u64, chunks: usize) -> Vec<Key> {
    let tokens: Vec<u32> = (0..chunks as u32 * 16).collect();
    assert_eq!(node.append_tokens(session, &tokens).unwrap(), chunks as u64);
    let mut keys = vec![Key { hash: [0; 32], rank: 0, group: 0 }; chunks];
    node.session_keys(session, 0, (0, 1, 1), &mut keys).unwrap();
    keys
}

fn store(node: &Node, space: u64, chunks: usize, size: u64) {
    let session = node.begin_session(space, "writer", None).unwrap();
    let keys = keys(node, session, chunks);
    let mut views = vec![empty(); chunks];
    assert!(node.reserve_write(session, &keys, &vec![size; chunks], false, &mut views).unwrap());
    views.iter().enumerate().for_each(|(i, view)| fill(view, i as u8));
    assert!(node.finish_write(session, &keys, None).unwrap());
    node.end_session(session).unwrap();
}

fn read_back(node: &Node, space: u64, chunks: usize, from_l2: bool) {
    let session = node.begin_session(space, "reader", None).unwrap();
    let keys = keys(node, session, chunks);
    let mut job = 0;
    node.submit_prefetch(session, &keys, PrefetchRequest { extra_count: 1, ..Default::default() }, &mut job).unwrap();
    node.wait(job, 60_000).unwrap();
    let mut hits = 0;
    assert_eq!(node.query_lookup_hits(job, &mut hits).unwrap(), KVKEEP_OK);
    assert_eq!(hits, chunks as u32);
    let mut answer = JobResult::default();
    assert_eq!(node.query_job(job, &mut answer).unwrap(), KVKEEP_OK);
    assert_eq!(answer.hit_chunks, chunks as u32);
    assert_eq!(answer.tier_keys[usize::from(from_l2)], chunks as u32);
    let mut views = vec![empty(); chunks];
    assert!(node.get_views(session, &keys, &mut views).unwrap());
    assert!(views.iter().enumerate().all(|(i, view)| holds(view, i as u8)));
    assert!(node.finish_read(session, &keys, 0, None).unwrap());
    assert!(node.finish_read(session, &keys, 0, None).unwrap());
    assert!(!node.finish_read(session, &keys, 0, None).unwrap());
    node.end_session(session).unwrap();
    let mut stats = Stats::default();
    node.stats(&mut stats);
    assert_eq!((stats.l1_shares, stats.sessions, stats.jobs), (0, 0, 0));
}

#[test]
fn a_prefix_is_found_in_l1_then_on_disk_by_another_cache() {
    for (engine, size) in [("auto", MIB), ("pool", MIB), ("auto", 5000), ("pool", 777)] {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("fs://{}?capacity=1GiB&engine={engine}", dir.path().display());
        let open = || {
            let config = NodeConfig { backend_urls: vec![url.clone()], ..NodeConfig::new(64 * MIB) };
            Node::open(config).unwrap()
        };
        let node = open();
        let space = node.open_space(spec()).unwrap();
        store(&node, space, 20, size);
        read_back(&node, space, 20, false);
        node.flush(60_000).unwrap();
        node.close();

        let node = open();
        let space = node.open_space(spec()).unwrap();
        read_back(&node, space, 20, true);
        read_back(&node, space, 20, false);
        node.close();
    }
}

#[test]
fn missing_chunks_are_a_miss_and_a_pending_lookup_says_so() {
    let config = NodeConfig { backend_urls: vec!["memory:?lookup=slow".to_owned()], ..NodeConfig::new(16 * MIB) };
    let node = Node::open(config).unwrap();
    let space = node.open_space(spec()).unwrap();
    let session = node.begin_session(space, "r", Some(Duration::from_secs(10))).unwrap();
    let keys = keys(&node, session, 4);
    let mut job = 0;
    let request = PrefetchRequest {
        lookup_timeout: Duration::from_secs(30),
        lookup_interval: Duration::from_millis(1),
        ..Default::default()
    };
    node.submit_prefetch(session, &keys, request, &mut job).unwrap();
    let mut hits = 9;
    assert_eq!(node.query_lookup_hits(job, &mut hits).unwrap(), KVKEEP_PENDING);
    store(&node, space, 4, 4096);
    node.wait(job, 60_000).unwrap();
    assert_eq!(node.query_lookup_hits(job, &mut hits).unwrap(), KVKEEP_OK);
    assert_eq!(hits, 4);
    node.end_session(session).unwrap();
    node.close();
}
