//! A transfer in flight whose process loses its connection to the daemon, while both live.

use super::*;
use crate::daemon::client::{Client, ClientConfig};
use crate::daemon::server::{Access, Limits, LockFile, Server};
use crate::error::KVKEEP_ERR_DISCONNECTED;

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed().as_secs() < 120, "in vain: {what}");
        std::thread::yield_now();
    }
}

fn staged(node: &Node) -> u64 {
    let mut stats = Stats::default();
    Cache::stats(node, &mut stats).unwrap();
    stats.l1_staged
}

#[test]
fn p2_a_store_in_flight_overwrites_nobody_though_its_connection_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let config = NodeConfig { store_mode: StoreMode::Never, ..NodeConfig::new(u64::from(ROOM) * OBJECT) };
    let node = Node::open(NodeConfig { watermark_high_percent: 100, boot: 1, ..config }).unwrap();
    let server =
        Server::start(node.clone(), LockFile::take(&socket).unwrap(), Access::default(), Limits::default()).unwrap();
    let config = || ClientConfig::new(&format!("unix://{}", socket.display())).unwrap();
    let short = Some(std::time::Duration::from_millis(50));
    let a = Client::open(ClientConfig { session_timeout: short, ..config() }).unwrap();
    let b = Client::open(config()).unwrap();
    let slow = Arc::new(Slow::default());
    let transfers = Transfers::by(a.clone(), slow.clone());
    let (model, layout, tenant) = ("m".to_owned(), String::new(), String::new());
    let spec = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
    let space = a.open_space(spec.clone()).unwrap();
    transfers.note_space(space, &spec);
    let pages = vec![0xaaaa_aaaa_aaaa_aaaa_u64; (OBJECT / 8) as usize];
    let address = pages.as_ptr().expose_provenance() as u64;
    let segments = vec![Segment { address, block_bytes: BLOCK, block_stride: BLOCK, group: 0, layer: 0, part: 0 }];
    let promise = Promise::of_a_test();
    let pool = PoolSpec { device: -1, rank: 0, blocks: PER_CHUNK, blocks_per_chunk: PER_CHUNK, segments, promise };
    let pool = transfers.open_pool(space, pool).unwrap();
    let long = Some(std::time::Duration::from_secs(300));
    let session = a.begin_session(space, "r", long).unwrap();
    let mut job = 0;
    let asked = AskedTransfer { pool, session, keys: &[key(1)], blocks: &[0, 1] };
    transfers.submit_store(asked, TransferRequest::default(), &mut job).unwrap();
    let begun = slow.begin();
    assert_eq!((begun.len(), staged(&node)), (1, 1));

    a.lose();
    // The client has another connection, and keeps the former mapping for its callers' views no more.
    let former = View { data: begun[0].piece.arena.at(0).cast(), size: 8, ..View::none(KVKEEP_OK) };
    until("it is connected again", || a.begin_session(space, "again", None).is_ok());
    until("views are let go", || a.arena_of(&former).is_none());

    // Another client writes all that it is given.
    let other = b.begin_session(space, "o", None).unwrap();
    let keys: Vec<Key> = (10..10 + ROOM as u8).map(key).collect();
    let mut views = vec![View::none(KVKEEP_OK); ROOM as usize];
    assert!(!b.reserve_write(other, &keys, &vec![OBJECT; ROOM as usize], false, &mut views).unwrap());
    let given = views.iter().filter(|view| view.status == KVKEEP_OK as i32).count();
    assert_eq!((given, views[given].status), (ROOM as usize - 1, KVKEEP_ERR_NO_MEMORY as i32));
    let (keys, views) = (&keys[..given], &mut views[..given]);
    for view in &*views {
        b.copy_in(view, &[0xbb; OBJECT as usize]).unwrap();
    }
    assert!(b.finish_write(other, keys, None).unwrap());

    // The device goes on. With its last byte the memory is the daemon's again.
    land(begun);
    let mut result = JobResult::default();
    until("the store ends", || transfers.query(job, &mut result).unwrap() == KVKEEP_OK);
    assert_eq!(result.status, KVKEEP_ERR_DISCONNECTED as i32);
    assert!(b.reserve_read(other, keys, 0, views).unwrap());
    for view in &*views {
        let mut bytes = vec![0; OBJECT as usize];
        b.copy_out(view, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0xbb), "a committed object of another client was overwritten");
    }
    until("what was staged is given back", || staged(&node) == 0);
    drop(pages);
    transfers.close();
    a.close();
    b.close();
    server.stop();
    node.close();
}
