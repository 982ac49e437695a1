//! Which cache each thread is in, written down so that a call needs no exclusive access to memory.
//!
//! A thread writes down the cache it enters and then looks whether it is open. Whoever closes a cache first says so and then reads
//! what the threads wrote down. For one to see the other, both need a barrier in between; as a cache is entered all the
//! time and closed once, whoever closes has the kernel run it in every thread (membarrier(2)).

use std::cell::Cell;

use rustix::thread::{MembarrierCommand, membarrier};

use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence, fence, global, per_thread, yield_now};

/// What one thread wrote down, on cache lines that no other thread writes to. Records are never freed; that of a thread that ended
/// goes to a new one.
#[repr(align(128))]
struct Record {
    /// The cache that the thread is in, or 0.
    within: AtomicUsize,
    /// Whether a thread has it.
    taken: AtomicBool,
    /// The record made before it.
    next: Option<&'static Record>,
}

global! {
    /// The record made last. A list without a lock, since a lock that is held while the process forks stays held in the child.
    static LAST: AtomicPtr<Record> = AtomicPtr::new(std::ptr::null_mut());
}
global! {
    /// Whether whoever closes runs the barrier for all.
    static ONE_SIDED: AtomicBool = AtomicBool::new(false);
}

per_thread! {
    static MINE: Cell<Option<&'static Record>> = const { Cell::new(None) };
    static GIVEN_BACK: GiveBack = const { GiveBack(Cell::new(None)) };
}

/// Gives the thread's record back when the thread ends.
struct GiveBack(Cell<Option<&'static Record>>);

impl Drop for GiveBack {
    fn drop(&mut self) {
        let _ = MINE.try_with(Cell::take);
        if let Some(record) = self.0.take() {
            record.taken.store(false, Ordering::Release);
        }
    }
}

fn records() -> impl Iterator<Item = &'static Record> {
    // SAFETY: null, or a leaked record; the exchange that published it released what it was made of.
    let last = unsafe { LAST.load(Ordering::Acquire).as_ref() };
    std::iter::successors(last, |record| record.next)
}

/// A record for this thread, unless it is ending.
#[cold]
fn register() -> Option<&'static Record> {
    GIVEN_BACK.try_with(|_| ()).ok()?;
    let spare = records().find(|record| !record.taken.swap(true, Ordering::Acquire));
    let record = spare.unwrap_or_else(|| {
        let record =
            Box::into_raw(Box::new(Record { within: AtomicUsize::new(0), taken: AtomicBool::new(true), next: None }));
        loop {
            let last = LAST.load(Ordering::Acquire);
            // SAFETY: `record` is nobody else's before it is published, and is never freed; `last` as in `records`.
            unsafe { (*record).next = last.as_ref() };
            if LAST.compare_exchange(last, record, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // SAFETY: never freed, and from now on only shared.
                return unsafe { &*record };
            }
        }
    });
    GIVEN_BACK.with(|back| back.0.set(Some(record)));
    MINE.with(|mine| mine.set(Some(record)));
    Some(record)
}

/// Finds out what the kernel can do. Called once, before any cache is open.
pub fn begin() {
    let ready = register_process() && membarrier(MembarrierCommand::PrivateExpedited).is_ok();
    ONE_SIDED.store(ready, Ordering::SeqCst);
}

/// Tells the kernel that the process runs barriers for all its threads; also called in a forked child.
pub fn register_process() -> bool {
    membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
}

/// The thread is in a cache until this is dropped.
pub struct Visit {
    record: &'static Record,
}

impl Drop for Visit {
    #[inline]
    fn drop(&mut self) {
        self.record.within.store(0, Ordering::Release);
    }
}

/// Writes down that the thread is in `cache`; only after that may it be asked whether the cache is open. `None` for a call from
/// within a call, and in a thread that is ending.
#[inline]
pub fn visit(cache: usize) -> Option<Visit> {
    let record = match MINE.with(Cell::get) {
        Some(record) => record,
        None => register()?,
    };
    if record.within.load(Ordering::Relaxed) != 0 {
        return None;
    }
    record.within.store(cache, Ordering::Relaxed);
    if ONE_SIDED.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
    Some(Visit { record })
}

/// Whether this thread is in `cache`.
pub fn is_here(cache: usize) -> bool {
    MINE.with(Cell::get).is_some_and(|record| record.within.load(Ordering::Relaxed) == cache)
}

/// Waits until no thread is in `cache`, of which it was said before that it is closed. False if that cannot be found out.
pub fn wait_for_all(cache: usize) -> bool {
    fence(Ordering::SeqCst);
    if ONE_SIDED.load(Ordering::SeqCst) && membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        return false;
    }
    for record in records() {
        // Once it is not there, it comes back for no longer than it takes to see that the cache is closed.
        while record.within.load(Ordering::Acquire) == cache {
            yield_now();
        }
    }
    true
}
