//! A circuit breaker: a backend whose requests fail in a row is not asked for a while, then by one request that decides.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::meters::Count;
use crate::sync::{AtomicBool, Ordering};

/// The longest pause, as a multiple of the first.
const PAUSE_GROWTH_MAX: u32 = 32;

/// What the answer of a request changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BreakerTurn {
    /// So many requests failed in a row: no more are to be sent for this long.
    Opened(u32, Duration),
    /// A request succeeded: all may be sent again.
    Closed,
}

/// Whether requests of one kind may be sent to one backend.
pub struct Breaker {
    errors_max: u32,
    first_pause: Duration,
    /// No request failed since the last that succeeded.
    calm: AtomicBool,
    state: Mutex<BreakerState>,
    /// How often it opened.
    pub opened: Count,
}

struct BreakerState {
    /// Requests that failed in a row.
    errors: u32,
    /// While it is open: when a request may be tried.
    open_until: Option<Instant>,
    /// That request is under way.
    probing: bool,
    /// The pause before the next probe.
    pause: Duration,
    /// The last failure.
    failure: String,
}

impl Breaker {
    /// A closed breaker that opens after `errors_max` failures in a row, never for 0, first for `pause`.
    pub fn new(errors_max: u32, pause: Duration) -> Breaker {
        let state = BreakerState { errors: 0, open_until: None, probing: false, pause, failure: String::new() };
        Breaker {
            errors_max,
            first_pause: pause,
            calm: AtomicBool::new(true),
            state: Mutex::new(state),
            opened: Count::default(),
        }
    }

    /// Whether a request may be sent now.
    pub fn is_ready(&self) -> bool {
        self.calm.load(Ordering::Acquire) || self.state.lock().is_ready(Instant::now())
    }

    /// Whether a request may be sent now. While the breaker is open it is the probe: the caller must send it, and no other is sent
    /// until it is answered.
    pub fn admit(&self) -> bool {
        self.calm.load(Ordering::Acquire) || self.state.lock().admit(Instant::now())
    }

    /// Notes that a request succeeded.
    pub fn succeeded(&self) -> Option<BreakerTurn> {
        if self.calm.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        let was_open = state.open_until.take().is_some();
        (state.errors, state.probing, state.pause) = (0, false, self.first_pause);
        state.failure.clear();
        self.calm.store(true, Ordering::Release);
        was_open.then_some(BreakerTurn::Closed)
    }

    /// Notes that a request failed.
    pub fn failed(&self, failure: &str) -> Option<BreakerTurn> {
        if self.errors_max == 0 {
            return None;
        }
        let mut state = self.state.lock();
        self.calm.store(false, Ordering::Release);
        state.errors = state.errors.saturating_add(1);
        failure.clone_into(&mut state.failure);
        match state.open_until {
            Some(_) if state.probing => {
                state.probing = false;
                state.pause = (state.pause * 2).min(self.first_pause * PAUSE_GROWTH_MAX);
                state.open_until = Some(Instant::now() + state.pause);
                None
            }
            // A request from before it opened.
            Some(_) => None,
            None if state.errors < self.errors_max => None,
            None => {
                state.open_until = Some(Instant::now() + state.pause);
                self.opened.add(1);
                Some(BreakerTurn::Opened(state.errors, state.pause))
            }
        }
    }

    /// While it is open: how many requests failed in a row, and the last failure.
    pub fn trouble(&self) -> Option<(u32, String)> {
        if self.calm.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        state.open_until.map(|_| (state.errors, state.failure.clone()))
    }
}

impl BreakerState {
    fn is_ready(&self, now: Instant) -> bool {
        self.open_until.is_none_or(|until| until <= now && !self.probing)
    }

    fn admit(&mut self, now: Instant) -> bool {
        let ready = self.is_ready(now);
        self.probing |= ready && self.open_until.is_some();
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(1);

    fn await_ready(breaker: &Breaker) {
        while !breaker.is_ready() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_alone() {
        let breaker = Breaker::new(3, Duration::from_secs(1000));
        assert_eq!([breaker.failed("a"), breaker.failed("b"), breaker.succeeded()], [None; 3]);
        assert_eq!([breaker.failed("c"), breaker.failed("d")], [None; 2]);
        assert!(breaker.admit() && breaker.trouble().is_none());
        assert_eq!(breaker.failed("e"), Some(BreakerTurn::Opened(3, Duration::from_secs(1000))));
        assert!(!breaker.is_ready() && !breaker.admit());
        assert_eq!(breaker.trouble(), Some((3, "e".to_owned())));
        // An answer to a request from before.
        assert_eq!(breaker.failed("f"), None);
        assert_eq!(breaker.succeeded(), Some(BreakerTurn::Closed));
        assert!(breaker.admit() && breaker.trouble().is_none());
        assert_eq!(breaker.opened.get(), 1);
    }

    #[test]
    fn one_probe_at_a_time_decides() {
        let breaker = Breaker::new(1, PAUSE);
        assert_eq!(breaker.failed("a"), Some(BreakerTurn::Opened(1, PAUSE)));
        await_ready(&breaker);
        assert!(breaker.admit());
        assert!(!breaker.is_ready() && !breaker.admit());
        assert_eq!(breaker.failed("b"), None);
        assert!(breaker.trouble().is_some());
        await_ready(&breaker);
        assert!(breaker.admit() && !breaker.admit());
        assert_eq!(breaker.succeeded(), Some(BreakerTurn::Closed));
        assert!(breaker.admit() && breaker.admit());
    }

    #[test]
    fn the_pause_grows_with_each_failed_probe_up_to_a_bound() {
        let breaker = Breaker::new(1, PAUSE);
        breaker.failed("a");
        for _ in 0..8 {
            await_ready(&breaker);
            assert!(breaker.admit());
            breaker.failed("b");
        }
        assert_eq!(breaker.state.lock().pause, PAUSE * PAUSE_GROWTH_MAX);
        breaker.succeeded();
        assert_eq!(breaker.failed("c"), Some(BreakerTurn::Opened(1, PAUSE)));
    }

    #[test]
    fn none_opens_where_no_number_is_set() {
        let breaker = Breaker::new(0, PAUSE);
        (0..100).for_each(|_| assert_eq!(breaker.failed("a"), None));
        assert!(breaker.admit());
    }
}
