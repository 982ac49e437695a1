//! P4, P5 and P10: one completion for each request, nothing kept for callers who forget, nobody blocked meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvkeep::abi::Completion;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Callback, Notify, Policy, PrefetchRequest};
use kvkeep::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXISTS, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD,
    KVKEEP_ERR_TIMEOUT, KVKEEP_OK, KVKEEP_PENDING,
};
use kvkeep::log::{Log, LogLevel};

use super::cache::{Cache, MIB, WATCHDOG_MS, by_event, key, keys, said, until, views, watched};

/// A bug in a thread that jobs wait for, here in what it tells the log.
#[test]
fn p4_jobs_complete_though_a_thread_of_the_library_meets_a_bug() {
    watched(|| {
        let log = Log::new(LogLevel::Error, |_, line| {
            let control = std::thread::current().name() == Some("kvkeep-control");
            assert!(!(control && line.contains("is given up")), "a bug");
        });
        let cache = Cache::open(MIB, &["fault:memory:?fault.store_hang=1"], |config| {
            config.log = log;
            config.backend_timeout = Duration::from_millis(20);
        });
        let session = cache.session();
        let polled = PrefetchRequest { lookup_timeout: Duration::from_secs(3600), ..Default::default() };
        let job = cache.submit(session, 5..6, polled);
        cache.put(session, 0..1, 4096);
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!(cache.answer(job).unwrap().status, said(KVKEEP_ERR_CANCELLED));
        assert!(cache.node.is_poisoned());
        cache.node.close();
    });
}

const JOBS: usize = 2000;
const FAULTS: [(&str, u64); 6] = [
    ("memory:", 30_000),
    ("memory:?lookup=slow", 30_000),
    ("fault:memory:?fault.load_error=0.3&fault.lookup_error=0.2", 30_000),
    ("fault:memory:?fault.delay=0.5&fault.delay_ms=2&fault.flip=0.1&fault.torn=0.1", 30_000),
    ("fault:memory:?fault.load_hang=0.02&fault.lookup_hang=0.01&fault.store_hang=0.01", 40),
    ("fault:memory:?fault.load_hang=1&fault.lookup_hang=0.5", 20),
];

fn none() -> Completion {
    // SAFETY: plain data for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// One of many ways in which a job may go.
fn treat(cache: &Cache, i: usize, session: u64, job: u64) {
    match i % 7 {
        0 => drop(cache.node.cancel(job)),
        1 => drop(cache.node.release_job(job)),
        2 => drop(cache.node.end_session(session)),
        3 => drop(cache.node.abort_session(session)),
        4 if i.is_multiple_of(70) => drop(cache.node.clear(0, true)),
        _ => {}
    }
}

fn request(i: usize, notify: Notify) -> PrefetchRequest {
    PrefetchRequest {
        extra_count: (i % 3) as u32,
        policy: [Policy::BestEffort, Policy::Wait, Policy::Deadline][i % 3],
        deadline: i.is_multiple_of(5).then_some(Duration::from_millis(1 + i as u64 % 10)),
        lookup_timeout: Duration::from_millis(if i.is_multiple_of(11) { 5 } else { 0 }),
        temporary: i.is_multiple_of(2),
        priority: (i % 4) as i32,
        notify,
        ..Default::default()
    }
}

fn cache_with(url: &str, timeout_ms: u64) -> Cache {
    let cache = Cache::open(2 * MIB, &[url], |config| {
        config.backend_timeout = Duration::from_millis(timeout_ms);
        config.loading_bytes_max = 64 << 10;
    });
    cache.store(0..256, 4096);
    // What a backend that hangs did not take is given up, and counted.
    let _ = cache.node.flush(WATCHDOG_MS);
    cache.node.clear(0, true).unwrap();
    cache
}

#[test]
fn p4_one_callback_per_job_whatever_becomes_of_it_and_of_the_backend() {
    for (url, timeout_ms) in FAULTS {
        watched(move || {
            let cache = cache_with(url, timeout_ms);
            let told: Arc<Vec<AtomicU32>> = Arc::new((0..JOBS).map(|_| AtomicU32::new(0)).collect());
            let (callback_of, mut last) = (told.clone(), 0);
            for i in 0..JOBS {
                let session = cache.session();
                let told = callback_of.clone();
                let callback = Callback(Box::new(move |_: &Completion| {
                    told[i].fetch_add(1, Ordering::Relaxed);
                }));
                let first = (i as u32 * 7) % 240;
                let request = request(i, Notify::Callback(callback));
                last = cache.submit(session, first..first + 16, request);
                treat(&cache, i, session, last);
            }
            // Half of the rounds close at once, the others when the last job is done.
            if timeout_ms < 30_000 {
                let _ = cache.node.wait(last, 1);
            } else {
                let _ = cache.node.wait(last, WATCHDOG_MS);
            }
            cache.node.close();
            assert!(told.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{url}");
            let stats = cache.stats();
            assert_eq!((stats.jobs_submitted, stats.jobs_completed), (JOBS as u64, JOBS as u64));
        });
    }
}

#[test]
fn p4_one_completion_per_job_by_the_event_descriptor() {
    for (url, timeout_ms) in FAULTS {
        watched(move || {
            let cache = cache_with(url, timeout_ms);
            let mut told = std::collections::HashMap::new();
            let mut jobs = Vec::new();
            for i in 0..JOBS {
                let session = cache.session();
                let first = (i as u32 * 7) % 240;
                let job = cache.submit(session, first..first + 16, request(i, Notify::EventFd));
                jobs.push(job);
                treat(&cache, i, session, job);
                if i == JOBS - 1 {
                    cache.node.cancel(job).unwrap_or(());
                }
            }
            let mut some = [none(); 7];
            while told.len() < JOBS {
                let mut poll = libc::pollfd { fd: cache.node.event_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor, open until the cache is closed.
                assert_eq!(unsafe { libc::poll(&mut poll, 1, WATCHDOG_MS as i32) }, 1, "{url}: no completion comes");
                let count = cache.node.take_completions(&mut some);
                assert!(count > 0, "the descriptor was readable for nothing");
                for completion in &some[..count] {
                    *told.entry(completion.job).or_insert(0) += 1;
                }
            }
            assert_eq!(cache.node.take_completions(&mut some), 0);
            assert!(jobs.iter().all(|job| told[job] == 1));
            cache.node.close();
        });
    }
}

#[test]
fn p4_one_answer_per_job_by_polling_and_by_waiting() {
    for (url, timeout_ms) in FAULTS {
        watched(move || {
            let cache = cache_with(url, timeout_ms);
            let session = cache.session();
            let jobs: Vec<u64> = (0..200)
                .map(|i| {
                    let request = PrefetchRequest { policy: Policy::Wait, ..request(i, Notify::Poll) };
                    cache.submit(session, (i as u32)..(i as u32 + 16), PrefetchRequest { deadline: None, ..request })
                })
                .collect();
            std::thread::scope(|scope| {
                for part in jobs.chunks(50) {
                    let cache = &cache;
                    scope.spawn(move || {
                        for &job in part {
                            cache.node.wait(job, WATCHDOG_MS).unwrap();
                            let answer = cache.answer(job).unwrap();
                            assert_eq!((answer.status, cache.answer(job).unwrap().hit_chunks), (0, answer.hit_chunks));
                            let mut hits = 0;
                            assert_eq!(cache.node.query_lookup_hits(job, &mut hits).unwrap(), KVKEEP_OK);
                            assert!(hits >= answer.hit_chunks);
                        }
                    });
                }
            });
            cache.node.end_session(session).unwrap();
            assert_eq!(cache.stats().jobs, 0);
            cache.node.close();
        });
    }
}

#[test]
fn p4_a_hung_backend_is_fenced_and_jobs_go_on_without_it() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |config| {
            config.backend_timeout = Duration::from_millis(50);
        });
        cache.store_below(0..4, 4096);
        let session = cache.session();
        let answer = cache.prefetch(session, 0..4);
        assert_eq!((answer.status, answer.hit_chunks, answer.failed_keys), (said(KVKEEP_OK), 0, 4));
        assert_eq!(cache.stats().backend_timeouts, 4);
        // While it is fenced it is not asked; what is in L1 is found all the same.
        cache.put(session, 0..2, 4096);
        let answer = cache.prefetch(session, 0..4);
        assert_eq!((answer.hit_chunks, answer.failed_keys, cache.stats().backend_timeouts), (2, 0, 4));
        cache.node.close();
    });
}

#[test]
fn what_a_fenced_backend_misses_is_counted() {
    watched(|| {
        let urls = ["memory:", "fault:memory:?fault.lookup_hang=1"];
        let cache = Cache::open(MIB, &urls, |config| config.backend_timeout = Duration::from_millis(500));
        cache.prefetch(cache.session(), 0..1);
        until("the fence", || cache.stats().backend_timeouts == 1);
        cache.store(0..4, 4096);
        cache.node.flush(WATCHDOG_MS).unwrap();
        assert_eq!((cache.stats().stores, cache.stats().stores_dropped), (4, 4));
        let _ = cache.node.remove_backend(2);
        cache.node.close();
    });
}

#[test]
fn p4_waiters_and_callbacks_are_told_on_close() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |config| {
            config.backend_timeout = Duration::from_secs(5);
        });
        cache.store_below(0..4, 4096);
        let session = cache.session();
        let (tell, told) = channel();
        let tell = std::sync::Mutex::new(tell);
        let callback = Callback(Box::new(move |completion: &Completion| {
            tell.lock().unwrap().send(completion.status).unwrap();
        }));
        cache.submit(session, 0..4, PrefetchRequest { notify: Notify::Callback(callback), ..Default::default() });
        let waited = cache.submit(session, 0..4, PrefetchRequest::default());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cache.node.wait(waited, WATCHDOG_MS));
            cache.node.wake_waiters();
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(cache.answer(waited).unwrap().status, said(KVKEEP_ERR_CANCELLED));
        cache.node.close();
        assert_eq!(told.try_recv(), Ok(said(KVKEEP_ERR_CANCELLED)));
    });
}

#[test]
fn p5_an_unread_result_is_reclaimed_at_its_deadline_and_counted() {
    watched(|| {
        let cache = Cache::open(MIB, &["memory:"], |_| {});
        cache.store(0..4, 4096);
        let session = cache.session();
        let deadline = Some(Duration::from_millis(10));
        let job = cache.submit(session, 0..4, PrefetchRequest { deadline, ..Default::default() });
        until("the job to be reclaimed", || cache.stats().jobs_reclaimed == 1);
        let mut hits = 0;
        assert_eq!(cache.node.query_lookup_hits(job, &mut hits).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        assert_eq!(cache.node.release_job(job).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        // Its shares are the session's.
        assert_eq!(cache.finish(session, 0..4, 0), [0; 4]);
        cache.node.end_session(session).unwrap();
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn an_answer_can_be_read_for_as_long_as_it_had_to_come() {
    watched(|| {
        const LOAD: Duration = Duration::from_millis(150);
        let cache = Cache::open(MIB, &["fault:memory:?fault.delay=1&fault.delay_ms=150"], |_| {});
        cache.store_below(0..1, 4096);
        for policy in [Policy::BestEffort, Policy::Wait] {
            let (session, submitted, deadline) = (cache.session(), Instant::now(), 3 * LOAD);
            let job =
                cache.submit(session, 0..1, PrefetchRequest { deadline: Some(deadline), policy, ..Default::default() });
            let mut hits = 0;
            until("the job to be reclaimed", || cache.node.query_lookup_hits(job, &mut hits).is_err());
            assert!(submitted.elapsed() >= LOAD + deadline, "{policy:?}: gone {:?} after submit", submitted.elapsed());
            cache.node.end_session(session).unwrap();
            cache.node.clear(0, true).unwrap();
        }
        cache.node.close();
    });
}

#[test]
fn a_commit_is_noticed_while_a_backend_is_asked() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.lookup_hang=1"], |_| {});
        let session = cache.session();
        let lookup_timeout = Duration::from_secs(60);
        let job = cache.submit(session, 0..4, PrefetchRequest { lookup_timeout, ..Default::default() });
        assert!(cache.answer(job).is_none());
        cache.store(0..4, 4096);
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!((cache.answer(job).unwrap().hit_chunks, cache.stats().backend_timeouts), (4, 0));
        cache.node.remove_backend(1).unwrap();
        cache.node.close();
    });
}

#[test]
fn p5_an_abandoned_job_ends_and_goes() {
    watched(|| {
        let cache = Cache::open(MIB, &["fault:memory:?fault.load_hang=1"], |_| {});
        cache.store_below(0..4, 4096);
        for policy in [Policy::BestEffort, Policy::Deadline] {
            let session = cache.session();
            let deadline = Some(Duration::from_millis(10));
            cache.submit(session, 0..4, PrefetchRequest { policy, deadline, ..Default::default() });
            until("the job to go", || cache.stats().jobs == 0);
            cache.node.end_session(session).unwrap();
        }
        assert_eq!((cache.stats().jobs_reclaimed, cache.stats().l1_shares), (2, 0));
        cache.node.close();
    });
}

#[test]
fn p5_an_idle_session_is_reclaimed_with_its_jobs_and_tokens() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |config| config.session_timeout = Duration::from_millis(10));
        let session = cache.session();
        cache.node.append_tokens(session, &[1; 100]).unwrap();
        let deadline = Some(Duration::from_secs(1000));
        let job = cache.submit(session, 0..4, PrefetchRequest { deadline, ..Default::default() });
        until("the session to be reclaimed", || cache.stats().sessions_reclaimed == 1);
        until("its job to go", || cache.stats().jobs == 0);
        assert_eq!(cache.node.cancel(job).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p5_completions_that_nobody_drains_are_bounded() {
    let cache = Cache::open(MIB, &[], |config| config.jobs_max = 10);
    let session = cache.session();
    for _ in 0..10 {
        let job = cache.submit(session, 0..1, by_event());
        cache.node.release_job(job).unwrap();
    }
    let refused = cache.node.submit_prefetch(session, &[key(0)], by_event(), &mut 0);
    assert_eq!(refused.unwrap_err().status, KVKEEP_ERR_LIMIT);
    cache.submit(session, 0..1, PrefetchRequest::default());
    assert_eq!(cache.node.take_completions(&mut [none(); 3]), 3);
    cache.submit(session, 0..1, by_event());
    cache.node.close();
}

#[test]
fn p10_submit_and_query_return_while_the_backend_hangs() {
    watched(|| {
        let url = "fault:memory:?fault.lookup_hang=1&fault.load_hang=1&fault.store_hang=1";
        let cache = Cache::open(MIB, &[url], |config| config.backend_timeout = Duration::from_secs(1000));
        cache.store(0..4, 4096);
        let session = cache.session();
        let jobs: Vec<u64> = (0..100).map(|i| cache.submit(session, i..i + 8, PrefetchRequest::default())).collect();
        for &job in &jobs {
            let mut hits = 0;
            assert_eq!(cache.node.query_lookup_hits(job, &mut hits).unwrap(), KVKEEP_PENDING);
            assert!(cache.answer(job).is_none());
            assert_eq!(cache.node.wait(job, 0).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
        }
        // Everything else a scheduler does goes on too.
        cache.put(session, 100..104, 4096);
        assert_eq!(cache.read(session, 100..104, 0).iter().filter(|view| view.status == 0).count(), 4);
        assert_eq!(cache.finish(session, 100..104, 0), [0; 4]);
        let mut statuses = [0; 4];
        cache.node.touch(cache.space, &keys(100..104), Some(&mut statuses)).unwrap();
        cache.node.cancel(jobs[0]).unwrap();
        cache.node.release_job(jobs[1]).unwrap();
        cache.node.end_session(session).unwrap();
        assert_eq!(cache.stats().jobs, 0);
        cache.node.remove_backend(1).unwrap();
        cache.node.close();
    });
}

#[test]
fn p10_the_lookup_is_answered_before_any_byte_is_loaded() {
    watched(|| {
        for url in ["fault:memory:?fault.load_hang=1", "fault:memory:?fault.load_hang=1&lookup=slow"] {
            let cache = Cache::open(MIB, &[url], |_| {});
            cache.store_below(0..12, 4096);
            let session = cache.session();
            let job = cache.submit(session, 0..16, PrefetchRequest { objects_per_chunk: 4, ..Default::default() });
            let mut hits = 0;
            until("the lookup", || cache.node.query_lookup_hits(job, &mut hits).unwrap() == KVKEEP_OK);
            assert_eq!((hits, cache.answer(job).is_none(), cache.stats().loads), (3, true, 0));
            // Another job's lookup does not wait for these loads either.
            let other = cache.submit(session, 0..12, PrefetchRequest::default());
            until("the other lookup", || cache.node.query_lookup_hits(other, &mut hits).unwrap() == KVKEEP_OK);
            assert_eq!(hits, 12);
            cache.node.remove_backend(1).unwrap();
            cache.node.wait(job, WATCHDOG_MS).unwrap();
            cache.node.close();
        }
    });
}

#[test]
fn p4_jobs_cancelled_while_they_are_submitted_complete_once_and_hold_what_they_say() {
    watched(|| {
        let cache = Cache::open(MIB, &["memory:"], |_| {});
        let session = cache.session();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let writer = cache.session();
                    let mut out = views(4);
                    // So small that there is room for as many copies as jobs, each of which may hold another one.
                    cache.node.reserve_write(writer, &keys(0..4), &[64; 4], false, &mut out).unwrap();
                    let mut reserved = keys(0..4);
                    let mut statuses = out.iter().map(|view| view.status);
                    // A job may have loaded one since the last clearing.
                    reserved.retain(|_| match statuses.next() {
                        Some(0) => true,
                        other => other != Some(KVKEEP_ERR_EXISTS as i32) && panic!("{other:?}"),
                    });
                    cache.node.finish_write(writer, &reserved, None).unwrap();
                    cache.node.end_session(writer).unwrap();
                    cache.node.clear(0, true).unwrap();
                }
            });
            for _ in 0..3000 {
                cache.submit(session, 0..4, by_event());
            }
            stop.store(true, Ordering::Relaxed);
        });
        until("all jobs to be done", || cache.stats().jobs_completed >= 3000);
        let mut some = vec![none(); 4000];
        assert_eq!(cache.node.take_completions(&mut some), 3000);
        assert_eq!(cache.stats().jobs_completed, 3000);
        // What the jobs said they hold can be returned, and is all.
        for completion in &some[..3000] {
            assert!(cache.finish(session, 0..completion.hit_chunks, 0).into_iter().all(|status| status == 0));
        }
        until("late loads", || cache.stats().l1_shares == 0);
        assert_eq!(cache.finish(session, 0..4, 0), [KVKEEP_ERR_NOT_HELD as i32; 4]);
        cache.node.end_session(session).unwrap();
        until("late loads", || cache.stats().l1_locked_bytes == 0);
        cache.at_rest();
        cache.node.close();
    });
}

#[test]
fn p5_a_session_that_ends_while_it_is_used_leaves_no_job() {
    watched(|| {
        let cache = Cache::open(MIB, &["memory:?lookup=slow"], |_| {});
        cache.store_below(0..4, 4096);
        for _ in 0..500 {
            let session = cache.session();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let submit = || cache.node.submit_prefetch(session, &keys(0..4), by_event(), &mut 0);
                    while cache.node.append_tokens(session, &[1; 20]).and(submit()).is_ok() {}
                });
                cache.node.end_session(session).unwrap();
            });
            assert_eq!(cache.stats().jobs, 0);
            while cache.node.take_completions(&mut [none(); 64]) > 0 {}
        }
        until("the last loads", || cache.stats().jobs_completed == cache.stats().jobs_submitted);
        until("their buffers", || cache.stats().l1_locked_bytes == 0);
        cache.at_rest();
        cache.node.close();
    });
}
