//! Clients that live, and so does their daemon: what parts them, what does not, and what becomes of what they held.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use kvkeep::cache::Cache as _;
use kvkeep::error::KVKEEP_ERR_LIMIT;
use serde::{Deserialize, Serialize};

use crate::common::*;
use crate::{Part, daemon};

/// Has no descriptor left for a while.
#[derive(Serialize, Deserialize)]
pub struct Starved {
    daemon: DaemonPart,
}

/// Sets how many descriptors this process may have, and gives how many it might have before.
fn allow_descriptors(most: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain calls on a struct of ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, most);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

impl Starved {
    pub fn play(&self) {
        let client = self.daemon.client();
        let space = open_space(&client);
        let session = client.begin_session(space, "starved", None).unwrap();
        stage(&client, session, &keys(0..1));
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        let before = allow_descriptors(next as u64);
        let refused = AtomicBool::new(false);
        // Calls at once need a connection each, until one cannot have it.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !refused.load(Ordering::Relaxed) {
                        if let Err(error) = client.metrics() {
                            assert_eq!(error.status, KVKEEP_ERR_LIMIT, "{error}");
                            assert!(error.message.contains("ulimit -n"), "{error}");
                            refused.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        allow_descriptors(before);
        // The session is there, and what it staged.
        assert!(client.finish_write(session, &keys(0..1), None).unwrap());
        read(&client, session, &keys(0..1));
        client.end_session(session).unwrap();
        client.close();
        say("served");
    }
}

#[test]
fn a_client_without_a_descriptor_loses_a_call_and_not_its_sessions() {
    watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart::new(dir.path(), 0);
    let _daemon = daemon(&part);
    let client = part.client();
    let mut starved = Process::start(&Part::Starved(Starved { daemon: part }));
    starved.expect("served");
    starved.wait();
    assert_eq!(stats(&client).clients_lost, 0);
    client.close();
}
