//! The daemon's page in headless Chromium, with nothing to show and with much. `make test-page` gets the browser and runs these tests.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvkeep::abi::View;
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, PrefetchRequest, SpaceSpec};
use kvkeep::daemon::http::{Http, HttpOptions};
use kvkeep::key::Key;
use kvkeep::log::Log;
use kvkeep::node::Node;

const BYTES: u64 = 16 << 10;
const CHUNKS: u32 = 16;

fn look_at(node: &Arc<Node>, state: &str) {
    let chromium = std::env::var("KVKEEP_CHROMIUM").expect("make test-page sets KVKEEP_CHROMIUM");
    let http = Http::start(node.clone(), HttpOptions::new("127.0.0.1:0".parse().unwrap()), Log::none()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pictures = root.join("build/page");
    let url = format!("http://{}/", http.address());
    let status =
        Command::new(root.join("scripts/page_check.py")).args([&chromium, &url]).arg(pictures).arg(state).status();
    assert!(status.unwrap().success());
    http.stop();
}

fn node() -> Arc<Node> {
    let backend_urls = vec!["memory:?capacity=8MiB".to_owned()];
    Node::open(NodeConfig { backend_urls, ..NodeConfig::new(4 << 20) }).unwrap()
}

/// One request as an engine makes it: prefetch what is there, compute and store the rest.
fn request(node: &Node, space: u64, name: &str, number: u32) -> u64 {
    let keys: Vec<Key> = (0..CHUNKS)
        .map(|chunk| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&(number % 20).to_le_bytes());
            hash[4..8].copy_from_slice(&chunk.to_le_bytes());
            Key { hash, rank: 0, group: 0 }
        })
        .collect();
    let session = node.begin_session(space, name, None).unwrap();
    let mut job = 0;
    node.submit_prefetch(session, &keys, PrefetchRequest::default(), &mut job).unwrap();
    node.wait(job, 60_000).unwrap();
    let mut views = vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; keys.len()];
    node.reserve_read(session, &keys, 0, &mut views).unwrap();
    node.reserve_write(session, &keys, &vec![BYTES; keys.len()], false, &mut views).unwrap();
    node.finish_write(session, &keys, None).unwrap();
    session
}

#[test]
#[ignore = "needs Chromium: make test-page gets it"]
fn a_page_without_data_says_so() {
    let node = node();
    look_at(&node, "idle");
    node.close();
}

#[test]
#[ignore = "needs Chromium: make test-page gets it"]
fn a_page_with_data_draws_it() {
    let node = node();
    let (layout, tenant) = (String::new(), String::new());
    let spec =
        SpaceSpec { generation: 0, model: "llama-70b".to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
    let space = node.open_space(spec).unwrap();
    // The second time it finds what the first has stored, and holds that all the time.
    node.end_session(request(&node, space, "first", 19)).unwrap();
    let long = request(&node, space, "long prompt", 19);
    let over = Arc::new(AtomicBool::new(false));
    let engine = {
        let (node, over) = (node.clone(), over.clone());
        std::thread::spawn(move || {
            let mut live = VecDeque::new();
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                live.push_back(request(&node, space, "request", number));
                // Each goes on for a while, some longer.
                if live.len() as u32 > number / 3 % 8 {
                    live.drain(..1).for_each(|session| node.end_session(session).unwrap());
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        })
    };
    look_at(&node, "busy");
    over.store(true, Ordering::Relaxed);
    engine.thread().unpark();
    engine.join().unwrap();
    node.end_session(long).unwrap();
    node.close();
}
