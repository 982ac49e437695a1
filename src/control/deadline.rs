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

/// The requests on their way that have the same time each, oldest first.
struct TicketQueue {
    timeout: Duration,
    tickets: VecDeque<(Instant, Arc<Ticket>)>,
}

/// All requests on their way.
pub struct Deadlines {
    timeout: Duration,
    /// One for each timeout that a backend has.
    queues: Mutex<Vec<TicketQueue>>,
    live: Arc<AtomicUsize>,
}

impl TicketQueue {
    /// Takes the oldest request if it is late. Else says when it will be.
    fn take_late(&mut self, now: Instant) -> Result<Arc<Ticket>, Option<Instant>> {
        while self.tickets.front().is_some_and(|(_, ticket)| ticket.state.load(Ordering::Relaxed) != WAITING) {
            self.tickets.pop_front();
        }
        let due = self.tickets.front().map(|(deadline, _)| *deadline);
        if due.is_some_and(|due| due <= now)
            && let Some((_, ticket)) = self.tickets.pop_front()
        {
            return Ok(ticket);
        }
        Err(due)
    }
}

impl Deadlines {
    /// Requests get `timeout` each, where their backend has no time of its own.
    pub fn new(timeout: Duration) -> Deadlines {
        Deadlines { timeout, queues: Mutex::new(Vec::new()), live: Arc::default() }
    }

    /// When a request to `slot` that is begun now is late.
    pub fn deadline(&self, slot: &BackendSlot) -> Instant {
        Instant::now() + slot.deadline().unwrap_or(self.timeout)
    }

    /// Begins requests to a backend, each with a function to call when it is late.
    pub fn begin<'a>(&self, slot: &Arc<BackendSlot>, on_late: impl Iterator<Item = OnLate> + 'a) -> Vec<Arc<Ticket>> {
        let timeout = slot.deadline().unwrap_or(self.timeout);
        let deadline = Instant::now() + timeout;
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
        let mut queues = self.queues.lock();
        if !queues.iter().any(|queue| queue.timeout == timeout) {
            queues.push(TicketQueue { timeout, tickets: VecDeque::new() });
        }
        if let Some(TicketQueue { tickets: queue, .. }) = queues.iter_mut().find(|queue| queue.timeout == timeout) {
            if queue.len() > 1024 + 2 * self.live.load(Ordering::Relaxed) {
                queue.retain(|(_, ticket)| ticket.state.load(Ordering::Relaxed) == WAITING);
            }
            queue.extend(tickets.iter().map(|ticket| (deadline, ticket.clone())));
        }
        tickets
    }

    /// Declares requests late whose deadline has passed, and fences their backends. Returns how many that were and when to look
    /// again. Called by the control thread.
    pub fn expire(&self, now: Instant) -> (usize, Option<Instant>) {
        let mut late = 0;
        loop {
            let mut next: Option<Instant> = None;
            let found = self.queues.lock().iter_mut().find_map(|queue| match queue.take_late(now) {
                Ok(ticket) => Some(ticket),
                Err(due) => {
                    next = next.into_iter().chain(due).min();
                    None
                }
            });
            let Some(ticket) = found else { return (late, next) };
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
