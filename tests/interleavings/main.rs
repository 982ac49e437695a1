//! The types that threads share without a lock, or with more than one, in every order of their steps that the memory model allows: the
//! files of `src` themselves, compiled with the atomics, locks and threads of loom.
//!
//! A program of its own: there, `crate::sync` is loom's. `LOOM_MAX_PREEMPTIONS` says how often a thread is interrupted at most.
#![allow(dead_code, reason = "the files have more than is tried here")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../../src/ablation.rs"]
mod ablation;
mod control;
#[path = "../../src/doorbell.rs"]
mod doorbell;
mod ffi;
mod sync;

/// Tries every order in which no thread is interrupted more often than `preemptions` times.
fn every_order(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(preemptions);
    model.check(body);
}

mod bell {
    use std::time::{Duration, Instant};

    use loom::sync::{Arc, Mutex};

    use crate::doorbell::Doorbell;
    use crate::every_order;

    const LONG: Duration = Duration::from_secs(100_000);

    /// The listener never sleeps on work: loom fails where all threads sleep.
    #[test]
    fn a_ring_is_heard_whenever_it_comes() {
        every_order(2, || {
            let shared = Arc::new((Doorbell::default(), Mutex::new(0)));
            let ringers: Vec<_> = (0..2)
                .map(|_| {
                    let shared = shared.clone();
                    loom::thread::spawn(move || {
                        *shared.1.lock().unwrap() += 1;
                        shared.0.ring();
                    })
                })
                .collect();
            while *shared.1.lock().unwrap() < 2 {
                shared.0.listen(Instant::now() + LONG);
            }
            ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
        });
    }

    /// Work has a time, and the listener sleeps until the next one that it knows of.
    #[test]
    fn work_that_is_due_before_the_listener_would_wake_wakes_it() {
        every_order(4, || {
            let shared = Arc::new((Doorbell::default(), Mutex::new(None)));
            let soon = Instant::now() + LONG;
            let ringer = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    *shared.1.lock().unwrap() = Some(soon);
                    shared.0.ring_by(soon);
                })
            };
            loop {
                let due: Option<Instant> = *shared.1.lock().unwrap();
                if due.is_some() {
                    break;
                }
                shared.0.listen(soon + LONG);
            }
            ringer.join().unwrap();
        });
    }
}
