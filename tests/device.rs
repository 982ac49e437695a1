//! Pages to objects and back, bit by bit, over layouts of every kind: embedded, and as a daemon's client.
//!
//! `PROPTEST_CASES` says how many layouts are tried embedded; a tenth as many are tried through a daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device_common;

use std::sync::Arc;

use device_common::{Case, Kind, OnHost, WAIT_MS, result, round_trip, status, try_layouts};
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::daemon::server::{Access, Claim, Limits, Server};
use kvkeep::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, KVKEEP_PARTIAL};
use kvkeep::key::Key;
use kvkeep::node::Node;
use kvkeep::opened::Opened;
use kvkeep::transfer::TransferRequest;
use kvkeep::transfer::submit::Asked;

#[test]
fn pages_come_back_bit_by_bit_whatever_their_layout() {
    let node =
        Node::open(NodeConfig { backend_urls: vec!["memory:".to_owned()], ..NodeConfig::new(256 << 20) }).unwrap();
    let opened = Opened::new(node);
    try_layouts(&opened, &OnHost, 1);
    opened.close();
}

struct Daemon {
    dir: tempfile::TempDir,
    node: Arc<Node>,
    server: Option<Server>,
}

impl Daemon {
    fn start(url: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(&dir.path().join("kvkeep.sock")).unwrap();
        let config = NodeConfig { boot: claim.boot, backend_urls: vec![url.to_owned()], ..NodeConfig::new(64 << 20) };
        let node = Node::open(config).unwrap();
        let server = Server::start(node.clone(), claim, Access::default(), Limits::default()).unwrap();
        Daemon { dir, node, server: Some(server) }
    }

    fn client(&self) -> Opened {
        let url = format!("unix://{}/kvkeep.sock", self.dir.path().display());
        Opened::new(Client::open(ClientConfig::new(&url).unwrap()).unwrap())
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            self.node.close();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

const SMALL: Case = Case {
    kind: Kind::Apart,
    layers: 3,
    groups: 1,
    tp: 2,
    bytes: 1024,
    gap: 0,
    per_chunk: 4,
    chunks: 20,
    tail: 3,
    skip: 2,
    temporary: false,
    seed: 5,
};

#[test]
fn pages_come_back_bit_by_bit_through_a_daemon_too() {
    let daemon = Daemon::start("memory:");
    let opened = daemon.client();
    try_layouts(&opened, &OnHost, 10);
    opened.close();
}

#[test]
fn a_daemons_client_copies_itself() {
    let daemon = Daemon::start("memory:");
    let opened = daemon.client();
    for kind in [Kind::Apart, Kind::Interleaved, Kind::Latent, Kind::CrossLayer] {
        round_trip(&opened, &Case { kind, seed: kind as u64, ..SMALL }, &OnHost, &|_| {});
        // From below, in several prefetches whose ends are pushed.
        round_trip(&opened, &Case { kind, seed: 9 + kind as u64, groups: 2, ..SMALL }, &OnHost, &|space| {
            opened.drain_writes(WAIT_MS).unwrap();
            opened.clear(space, false).unwrap();
        });
    }
    opened.close();
}

/// One client's objects, that another loads while they are on their way from a backend that does not answer.
#[test]
fn loads_end_with_their_daemon() {
    let mut daemon = Daemon::start("fault:memory:?fault.load_hang=1");
    let (writer, reader) = (daemon.client(), daemon.client());
    let case = Case { tp: 1, ..SMALL };
    let spec = SpaceSpec {
        model: "m".to_owned(),
        layout: String::new(),
        tenant: String::new(),
        chunk_tokens: 4 * case.per_chunk,
        quota_bytes: 0,
    };
    let space = writer.open_space(spec.clone()).unwrap();
    assert_eq!(reader.open_space(spec).unwrap(), space);
    let pages = case.pages(&OnHost, 0, 7);
    let (keys, blocks) = (case.keys(0), case.blocks(&(0..pages.blocks as i32).collect::<Vec<_>>()));
    let store = |opened: &Opened, keys: &[Key]| {
        let pool = pages.pool(opened, space, 0, case.per_chunk);
        let session = opened.begin_session(space, "w", None).unwrap();
        let mut job = 0;
        let blocks = &blocks[..keys.len() * case.per_chunk as usize];
        let asked = Asked { pool, session, keys, blocks };
        opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
        assert_eq!(status(opened, job), KVKEEP_OK);
        opened.end_session(session).unwrap();
    };
    store(&writer, &keys);
    writer.drain_writes(WAIT_MS).unwrap();
    writer.clear(space, false).unwrap();
    // Of what is there and what is not, the first is copied and the second waited for.
    store(&writer, &keys[..1]);
    let pool = pages.pool(&reader, space, 0, case.per_chunk);
    let session = reader.begin_session(space, "r", None).unwrap();
    let (mut job, mut other) = (0, 0);
    let asked = || Asked { pool, session, keys: &keys, blocks: &blocks };
    reader.transfers().submit_load(asked(), TransferRequest::default(), &mut job).unwrap();
    reader.transfers().submit_load(asked(), TransferRequest::default(), &mut other).unwrap();
    assert!(reader.wait(job, 10).is_err());
    // Aborted in another process, it goes on: only stores are dropped.
    writer.abort_session(session).unwrap();
    assert!(reader.wait(job, 10).is_err());
    reader.cancel(other).unwrap();
    assert_eq!(status(&reader, other), KVKEEP_ERR_CANCELLED);
    daemon.stop();
    let ended = result(&reader, job);
    assert!(ended.status < 0 || ended.status == KVKEEP_PARTIAL as i32, "{ended:?}");
    let mut statuses = vec![0; blocks.len()];
    assert_eq!(reader.transfers().query_blocks(job, &mut statuses).unwrap(), KVKEEP_OK);
    assert!(
        statuses[case.per_chunk as usize..]
            .iter()
            .zip(&blocks[case.per_chunk as usize..])
            .all(|(&status, &block)| { (status == KVKEEP_OK as i32) == (block < 0) })
    );
    assert_eq!(reader.transfers().close_pool(pool + 9).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    reader.close();
    writer.close();
}
