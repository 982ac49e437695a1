//! What of a prompt goes first when room is needed: its end, since what follows a gap is of no use.

use kvkeep::cache::Cache as _;
use kvkeep::error::KVKEEP_OK;

use super::cache::{Cache, KIB, key, keys, said, views};

const CHUNKS: u32 = 6;
const POLICIES: [&str; 3] = ["lru", "s3fifo", "mq"];

fn open(policy: &str) -> Cache {
    Cache::open(16 * 4 * KIB, &[], |config| {
        config.watermark_high_percent = 100;
        config.eviction_policy = policy.to_owned();
    })
}

fn there(cache: &Cache, number: u32) -> bool {
    cache.node.explain_key(cache.space, &key(number)).unwrap().contains("\"ready\"")
}

/// The order in which the prompt's chunks go while others come, one at a time.
fn order(cache: &Cache) -> Vec<u32> {
    let (mut gone, other) = (Vec::new(), cache.session());
    for number in 100.. {
        let mut out = views(1);
        if !cache.node.reserve_write(other, &[key(number)], &[4096], false, &mut out).unwrap() {
            break;
        }
        let left: Vec<u32> = (0..CHUNKS).filter(|chunk| !gone.contains(chunk) && !there(cache, *chunk)).collect();
        gone.extend(left);
        assert_eq!(out[0].status, said(KVKEEP_OK));
    }
    gone
}

const FROM_ITS_END: [u32; CHUNKS as usize] = [5, 4, 3, 2, 1, 0];

#[test]
fn a_prompt_committed_at_once_goes_from_its_end_before_its_session_ends() {
    for policy in POLICIES {
        for end in [false, true] {
            let cache = open(policy);
            let session = cache.session();
            cache.put(session, 0..CHUNKS, 4096);
            if end {
                cache.node.abort_session(session).unwrap();
            }
            assert_eq!(order(&cache), FROM_ITS_END, "{policy}, aborted: {end}");
            cache.node.close();
        }
    }
}

#[test]
fn a_prompt_committed_and_read_at_once_goes_from_its_end() {
    for policy in POLICIES {
        let cache = open(policy);
        let session = cache.session();
        let keys = keys(0..CHUNKS);
        let mut out = views(keys.len());
        assert!(cache.node.reserve_write(session, &keys, &[4096; CHUNKS as usize], false, &mut out).unwrap());
        assert!(cache.node.finish_write_and_reserve_read(session, &keys, 0, &mut out).unwrap());
        assert_eq!(cache.finish(session, 0..CHUNKS, 0), [0; CHUNKS as usize]);
        assert_eq!(order(&cache), FROM_ITS_END, "{policy}");
        cache.node.close();
    }
}

#[test]
fn a_prompt_read_at_once_goes_from_its_end_before_its_session_ends() {
    // S3-FIFO goes by arrival.
    for policy in ["lru", "mq"] {
        let cache = open(policy);
        let writer = cache.session();
        (0..CHUNKS).for_each(|chunk| cache.put(writer, chunk..chunk + 1, 4096));
        cache.node.abort_session(writer).unwrap();
        let reader = cache.session();
        cache.read(reader, 0..CHUNKS, 1);
        assert_eq!(cache.finish(reader, 0..CHUNKS, 0), [0; CHUNKS as usize]);
        assert_eq!(cache.finish(reader, 0..CHUNKS, 0), [0; CHUNKS as usize]);
        assert_eq!(order(&cache), FROM_ITS_END, "{policy}");
        cache.node.close();
    }
}
