//! Deadlines of requests to backends: one that passes fences the backend until it answers after all (P4).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backends::BackendSlot;
use crate::sync::{AtomicU8, AtomicUsize, Mutex, Ordering};

const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const LATE: u8 = 2;

type OnLate = Box<dyn FnOnce() + Send>;

/// One request on its way.
pub struct Ticket {
    state: AtomicU8,
    slot: Arc<BackendSlot>,
    on_late: Mutex<Option<OnLate>>,
    live: Arc<AtomicUsize>,
}

impl Ticket {
    /// Notes that the backend answered. False if that was too late: the request has failed with TIMEOUT already.
    pub fn answered(&self) -> bool {
        if self.state.swap(ANSWERED, Ordering::AcqRel) == LATE {
            self.slot.unfence();
            return false;
        }
        self.live.fetch_sub(1, Ordering::Relaxed);
        drop(self.on_late.lock().take());
        true
    }
}

/// All requests on their way, oldest first: they all have the same time.
pub struct Deadlines {
    timeout: Duration,
    tickets: Mutex<VecDeque<(Instant, Arc<Ticket>)>>,
    live: Arc<AtomicUsize>,
}

impl Deadlines {
    /// Requests get `timeout` each.
    pub fn new(timeout: Duration) -> Deadlines {
        Deadlines { timeout, tickets: Mutex::new(VecDeque::new()), live: Arc::default() }
    }

    /// When a request begun now is late.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Begins requests to a backend, each with a function to call when it is late.
    pub fn begin<'a>(&self, slot: &Arc<BackendSlot>, on_late: impl Iterator<Item = OnLate> + 'a) -> Vec<Arc<Ticket>> {
        let deadline = self.deadline();
        let tickets: Vec<Arc<Ticket>> = on_late
            .map(|on_late| {
                Arc::new(Ticket {
                    state: AtomicU8::new(WAITING),
                    slot: slot.clone(),
                    on_late: Mutex::new(Some(on_late)),
                    live: self.live.clone(),
                })
            })
            .collect();
        self.live.fetch_add(tickets.len(), Ordering::Relaxed);
        let mut queue = self.tickets.lock();
        if queue.len() > 1024 + 2 * self.live.load(Ordering::Relaxed) {
            queue.retain(|(_, ticket)| ticket.state.load(Ordering::Relaxed) == WAITING);
        }
        queue.extend(tickets.iter().map(|ticket| (deadline, ticket.clone())));
        tickets
    }

    /// Declares requests late whose deadline has passed, and fences their backends. Returns how many that were and when to look
    /// again. Called by the control thread.
    pub fn expire(&self, now: Instant) -> (usize, Option<Instant>) {
        let mut late = 0;
        loop {
            let ticket = {
                let mut queue = self.tickets.lock();
                while queue.front().is_some_and(|(_, ticket)| ticket.state.load(Ordering::Relaxed) != WAITING) {
                    queue.pop_front();
                }
                match queue.front() {
                    Some((deadline, _)) if *deadline <= now => queue.pop_front(),
                    Some((deadline, _)) => return (late, Some(*deadline)),
                    None => return (late, None),
                }
            };
            let Some((_, ticket)) = ticket else { return (late, None) };
            // Fenced first, so that an answer that comes meanwhile finds something to take back.
            ticket.slot.fence();
            if ticket.state.compare_exchange(WAITING, LATE, Ordering::AcqRel, Ordering::Acquire).is_err() {
                ticket.slot.unfence();
                continue;
            }
            self.live.fetch_sub(1, Ordering::Relaxed);
            late += 1;
            let on_late = ticket.on_late.lock().take();
            if let Some(on_late) = on_late {
                on_late();
            }
        }
    }
}
