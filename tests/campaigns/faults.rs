//! Every backend behind `fault:`, and every server behind a proxy that harms what passes, while jobs are cancelled, backends are added
//! and removed, and caches close.
//!
//! KVKEEP_FAULT_OPERATIONS says how many operations there are, KVKEEP_FAULT_CLOSES how many caches close, KVKEEP_FAULT_SEED repeats a
//! seed (not the interleaving).

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvkeep::abi::{Completion, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{Callback, NodeConfig, Notify, PrefetchRequest, SpaceSpec, StoreMode};
use kvkeep::error::KVKEEP_ERR_CLOSED;
use kvkeep::key::Key;
use kvkeep::node::Node;

use super::stress::{Length, stress};
use crate::support::process::{WATCHDOG, WATCHDOG_MS, watch_for};
use crate::support::proxy::{Mischief, Proxy};
use crate::support::random::{Random, rounds, seed};
use crate::support::redis::Server;
#[cfg(feature = "s3")]
use crate::support::s3::Service;
use crate::support::skip::skipped;

/// A fifth of all requests fail.
const FAULTS: &str = "fault.lookup_error=0.2&fault.load_error=0.2&fault.store_error=0.2&fault.torn=0.02&fault.flip=0.05&\
                      fault.delay=0.05&fault.delay_ms=2&deadline_ms=200&breaker_errors=8&breaker_pause_ms=5";
/// One that hangs has its backend fenced until that is removed.
const HANGS: &str = "&fault.lookup_hang=0.005&fault.load_hang=0.005&fault.store_hang=0.005";
const MISCHIEF: Mischief = Mischief { delay: 10, cut: 40, truncate: 40, reorder: 40, swallow: 300 };

/// The plug-in of the examples, built into `dir`.
fn plugin(dir: &Path) -> Option<String> {
    let (root, library) = (Path::new(env!("CARGO_MANIFEST_DIR")), dir.join("directory_plugin.so"));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-O1", "-o"]).arg(&library);
    compiler.arg("-I").arg(root.join("include")).arg(root.join("examples/plugin/directory_plugin.c"));
    if !compiler.arg("-lpthread").status().is_ok_and(|status| status.success()) {
        skipped("faults: the plug-in", "there is no C compiler");
        return None;
    }
    Some(format!("plugin:{}?directory={}&threads=4&", library.display(), dir.display()))
}

#[test]
fn p4_p7_every_backend_that_fails_harms_no_caller() {
    let seed = seed("KVKEEP_FAULT_SEED");
    let operations = rounds("KVKEEP_FAULT_OPERATIONS", 16_000);
    let dir = tempfile::tempdir().unwrap();
    let mut backends = vec![
        "memory:?capacity=1MiB&".to_owned(),
        "memory:?lookup=slow&".to_owned(),
        format!("fs://{}/a?capacity=1MiB&", dir.path().display()),
        format!("fs://{}/b?capacity=1MiB&engine=pool&durability=power&", dir.path().display()),
    ];
    backends.extend(plugin(dir.path()));
    let mut proxies = Vec::new();
    let mut through_proxy = |port: u16| {
        proxies.push(Proxy::start(port, seed));
        let proxy = &proxies[proxies.len() - 1];
        proxy.set(MISCHIEF);
        proxy.port
    };
    let redis = Server::start(&[]);
    backends.extend(
        redis
            .as_ref()
            .map(|server| format!("redis://127.0.0.1:{}?timeout_ms=150&connect_ms=500&", through_proxy(server.port))),
    );
    #[cfg(feature = "s3")]
    let s3 = Service::start("faults: S3");
    #[cfg(feature = "s3")]
    backends.extend(s3.as_ref().map(|service| {
        let address = ([127, 0, 0, 1], through_proxy(service.address.port())).into();
        let url = service.url_at(address, "&retries=1&stall_ms=500&absent_ms=20&");
        url.replace("open_ms=100000", "open_ms=1000")
    }));
    let urls: Vec<String> =
        backends.iter().flat_map(|url| ["", HANGS].map(|hangs| format!("fault:{url}{FAULTS}{hangs}"))).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    // Each alone, then all of them, beside one that works and has little.
    let each = urls.chunks(2).chain(std::iter::once(&urls[..]));
    for (at, guests) in each.enumerate() {
        let share = operations / (backends.len() as u64 + 1);
        let _watchdog = watch_for(5 * WATCHDOG + Duration::from_millis(operations));
        println!("guests {}", backends.get(at).map_or("of all kinds", |url| &url[..url.find(['/', '?']).unwrap_or(0)]));
        let mode = [StoreMode::WriteThrough, StoreMode::WriteBack][at % 2];
        stress(
            seed.wrapping_add(at as u64),
            Length::Operations(share),
            "lru",
            mode,
            &["memory:?capacity=16KiB"],
            guests,
        );
    }
    assert!(proxies.iter().all(|proxy| proxy.done() > 0), "nothing was harmed");
}

/// Threads ask a cache whose backends hang until it closes beside them.
fn close_while_it_works(seed: u64) {
    let mut random = Random(seed);
    let url = format!(
        "fault:memory:?lookup=slow&fault.seed={seed}&fault.load_hang=0.2&fault.lookup_hang=0.05&fault.store_hang=0.1&deadline_ms=20"
    );
    let mut config = NodeConfig::new(256 << 10);
    config.backend_urls = vec![url, "memory:".to_owned()];
    config.backend_timeout = Duration::from_millis(50);
    let node = Node::open(config).unwrap();
    let (model, layout, tenant) = ("closes".to_owned(), String::new(), String::new());
    let space =
        node.open_space(SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 16, quota_bytes: 0 }).unwrap();
    let keys: Vec<Key> = (0..16).map(|number| Key { hash: [number; 32], rank: 0, group: 0 }).collect();
    let mut views = vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; keys.len()];
    let session = node.begin_session(space, "w", None).unwrap();
    assert!(node.reserve_write(session, &keys, &[1000; 16], false, &mut views).unwrap());
    assert!(node.finish_write(session, &keys, None).unwrap());
    node.end_session(session).unwrap();
    node.flush(WATCHDOG_MS).unwrap();
    node.clear(0, true).unwrap();
    let (completed, accepted) = (Arc::<Mutex<HashMap<u64, u32>>>::default(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (node, keys, completed, accepted) = (&node, &keys, &completed, &accepted);
            let mut random = Random(seed ^ (thread << 32));
            scope.spawn(move || {
                while let Ok(session) = node.begin_session(space, "r", None) {
                    let completed = completed.clone();
                    let told = move |completion: &Completion| {
                        *completed.lock().unwrap().entry(completion.job).or_insert(0) += 1;
                    };
                    let notify = Notify::Callback(Callback(Box::new(told)));
                    let mut job = 0;
                    let request = PrefetchRequest { notify, ..Default::default() };
                    if let Err(error) = node.submit_prefetch(session, keys, request, &mut job) {
                        return assert_eq!(error.status, KVKEEP_ERR_CLOSED, "{error}");
                    }
                    accepted.fetch_add(1, Ordering::SeqCst);
                    if random.one_in(3) {
                        // The cache may have closed.
                        let _ = node.cancel(job);
                    }
                    if random.one_in(2) && node.end_session(session).is_err() {
                        return;
                    }
                    std::thread::yield_now();
                }
            });
        }
        let jobs = random.below(200);
        while accepted.load(Ordering::SeqCst) < jobs {
            std::thread::yield_now();
        }
        node.close();
    });
    let completed = completed.lock().unwrap();
    assert_eq!(completed.len() as u64, accepted.load(Ordering::SeqCst), "with seed {seed}");
    assert!(completed.values().all(|&times| times == 1), "with seed {seed}: {completed:?}");
}

#[test]
fn p4_a_cache_that_closes_while_backends_hang_completes_every_job_once() {
    let closes = rounds("KVKEEP_FAULT_CLOSES", 20);
    let seed = seed("KVKEEP_FAULT_SEED");
    let _watchdog = watch_for(5 * WATCHDOG + Duration::from_secs(closes));
    (0..closes).for_each(|at| close_while_it_works(seed.wrapping_add(at)));
}
