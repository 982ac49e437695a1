//! Clusters: three masters, slots that move, a master that is killed under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvkeep::error::{KVKEEP_ERR_IO, KVKEEP_ERR_UNSUPPORTED};
use kvkeep::l2::{Found, Health, Stored};

use super::round_trip::every_size_comes_back;
use super::trouble::busy;
use crate::support::fs::{key, until};
use crate::support::redis::*;

const LENGTH: usize = 50_000;

pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Three masters, and `replicas` of the first one.
    pub fn start(replicas: usize) -> Option<Cluster> {
        let servers: Option<Vec<Server>> = (0..3 + replicas)
            .map(|number| {
                let (bus, file) = (free_port().to_string(), format!("nodes-{number}.conf"));
                let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-config-file", &file];
                let timing = ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"];
                // On a busy machine the servers may take long to agree; a replica is not too old for them then.
                let patience = ["--cluster-replica-validity-factor", "0"];
                Server::start(&[&own[..], &timing, &patience].concat())
            })
            .collect();
        let cluster = Cluster { servers: servers? };
        for (number, server) in cluster.servers.iter().enumerate() {
            server.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
            if let Some((first, last)) = [("0", "5460"), ("5461", "10922"), ("10923", "16383")].get(number) {
                assert!(server.ask(&["CLUSTER", "ADDSLOTSRANGE", first, last]).starts_with("+OK"));
            }
            let (port, bus) = (cluster.servers[0].port.to_string(), cluster.bus(0));
            assert!(number == 0 || server.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).starts_with("+OK"));
        }
        let known = format!("cluster_known_nodes:{}", 3 + replicas);
        for server in &cluster.servers {
            until("the servers to meet", || {
                let info = server.ask(&["CLUSTER", "INFO"]);
                info.contains(&known) && info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            });
        }
        for replica in &cluster.servers[3..] {
            let master = cluster.id(0);
            until("a replica", || replica.ask(&["CLUSTER", "REPLICATE", &master]).starts_with("+OK"));
            until("its link", || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
        }
        Some(cluster)
    }

    fn bus(&self, number: usize) -> String {
        let config = self.servers[number].ask(&["CONFIG", "GET", "cluster-port"]);
        config.lines().nth(4).unwrap().to_owned()
    }

    fn id(&self, number: usize) -> String {
        self.servers[number].ask(&["CLUSTER", "MYID"]).lines().nth(1).unwrap().to_owned()
    }

    /// Named by two of its servers.
    pub fn url(&self, rest: &str) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}{rest}", self.servers[0].port, self.servers[1].port)
    }

    /// The slot of an object, and the number of its master.
    pub fn place(&self, number: u64) -> (String, usize) {
        let object = key(number);
        let name = format!("kvkeep:{{{}:{}}}", kvkeep::key::hex(&object.space.0), object.key);
        let slot = self.servers[0].ask(&["CLUSTER", "KEYSLOT", &name]).lines().next().unwrap()[1..].to_owned();
        let master = match slot.parse::<u32>().unwrap() {
            0..=5460 => 0,
            5461..=10_922 => 1,
            _ => 2,
        };
        (slot, master)
    }
}

#[test]
fn objects_lie_on_all_servers_of_a_cluster() {
    let Some(cluster) = Cluster::start(0) else { return };
    every_size_comes_back(&cluster.servers[0], &cluster.url(""));
    every_size_comes_back(&cluster.servers[2], &cluster.url("?part=1MiB&connections=1"));
    let backend = open(&cluster.url("")).unwrap();
    let stores: Vec<_> = (0..300).map(|number| send_store(&*backend, number, 100)).collect();
    stores.iter().for_each(|stored| assert_eq!(answer(stored).unwrap(), Stored::Written));
    assert!(cluster.servers.iter().all(|server| server.keys().len() > 50));
    let numbers: Vec<u64> = (0..301).collect();
    let found = lookup(&*backend, &numbers, true).unwrap();
    assert!(found[..300].iter().all(|found| *found == Found::Present(100)) && found[300] == Found::Absent);
    let (to, swept) = std::sync::mpsc::channel();
    backend.sweep(None, kvkeep::l2::Reply::new(move |result| to.send(result).unwrap()));
    assert_eq!(answer(&swept).unwrap(), 300);
    assert_eq!(backend.health(), Health::Good);
    // What is no cluster, and what has no slots.
    let Some(single) = Server::start(&[]) else { return };
    let error = open(&format!("redis+cluster://127.0.0.1:{}", single.port)).map(|_| ()).unwrap_err();
    assert!(error.status == KVKEEP_ERR_UNSUPPORTED && error.message.contains("write redis://"), "{error}");
    let Some(empty) = Server::start(&["--cluster-enabled", "yes"]) else { return };
    let error = open(&format!("redis+cluster://127.0.0.1:{}", empty.port)).map(|_| ()).unwrap_err();
    assert!(error.status == KVKEEP_ERR_IO && error.message.contains("serves no slot"), "{error}");
}

#[test]
fn a_slot_that_moves_is_followed() {
    let Some(cluster) = Cluster::start(0) else { return };
    let backend = open(&cluster.url("?part=1MiB")).unwrap();
    let (slot, from) = cluster.place(1);
    let to = (from + 1) % 3;
    let (ids, set) = ([cluster.id(from), cluster.id(to)], ["CLUSTER", "SETSLOT", &slot]);
    let on = |server: usize, words: &[&str]| {
        let said = cluster.servers[server].ask(&[&set[..], words].concat());
        assert!(said.starts_with("+OK"), "{said}");
    };
    // On its way: what is not there any more is asked for at the other server (ASK).
    on(to, &["IMPORTING", &ids[0]]);
    on(from, &["MIGRATING", &ids[1]]);
    for length in [LENGTH, (2 << 20) + 5] {
        assert_eq!(store(&*backend, 1, length).unwrap(), Stored::Written);
        assert!(!cluster.servers[to].keys().is_empty() && cluster.servers[from].keys().is_empty());
        assert_eq!(lookup(&*backend, &[1, 2], false).unwrap(), [Found::Present(length as u64), Found::Absent]);
        load(&*backend, 1, length).unwrap();
        assert_eq!(store(&*backend, 1, length).unwrap(), Stored::Already);
        assert_eq!(delete(&*backend, &[1]).unwrap(), 1);
        assert_eq!(lookup(&*backend, &[1], false).unwrap(), [Found::Absent]);
    }
    store(&*backend, 1, LENGTH).unwrap();
    // Moved (MOVED).
    for server in [to, from] {
        on(server, &["NODE", &ids[1]]);
    }
    assert_eq!(lookup(&*backend, &[1], false).unwrap(), [Found::Present(LENGTH as u64)]);
    load(&*backend, 1, LENGTH).unwrap();
    assert_eq!(delete(&*backend, &[1]).unwrap(), 1);
    assert_eq!(store(&*backend, 1, LENGTH).unwrap(), Stored::Written);
    let other = open(&cluster.url("")).unwrap();
    load(&*other, 1, LENGTH).unwrap();
}

#[test]
fn p4_a_master_killed_under_load_costs_its_objects_alone() {
    let Some(mut cluster) = Cluster::start(0) else { return };
    let backend = open(&cluster.url("")).unwrap();
    let (over, loaded) = (AtomicBool::new(false), AtomicU64::new(0));
    let of_others: Vec<u64> = (100_000..100_100).filter(|&number| cluster.place(number).1 != 1).collect();
    of_others.iter().for_each(|&number| assert_eq!(store(&*backend, number, 1000).unwrap(), Stored::Written));
    std::thread::scope(|scope| {
        for thread in 1..=3 {
            let (backend, over, loaded) = (&backend, &over, &loaded);
            scope.spawn(move || busy(&**backend, thread, over, loaded));
        }
        let some = |more: u64| {
            let before = loaded.load(Ordering::Relaxed);
            until("loads", || loaded.load(Ordering::Relaxed) > before + more);
        };
        some(50);
        cluster.servers[1].kill();
        until("trouble", || matches!(backend.health(), Health::Bad(why) if why.contains("1 of 3 servers")));
        some(50);
        for &number in &of_others {
            load(&*backend, number, 1000).unwrap();
        }
        cluster.servers[1].restart();
        until("an end of the trouble", || backend.health() == Health::Good);
        some(50);
        over.store(true, Ordering::Relaxed);
    });
    backend.close();
}

#[test]
fn a_replica_that_takes_over_is_followed_and_loses_nothing() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let backend = open(&cluster.url("")).unwrap();
    let numbers: Vec<u64> = (0..100).collect();
    numbers.iter().for_each(|&number| assert_eq!(store(&*backend, number, 1000).unwrap(), Stored::Written));
    cluster.servers[0].ask(&["WAIT", "1", "10000"]);
    cluster.servers[0].kill();
    until("the failover", || lookup(&*backend, &numbers, false).is_ok_and(|found| !found.contains(&Found::Absent)));
    for &number in &numbers {
        load(&*backend, number, 1000).unwrap();
    }
    until("stores everywhere", || (200..260).all(|number| store(&*backend, number, 10).is_ok()));
    until("an end of the trouble", || backend.health() == Health::Good);
    // The old master comes back as a replica.
    cluster.servers[0].restart();
    until("a replica", || cluster.servers[0].ask(&["INFO", "replication"]).contains("role:slave"));
    numbers.iter().for_each(|&number| load(&*backend, number, 1000).unwrap());
}
