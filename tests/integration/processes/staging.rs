//! Staging of one client in the session of another: whose it is when the key is committed, evicted and staged anew.

use kvkeep::abi::View;
use kvkeep::cache::Cache as _;
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;

/// Stages keys in the session of another process, each when it is told to, until it is to close.
#[derive(Serialize, Deserialize)]
pub struct Stager {
    daemon: DaemonPart,
    session: u64,
}

impl Stager {
    pub fn play(&self) {
        let client = self.daemon.client();
        loop {
            match hear().split_once(' ') {
                Some(("stage", number)) => {
                    let number = number.parse().unwrap();
                    stage(&client, self.session, &keys(number..number + 1));
                    say("staged");
                }
                _ => return client.close(),
            }
        }
    }
}

fn stage_by(stager: &mut Process, number: u64) {
    stager.say(&format!("stage {number}"));
    stager.expect("staged");
}

fn start(part: &DaemonPart, session: u64) -> Process {
    Process::start(&Part::Stager(Stager { daemon: part.clone(), session }))
}

/// The other client staged key 1 and key 2; key 1 was committed, evicted and staged anew by this one.
fn ends_and_drops_its_own_staging(end: impl FnOnce(Process)) {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart { l1_bytes: MIB, watermark_percent: 100, ..DaemonPart::new(dir.path(), 0) };
    let _daemon = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let session = client.begin_session(space, "shared", None).unwrap();
    let mut other = start(&part, session);
    stage_by(&mut other, 1);
    stage_by(&mut other, 2);
    assert!(client.finish_write(session, &keys(1..2), None).unwrap());
    client.flush(WATCHDOG_MS).unwrap();
    assert!(client.evict(space, &keys(1..2), None).unwrap());
    let mine: Vec<View> = stage(&client, session, &keys(1..2));
    end(other);
    until("the other client is gone", || stats(&client).clients == 1);
    until("its staging of key 2 is dropped", || stats(&client).l1_staged == 1);

    // P2: a session that takes all the memory there is gets none of what this client stages.
    let greedy = client.begin_session(space, "greedy", None).unwrap();
    let many = keys(100..1200);
    let mut out = views(many.len());
    client.reserve_write(greedy, &many, &vec![KIB; many.len()], false, &mut out).unwrap();
    let (first, last) = (mine[0].data as usize, mine[0].data as usize + mine[0].size as usize);
    let taken = out.iter().filter(|view| view.status == 0);
    assert!(taken.clone().count() > 900);
    assert!(taken.map(|view| view.data as usize).all(|at| at + KIB as usize <= first || at >= last));
    client.abort_session(greedy).unwrap();

    fill(&client, &keys(1..2), &mine);
    assert!(client.finish_write(session, &keys(1..2), None).unwrap());
    read(&client, session, &keys(1..2));
    client.end_session(session).unwrap();
    assert_eq!(stats(&client).l1_staged, 0);
    client.close();
}

#[test]
fn p2_a_client_that_is_killed_takes_no_later_staging_of_its_key_along() {
    ends_and_drops_its_own_staging(|mut other| other.kill());
}

#[test]
fn p2_a_client_that_closes_takes_no_later_staging_of_its_key_along() {
    ends_and_drops_its_own_staging(|mut other| {
        other.say("close");
        other.wait();
    });
}

#[test]
fn what_others_commit_or_abort_counts_no_more_against_the_client_that_staged_it() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let most = (1..4).map(|number| size(&key(number, 0))).max().unwrap();
    let part = DaemonPart { staged_bytes_max: most, ..DaemonPart::new(dir.path(), 0) };
    let _daemon = daemon(&part);
    let client = part.client();
    let space = open_space(&client);
    let session = client.begin_session(space, "shared", None).unwrap();
    let mut other = start(&part, session);
    stage_by(&mut other, 1);
    assert!(client.finish_write(session, &keys(1..2), None).unwrap());
    stage_by(&mut other, 2);
    assert!(client.abort_write(session, &keys(2..3), None).unwrap());
    stage_by(&mut other, 3);
    other.say("close");
    other.wait();
    until("its staging is dropped", || stats(&client).l1_staged == 0);
    read(&client, session, &keys(1..2));
    client.close();
}
