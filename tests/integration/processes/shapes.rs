//! Engines of one model name whose pages look different: none gets bytes that another one stored.

use kvkeep::cache::Cache as _;
use kvkeep::error::{KVKEEP_ERR_INVALID, KVKEEP_OK, Result};
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::layout::Segment;
use kvkeep::transfer::submit::AskedTransfer;
use kvkeep::transfer::{PoolSpec, TransferRequest};
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;

const BLOCKS: usize = 4;
const PAGE_MAX: usize = 8192;

/// An engine with pages for K and V, which opens its pool, then stores or loads one chunk of four blocks as it is told.
#[derive(Serialize, Deserialize)]
pub struct Engine {
    daemon: DaemonPart,
    page: u64,
    /// Which of its tensors is the first segment: 1 is K, 2 is V.
    parts: [u32; 2],
}

impl Engine {
    fn pool(&self, opened: &OpenCache, space: u64, pages: &mut [u8]) -> Result<u64> {
        let address = pages.as_mut_ptr().expose_provenance() as u64;
        let segment = |part: &u32| Segment {
            address: address + u64::from(part - 1) * (BLOCKS * PAGE_MAX) as u64,
            block_bytes: self.page,
            block_stride: self.page,
            group: 0,
            layer: 0,
            part: *part,
        };
        let spec = PoolSpec {
            device: -1,
            rank: 0,
            blocks: BLOCKS as u32,
            blocks_per_chunk: BLOCKS as u32,
            segments: self.parts.iter().map(segment).collect(),
            // SAFETY: the pages live as long as the process, and are touched between transfers only.
            promise: unsafe { Promise::given() },
        };
        opened.transfers().open_pool(space, spec)
    }

    pub fn play(&self) {
        let opened = OpenCache::new(self.daemon.patient_client());
        let space = opened.open_space(spec("m", "")).unwrap();
        let mut pages = vec![0u8; 2 * BLOCKS * PAGE_MAX];
        let pool = match self.pool(&opened, space, &mut pages) {
            Ok(pool) => pool,
            Err(error) => return say(&format!("refused {:?} {error}", error.status)),
        };
        say("opened");
        loop {
            let store = match hear().as_str() {
                "store" => true,
                "load" => false,
                _ => return opened.close(),
            };
            for (tensor, pages) in pages.chunks_mut(BLOCKS * PAGE_MAX).enumerate() {
                for (block, page) in pages.chunks_mut(self.page as usize).take(BLOCKS).enumerate() {
                    page.fill(if store { byte(tensor, block) } else { 0xee });
                }
            }
            let (keys, mut job) = ([key(1, 0)], 0);
            let submitted = opened.begin_session(space, "engine", None).and_then(|session| {
                let asked = AskedTransfer { pool, session, keys: &keys, blocks: &[0, 1, 2, 3] };
                let (transfers, request) = (opened.transfers(), TransferRequest::default());
                if store {
                    transfers.submit_store(asked, request, &mut job)
                } else {
                    transfers.submit_load(asked, request, &mut job)
                }
            });
            if let Err(error) = submitted {
                say(&format!("refused {:?} {error}", error.status));
                continue;
            }
            opened.wait(job, WATCHDOG_MS).unwrap();
            let mut statuses = [0; BLOCKS];
            opened.transfers().query_blocks(job, &mut statuses).unwrap();
            opened.release_job(job).unwrap();
            for (tensor, pages) in pages.chunks(BLOCKS * PAGE_MAX).enumerate() {
                for (block, page) in pages.chunks(self.page as usize).take(BLOCKS).enumerate() {
                    let loaded = statuses[block] == KVKEEP_OK as i32;
                    let wanted = if store || loaded { byte(tensor, block) } else { 0xee };
                    assert!(page.iter().all(|&byte| byte == wanted), "P7: bytes of another engine are in a page");
                }
            }
            say(&format!("copied {}", statuses.iter().filter(|&&status| status == KVKEEP_OK as i32).count()));
        }
    }
}

fn byte(tensor: usize, block: usize) -> u8 {
    (0x10 + 0x20 * tensor + block) as u8
}

fn start(part: &DaemonPart, page: u64, parts: [u32; 2]) -> Process {
    Process::start(&Part::Engine(Engine { daemon: part.clone(), page, parts }))
}

/// Has an engine store or load, and says how many blocks were copied.
fn have(engine: &mut Process, what: &str) -> usize {
    engine.say(what);
    engine.expect("copied").parse().unwrap()
}

#[test]
fn p7_an_engine_whose_pages_look_different_is_refused_with_the_remedy() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let _daemon = daemon(&part);
    let mut first = start(&part, 4096, [1, 2]);
    first.expect("opened");
    assert_eq!(have(&mut first, "store"), BLOCKS);
    for (page, parts) in [(8192, [1, 2]), (4096, [2, 1]), (2048, [1, 2])] {
        let mut other = start(&part, page, parts);
        let said = other.expect(&format!("refused {KVKEEP_ERR_INVALID:?}"));
        assert!(said.contains("earlier pool") && said.contains("layout of kvkeep_space_options"), "{said}");
        other.wait();
    }
    // One whose pages look the same has what the first one stored, though that is gone.
    first.kill();
    let mut same = start(&part, 4096, [1, 2]);
    same.expect("opened");
    assert_eq!(have(&mut same, "load"), BLOCKS);
    same.say("end");
    same.wait();
}

#[test]
fn p7_after_a_restart_the_directory_gives_an_engine_none_of_anothers_objects() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let first = daemon(&part);
    let mut one = start(&part, 4096, [1, 2]);
    one.expect("opened");
    assert_eq!(have(&mut one, "store"), BLOCKS);
    let client = part.client();
    client.flush(WATCHDOG_MS).unwrap();
    drop(first);
    client.close();
    let _next = daemon(&part);
    let mut other = start(&part, 8192, [1, 2]);
    other.expect("opened");
    assert_eq!(have(&mut other, "load"), 0);
    assert_eq!(have(&mut other, "store"), BLOCKS);
    assert_eq!(have(&mut other, "load"), BLOCKS);
    // The engine that lived through it is refused, and its pages are as they were.
    let said = loop {
        one.say("load");
        let line = one.hear().unwrap();
        if !line.contains("DISCONNECTED") {
            break line;
        }
    };
    assert!(said.starts_with(&format!("refused {KVKEEP_ERR_INVALID:?}")) && said.contains("earlier pool"), "{said}");
}
