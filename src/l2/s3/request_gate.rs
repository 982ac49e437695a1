//! Counts the requests that are not answered, bounds their number, and refuses new ones after close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::bucket_errors::{closed, full};
use crate::error::Result;

/// Most keys of requests that are not answered.
const KEYS_MAX: usize = 1 << 16;

#[derive(Default)]
struct GateState {
    closed: bool,
    keys: usize,
}

/// The way in for requests.
#[derive(Default)]
pub struct RequestGate {
    state: Mutex<GateState>,
    empty: Condvar,
}

/// The place of a request that is not answered.
pub struct Entered {
    gate: Arc<RequestGate>,
    keys: usize,
}

impl RequestGate {
    /// Lets a request of `keys` keys in.
    pub fn enter(self: &Arc<RequestGate>, keys: usize) -> Result<Entered> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        if state.keys > 0 && state.keys + keys > KEYS_MAX {
            return Err(full(state.keys));
        }
        state.keys += keys;
        Ok(Entered { gate: self.clone(), keys })
    }

    /// Lets nothing in any more.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Whether nothing is let in.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until all requests are answered. False if the time passed before.
    pub fn wait_empty(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.keys > 0 {
            if self.empty.wait_until(&mut state, until).timed_out() {
                return state.keys == 0;
            }
        }
        true
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.keys -= self.keys;
        if state.keys == 0 {
            self.gate.empty.notify_all();
        }
    }
}
