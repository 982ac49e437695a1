//! Forgetting while writes, loads and other forgettings are under way, and backends that cannot.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::abi::{JobResult, KeyState, View};
use crate::cache::Cache as _;
use crate::control::backend_tasks::WAITING_MAX;
use crate::control::tests::{
    Loses, WATCHDOG_MS, faulty, keys, many, open, stats, store, store_below, store_many, submit, until,
};
use crate::error::{KVKEEP_ERR_CANCELLED, KVKEEP_ERR_IO, Result};
use crate::key::Key;
use crate::l2::memory::MemoryBackend;
use crate::node::Node;

/// How many of the first `count` keys are found, in whichever tier.
fn found(node: &Node, space: u64, count: u8) -> u32 {
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(node, session, count, false);
    let mut chunks = u32::MAX;
    until("the lookup", || node.query_lookup_hits(job, &mut chunks).unwrap() as i32 == 0);
    node.abort_session(session).unwrap();
    chunks
}

fn result_of(node: &Node, job: u64) -> JobResult {
    let mut result = JobResult::default();
    node.wait(job, WATCHDOG_MS).unwrap();
    node.query_job(job, &mut result).unwrap();
    result
}

fn fill(node: &Node, space: u64, keys: &[Key], byte: u8) {
    let session = node.begin_session(space, "w", None).unwrap();
    let mut views = vec![View::none(crate::error::KVKEEP_OK); keys.len()];
    assert!(node.reserve_write(session, keys, &vec![4096; keys.len()], false, &mut views).unwrap());
    views.iter().for_each(|view| node.copy_in(view, &[byte; 4096]).unwrap());
    assert!(node.finish_write(session, keys, None).unwrap());
    node.end_session(session).unwrap();
}

#[test]
fn writes_under_way_are_deleted_when_they_have_landed_and_new_ones_follow_them() {
    let fault = faulty("fault.store_hang");
    let (node, space) = open(1 << 20, 60_000, fault.clone());
    fill(&node, space, &keys(4), 1);
    until("the writes", || fault.hung() == 4);
    // Of these, the backend was not asked yet when they were forgotten.
    assert_eq!(node.forget_space(space).unwrap(), 4);
    assert_eq!((found(&node, space, 4), stats(&node).writes_pending, stats(&node).deletions_pending), (0, 4, 1));
    fill(&node, space, &keys(4), 2);
    assert_eq!(found(&node, space, 4), 4);
    assert_eq!(fault.hung(), 4, "a new write overtakes what is deleted after it");
    assert_eq!(fault.release_hangs(), 4);
    until("the new writes", || fault.hung() == 4);
    assert_eq!(stats(&node).l2_objects, 0);
    until("the end", || {
        fault.release_hangs();
        stats(&node).writes_pending == 0
    });
    assert_eq!(stats(&node).l2_objects, 4);
    node.clear(space, true).unwrap();
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 4, false);
    assert_eq!(result_of(&node, job).hit_chunks, 4);
    let mut views = vec![View::none(crate::error::KVKEEP_OK); 4];
    node.get_views(session, &keys(4), &mut views).unwrap();
    for view in &views {
        let mut bytes = [0; 4096];
        node.copy_out(view, &mut bytes).unwrap();
        assert_eq!(bytes, [2; 4096]);
    }
    node.close();
}

#[test]
fn a_write_that_is_answered_too_late_is_deleted_as_well() {
    let fault = faulty("fault.store_hang");
    let (node, space) = open(1 << 20, 50, fault.clone());
    store(&node, space, 4, 4096);
    let slot = node.backends.list()[0].clone();
    until("the fence", || slot.late() == 4);
    node.forget_space(space).unwrap();
    fault.release_hangs();
    node.flush(WATCHDOG_MS).unwrap();
    assert_eq!((found(&node, space, 4), stats(&node).l2_objects), (0, 0));
    node.close();
}

#[test]
fn loads_under_way_leave_nothing() {
    let fault = faulty("fault.load_hang");
    let (node, space) = open(1 << 20, 60_000, fault.clone());
    store_below(&node, space, 4);
    let session = node.begin_session(space, "r", None).unwrap();
    let job = submit(&node, session, 4, false);
    until("the loads", || fault.hung() == 4);
    node.forget_space(space).unwrap();
    assert_eq!(result_of(&node, job).status, KVKEEP_ERR_CANCELLED as i32);
    node.flush(WATCHDOG_MS).unwrap();
    fault.release_hangs();
    until("the buffers", || stats(&node).l1_locked_bytes == 0);
    let mut states = vec![KeyState::default(); 4];
    node.query_keys(space, &keys(4), &mut states).unwrap();
    assert!(states.iter().all(|state| state.size == 0));
    assert_eq!((found(&node, space, 4), stats(&node).l1_used_bytes), (0, 0));
    node.close();
}

#[test]
fn a_backend_that_cannot_delete_is_not_asked_until_it_can() -> Result<()> {
    let backend = Arc::new(Loses(MemoryBackend::open_url(&[])?, AtomicU32::new(4), KVKEEP_ERR_IO));
    let (node, space) = open(1 << 20, 30_000, backend);
    store_below(&node, space, 4);
    node.forget_space(space)?;
    assert_eq!(found(&node, space, 4), 0);
    node.flush(WATCHDOG_MS)?;
    assert_eq!((found(&node, space, 4), stats(&node).l2_objects, stats(&node).store_retries), (0, 4, 3));
    assert!(node.backend_reports()[0].trouble.as_ref().is_some_and(|why| why.contains("forget")));
    // It keeps nothing new either, which is counted; L1 does.
    store(&node, space, 4, 4096);
    node.flush(WATCHDOG_MS)?;
    assert_eq!((found(&node, space, 4), stats(&node).stores_dropped), (4, 4));
    // It was refused four times, and now it can.
    node.forget_space(space)?;
    node.flush(WATCHDOG_MS)?;
    assert_eq!((found(&node, space, 4), stats(&node).l2_objects), (0, 0));
    assert!(node.backend_reports()[0].trouble.is_none());
    store_below(&node, space, 4);
    assert_eq!(found(&node, space, 4), 4);
    node.close();
    Ok(())
}

#[test]
fn p9_writes_that_wait_until_a_space_is_forgotten() {
    let fault = faulty("fault.store_hang");
    let (node, space) = open(64 << 20, 60_000, fault.clone());
    store(&node, space, 1, 4096);
    until("the write", || fault.hung() == 1);
    node.forget_space(space).unwrap();
    let beyond = 100;
    store_many(&node, space, &many(WAITING_MAX as u32 + beyond));
    until("those beyond", || stats(&node).stores_dropped == u64::from(beyond));
    until("the writes", || {
        fault.release_hangs();
        stats(&node).writes_pending == 0
    });
    assert_eq!(stats(&node).l2_objects, WAITING_MAX as u64);
    node.close();
}
