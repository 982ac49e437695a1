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
