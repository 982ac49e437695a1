//! Doorbells that are rung in real time; `tests/interleavings` tries every order of the steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::doorbell::Doorbell;

const LONG: Duration = Duration::from_secs(1000);

#[test]
fn who_rings_first_is_heard() {
    let bell = Doorbell::default();
    bell.ring();
    bell.ring();
    bell.listen(Instant::now() + LONG);
    let soon = Instant::now() + Duration::from_millis(1);
    bell.listen(soon);
    assert!(Instant::now() >= soon, "two rings are heard once");
}

#[test]
fn a_ring_wakes_and_one_for_later_does_not() {
    let bell = Arc::new(Doorbell::default());
    let listening = bell.clone();
    let soon = Instant::now() + Duration::from_millis(100);
    let listener = std::thread::spawn(move || {
        listening.listen(soon);
        let early = Instant::now() < soon;
        listening.listen(Instant::now() + LONG);
        early
    });
    while !bell.is_asleep() && Instant::now() < soon {
        std::thread::yield_now();
    }
    bell.ring_by(soon + LONG);
    while !listener.is_finished() {
        if Instant::now() > soon {
            bell.ring_by(Instant::now());
        }
        std::thread::yield_now();
    }
    assert!(!listener.join().unwrap(), "woken for what is due later");
}
