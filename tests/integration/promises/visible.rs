//! P12: who holds what, and why it cannot go.

use std::time::Duration;

use kvkeep::abi::{KVKEEP_KEY_EVICTABLE, KeyState};
use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use serde_json::Value;

use super::cache::{Cache, MIB, WATCHDOG_MS, key, until, views, watched};

fn why(cache: &Cache, number: u32) -> Value {
    serde_json::from_str(&cache.node.explain_key(cache.space, &key(number)).unwrap()).unwrap()
}

/// Whether eviction may take a key, as a program is told.
fn evictable(cache: &Cache, number: u32) -> bool {
    let mut said = [KeyState::default()];
    cache.node.query_keys(cache.space, &[key(number)], &mut said).unwrap();
    said[0].flags & KVKEEP_KEY_EVICTABLE != 0
}

#[test]
fn p12_a_key_names_its_holders_and_why_it_is_unevictable() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.store_hang=1"], |_| {});
        assert_eq!(why(&cache, 0)["state"], "absent");
        let named = |name: &str| cache.node.begin_session(cache.space, name, None).unwrap();
        let (writer, reader) = (named("request-w"), named("request-r"));
        cache.node.reserve_write(writer, &[key(0)], &[4096], false, &mut views(1)).unwrap();
        let said = why(&cache, 0);
        assert_eq!((&said["state"], &said["evictable"]), (&"staging".into(), &false.into()));
        let because = said["unevictable_because"][0].as_str().unwrap();
        assert!(because.contains(&writer.to_string()) && because.contains("request-w") && because.contains("stages"));
        assert!(because.contains(&format!("pid {}", std::process::id())));

        cache.node.finish_write(writer, &[key(0)], None).unwrap();
        cache.read(reader, 0..1, 4);
        cache.read(writer, 0..1, 0);
        until("the write", || why(&cache, 0)["l1"][0]["transfers"] == 1);
        let said = why(&cache, 0);
        let because = said["unevictable_because"].to_string();
        for part in ["request-w", "request-r", "holds 5 share(s)", "holds 1 share(s)", "1 transfer(s)"] {
            assert!(because.contains(part), "{because} does not say {part}");
        }
        let sessions: Value = serde_json::from_str(&cache.node.explain_session(reader).unwrap()).unwrap();
        let session = &sessions["sessions"][0];
        assert_eq!((&session["request_id"], &session["shares"]), (&"request-r".into(), &5.into()));
        assert_eq!(session["held"][0][0].as_str().unwrap(), key(0).to_string());

        cache.node.clear(0, true).unwrap();
        assert_eq!(why(&cache, 0)["state"], "detached");
        assert!(why(&cache, 0)["unevictable_because"].to_string().contains("request-r"));
        cache.node.end_session(reader).unwrap();
        cache.node.end_session(writer).unwrap();
        cache.node.remove_backend(1).unwrap();
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!(why(&cache, 0)["state"], "absent");
        cache.node.close();
    });
}

#[test]
fn p12_what_eviction_may_take_is_called_evictable() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |_| {});
        cache.store(0..1, 4096);
        let reader = cache.node.begin_session(cache.space, "gone", Some(Duration::from_millis(20))).unwrap();
        cache.read(reader, 0..1, 0);
        assert_eq!(why(&cache, 0)["evictable"], false);
        assert!(!evictable(&cache, 0));
        until("its deadline to pass", || why(&cache, 0)["l1"][0]["holders"][0]["revocable"] == true);
        let said = why(&cache, 0);
        assert_eq!((&said["evictable"], &said["unevictable_because"]), (&true.into(), &Value::Array(vec![])));
        assert!(evictable(&cache, 0));
        // Staged by one session, committed by another.
        let (one, other) = (cache.session(), cache.session());
        for session in [one, other] {
            cache.node.reserve_write(session, &[key(1)], &[4096], false, &mut views(1)).unwrap();
        }
        assert_eq!(why(&cache, 1)["unevictable_because"].as_array().unwrap().len(), 2);
        cache.node.finish_write(other, &[key(1)], None).unwrap();
        let said = why(&cache, 1);
        assert_eq!((&said["state"], &said["evictable"]), (&"ready".into(), &true.into()));
        assert!(evictable(&cache, 1));
        assert_eq!(said["l1"].as_array().unwrap().len(), 2);
        cache.node.close();
    });
}

#[test]
fn p12_sessions_show_their_jobs_and_staging() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..4, 4096);
        let session = cache.node.begin_session(cache.space, "busy", None).unwrap();
        cache.node.reserve_write(session, &[key(9)], &[4096], false, &mut views(1)).unwrap();
        let job = cache.submit(session, 0..4, PrefetchRequest::default());
        let said: Value = serde_json::from_str(&cache.node.explain_session(0).unwrap()).unwrap();
        let report = &said["sessions"][0];
        assert_eq!((&report["session"], &report["request_id"]), (&session.into(), &"busy".into()));
        assert_eq!((&report["jobs"][0]["job"], &report["jobs"][0]["done"]), (&job.into(), &false.into()));
        assert_eq!(report["staged"][0].as_str().unwrap(), key(9).to_string());
        cache.node.end_session(session).unwrap();
        cache.node.close();
    });
}

fn holders(cache: &Cache, most: u32) -> Value {
    serde_json::from_str(&cache.node.explain_holders(most)).unwrap()
}

/// Of each session shown: its number, bytes, keys, staged keys, shares.
fn sums(said: &Value) -> Vec<[u64; 5]> {
    let names = ["session", "bytes", "keys", "staged_keys", "shares"];
    let rows = said["sessions"].as_array().unwrap().iter();
    rows.map(|session| names.map(|name| session[name].as_u64().unwrap())).collect()
}

#[test]
fn p12_sessions_are_listed_by_the_bytes_that_they_hold() {
    watched(|| {
        let cache = Cache::open(16 * MIB, &[], |_| {});
        assert_eq!(holders(&cache, 9)["holding"], 0);
        cache.store(0..3000, 64);
        cache.store(3000..3010, 8192);
        let [many, few, writer, cleared, idle] = [0; 5].map(|_| cache.session());
        // More than a slice of objects, some of them twice.
        cache.read(many, 0..3000, 0);
        cache.read(many, 100..200, 2);
        cache.finish(many, 0..10, 0);
        cache.read(few, 3000..3010, 0);
        cache.read(few, 15..16, 6);
        cache.node.reserve_write(writer, &[key(9000), key(9001)], &[65536, 4096], false, &mut views(2)).unwrap();
        cache.store(5000..5001, 1024);
        cache.read(cleared, 5000..5001, 0);
        cache.node.clear(cache.space, true).unwrap();
        cache.read(idle, 0..1, 0);
        let of_many = [many, 2990 * 64, 2990, 0, 2990 + 300];
        let of_few = [few, 10 * 8192 + 64, 11, 0, 17];
        let (of_writer, of_cleared) = ([writer, 65536 + 4096, 2, 2, 0], [cleared, 1024, 1, 0, 1]);
        let all = [of_many, of_few, of_writer, of_cleared];
        for most in [9, 2, 0] {
            let said = holders(&cache, most);
            assert_eq!(sums(&said), &all[..all.len().min(most as usize)], "{said}");
            let held = all.iter().map(|sums| sums[1]).sum::<u64>();
            assert_eq!((&said["holding"], &said["held_bytes"]), (&4.into(), &held.into()));
            // One object is held by two.
            assert_eq!(said["l1_locked_bytes"], held - 64);
        }
        // The keys are told to those who ask for them.
        let report: Value = serde_json::from_str(&cache.node.explain_session(many).unwrap()).unwrap();
        let report = &report["sessions"][0];
        assert_eq!((&report["bytes"], &report["keys"]), (&of_many[1].into(), &of_many[2].into()));
        assert_eq!(report["held_of_cleared"].as_array().unwrap().len(), 2990);
        assert!(holders(&cache, 9)["sessions"][0].get("held").is_none());
        let ended = [many, few, writer, cleared, idle].into_iter();
        ended.for_each(|session| cache.node.end_session(session).unwrap());
        assert_eq!(holders(&cache, 9)["holding"], 0);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p12_the_oldest_share_is_the_age_of_the_object_that_is_shared_longest() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |_| {});
        cache.store(0..2, 4096);
        let (old, young) = (cache.session(), cache.session());
        cache.read(old, 0..1, 0);
        let age = |at: usize| holders(&cache, 9)["sessions"][at]["shared_for_ms"].as_u64().unwrap();
        until("the share to age", || age(0) >= 20);
        cache.read(young, 1..2, 0);
        assert!(age(1) < age(0));
        assert!(holders(&cache, 0)["shared_for_ms"].as_u64().unwrap() >= 20);
        // Returned and taken anew, it is a young one.
        let before = age(0);
        until("a share that is taken anew to be young", || {
            cache.finish(old, 0..1, 0);
            cache.read(old, 0..1, 0);
            age(0) < before
        });
        cache.node.close();
    });
}
