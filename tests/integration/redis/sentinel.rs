//! A master and a replica that a Sentinel watches: it names the master, and the other one after a failover.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvkeep::error::{KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_UNSUPPORTED};
use kvkeep::l2::{Found, Health, Stored};

use crate::support::fs::{WATCHDOG, until};
use crate::support::redis::*;

pub struct Sentinel {
    child: Child,
    pub port: u16,
}

impl Sentinel {
    pub fn start(master: &Server) -> Sentinel {
        Sentinel::watch(master, master.port)
    }

    /// Watches a port; `files` has its files.
    fn watch(files: &Server, watched: u16) -> Sentinel {
        let port = free_port();
        let file = files.dir.path().join(format!("sentinel-{port}.conf"));
        let watch = format!("sentinel monitor main 127.0.0.1 {watched} 1\nsentinel down-after-milliseconds main 300\n");
        let text = format!("port {port}\nbind 127.0.0.1\n{watch}sentinel failover-timeout main 2000\n");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program().unwrap()).arg(&file).arg("--sentinel");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Sentinel { child, port }
    }

    /// It has to know the replica before it can promote it.
    pub fn until_it_knows_the_replica(&self) {
        let knows = || said(self.port, b"SENTINEL REPLICAS main\r\n").contains("127.0.0.1");
        until("the Sentinel to know the replica", knows);
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The beginning of what the Sentinel answers. It ends no connection by itself.
fn said(port: u16, command: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(command).unwrap();
    let mut answer = [0; 256];
    let count = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

/// As [`until`], but for the time in which the Sentinel makes no failover: on a busy machine it distrusts its clock for half a minute
/// (TILT), again and again.
pub fn until_failed_over(sentinel: &Sentinel, come: impl Fn() -> bool) {
    let (begun, mut began) = (Instant::now(), Instant::now());
    while !come() {
        if said(sentinel.port, b"INFO sentinel\r\n").contains("sentinel_tilt:1") {
            began = Instant::now();
        }
        let waits = began.elapsed() < WATCHDOG && begun.elapsed() < 8 * WATCHDOG;
        assert!(waits, "waited in vain for the failover: {}", said(sentinel.port, b"SENTINEL MASTER main\r\n"));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_failover_that_a_sentinel_makes_is_followed() {
    let Some(mut master) = Server::start(&[]) else { return };
    let Some(replica) = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]) else { return };
    until("the replica", || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    let sentinel = Sentinel::start(&master);
    // Of three Sentinels one is not there, and one knows another master, which is not there either.
    let lost = Sentinel::watch(&master, free_port());
    let url =
        format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}/main", free_port(), lost.port, sentinel.port);
    until("the Sentinel", || open(&url).is_ok());
    let backend = open(&url).unwrap();
    let numbers: Vec<u64> = (0..50).collect();
    numbers.iter().for_each(|&number| assert_eq!(store(&*backend, number, 1000).unwrap(), Stored::Written));
    assert!(master.ask(&["WAIT", "1", "10000"]).starts_with(":1"));
    sentinel.until_it_knows_the_replica();
    master.kill();
    until_failed_over(&sentinel, || store(&*backend, 100, 1000).is_ok());
    until("lookups", || lookup(&*backend, &numbers, true).is_ok_and(|found| found == [Found::Present(1000); 50]));
    numbers.iter().for_each(|&number| load(&*backend, number, 1000).unwrap());
    until("an end of the trouble", || backend.health() == Health::Good);
    let port = sentinel.port;
    // A name that it does not know, and a server that is no Sentinel.
    let error = open(&format!("redis+sentinel://127.0.0.1:{port}/other")).map(|_| ()).unwrap_err();
    assert!(error.status == KVKEEP_ERR_NOT_FOUND && error.message.contains("no master \"other\""), "{error}");
    let error = open(&format!("redis+sentinel://127.0.0.1:{}/main", replica.port)).map(|_| ()).unwrap_err();
    assert!(error.status == KVKEEP_ERR_UNSUPPORTED && error.message.contains("no Sentinel"), "{error}");
    let error = open(&format!("redis://127.0.0.1:{port}")).map(|_| ()).unwrap_err();
    assert!(error.message.contains("redis+sentinel://"), "{error}");
}
