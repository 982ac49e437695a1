//! The same with a server of Valkey.

use kvkeep::cache::Cache as _;
use kvkeep::l2::{Found, Health, Stored};

use super::caches::{SIZE, read_all};
use super::round_trip::every_size_comes_back;
use crate::promises::cache::{Cache, MIB, WATCHDOG_MS, until, watched};
use crate::support::redis::*;

#[test]
fn every_size_comes_back_from_valkey() {
    for arguments in [&[][..], &["--io-threads", "2"]] {
        let Some(server) = Server::start_valkey(arguments) else { return };
        assert!(server.ask(&["INFO", "server"]).contains("valkey_version:"));
        every_size_comes_back(&server, &server.url(""));
        every_size_comes_back(&server, &server.url("?part=1MiB&connections=1&ttl=1h"));
        every_size_comes_back(&server, &format!("redis+unix://{}", server.socket().display()));
    }
}

#[test]
fn a_replica_of_valkey_is_read_from() {
    let Some(master) = Server::start_valkey(&["--repl-diskless-sync-delay", "0"]) else { return };
    let Some(replica) = Server::start_valkey(&["--replicaof", "127.0.0.1", &master.port.to_string()]) else { return };
    let backend = master.open("?read_from=replica");
    assert_eq!(store(&*backend, 1, 1000).unwrap(), Stored::Written);
    until("reads at the replica", || {
        load(&*backend, 1, 1000).unwrap();
        replica.ask(&["INFO", "commandstats"]).contains("cmdstat_get:calls=")
    });
    until("the replica to be good", || backend.health() == Health::Good);
    assert_eq!(delete(&*backend, &[1]).unwrap(), 1);
    assert_eq!(lookup(&*backend, &[1], true).unwrap(), [Found::Absent]);
}

#[test]
fn two_caches_share_valkey_which_evicts() {
    watched(|| {
        let limits = ["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"];
        let Some(server) = Server::start_valkey(&limits) else { return };
        let one = Cache::open(64 * MIB, &[&server.url("")], |_| {});
        let two = Cache::open(64 * MIB, &[&server.url("")], |_| {});
        one.store_below(0..40, SIZE);
        assert_eq!(read_all(&two, 0..40), 40);
        until("the usage", || one.node.query_backends()[0].objects >= 40);
        one.store_below(40..500, SIZE);
        let found: u64 = (40..500).map(|number| read_all(&two, number..number + 1)).sum();
        assert!((1..200).contains(&found), "{found}");
        until("the evictions to be counted", || one.node.query_backends()[0].evictions > 200);
        one.node.forget_space(one.space).unwrap();
        one.node.flush(WATCHDOG_MS).unwrap();
        assert!(server.keys().is_empty());
        for cache in [one, two] {
            cache.at_rest();
            cache.node.close();
        }
    });
}
