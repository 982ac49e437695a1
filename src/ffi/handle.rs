//! Handles: tokens that name an open cache, valid to use at any time, even when closed or invented.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crossbeam_queue::ArrayQueue;
use once_cell::sync::Lazy;

use super::gate::{Gate, Pass, is_within};
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT, Result};
use crate::open_cache::OpenCache;
use crate::sync::AtomicU64;

/// One open cache. Opaque.
#[allow(non_camel_case_types)]
pub struct kvkeep {
    _opaque: (),
}

const HANDLES: usize = 256;

struct HandleSlot {
    gate: Gate,
    /// Forks seen when it was opened.
    epoch: AtomicU32,
    cache: AtomicPtr<OpenCache>,
}

static SLOTS: [HandleSlot; HANDLES] = [const {
    HandleSlot { gate: Gate(AtomicU64::new(0)), epoch: AtomicU32::new(0), cache: AtomicPtr::new(std::ptr::null_mut()) }
}; HANDLES];

static FREE: Lazy<ArrayQueue<usize>> = Lazy::new(|| {
    extern "C" fn count_fork() {
        FORKS.fetch_add(1, Ordering::SeqCst);
    }
    // SAFETY: registers a function that only adds to an atomic, which is safe in a forked child.
    unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    let free = ArrayQueue::new(HANDLES);
    for slot in 0..HANDLES {
        let _ = free.push(slot);
    }
    free
});

static FORKS: AtomicU32 = AtomicU32::new(0);

#[cold]
fn closed() -> Error {
    Error::new(
        KVKEEP_ERR_CLOSED,
        "the cache handle is not open in this process: it was never given out, was closed, or was opened before a fork; open a cache and use its handle",
    )
}

fn token(slot: usize, generation: u64) -> *mut kvkeep {
    std::ptr::without_provenance_mut(((generation as usize) << 12) | (slot << 4) | 0x8)
}

#[inline]
fn decode(cache: *mut kvkeep) -> Result<(&'static HandleSlot, usize, u64)> {
    let token = cache.addr();
    let slot = token >> 4 & 0xff;
    if token & 0xf != 0x8 {
        return Err(closed());
    }
    Ok((&SLOTS[slot], slot, (token >> 12) as u64))
}

/// Registers an open cache.
pub fn open(cache: OpenCache) -> Result<*mut kvkeep> {
    let Some(number) = FREE.pop() else {
        cache.close();
        return Err(Error::new(KVKEEP_ERR_LIMIT, format!("{HANDLES} caches are open: close one first")));
    };
    let slot = &SLOTS[number];
    slot.cache.store(Box::into_raw(Box::new(cache)), Ordering::SeqCst);
    slot.epoch.store(FORKS.load(Ordering::SeqCst), Ordering::SeqCst);
    Ok(token(number, slot.gate.open()))
}

/// A call in flight: the cache stays open while it lives.
pub struct User {
    slot: &'static HandleSlot,
    _pass: Pass,
}

impl User {
    /// The cache.
    #[inline]
    pub fn cache(&self) -> &OpenCache {
        // SAFETY: `close` frees the box only after every user is gone, and `enter` saw it open when it was counted.
        unsafe { &*self.slot.cache.load(Ordering::Acquire) }
    }
}

/// Begins a call.
#[inline]
pub fn enter(cache: *mut kvkeep) -> Result<User> {
    let (slot, _, generation) = decode(cache)?;
    let pass = slot.gate.enter(cache.addr(), generation).ok_or_else(closed)?;
    let of_this_process = slot.epoch.load(Ordering::Relaxed) == FORKS.load(Ordering::Relaxed);
    if of_this_process { Ok(User { slot, _pass: pass }) } else { Err(closed()) }
}

/// Closes: no call begins any more, those in flight end, then the cache goes.
pub fn close(cache: *mut kvkeep) -> Result<()> {
    let (slot, number, generation) = decode(cache)?;
    {
        let within = is_within(cache.addr());
        let user = enter(cache)?;
        if within || user.cache().on_callback_thread() {
            return Err(Error::invalid(
                "kvkeep_close was called from a callback, which it waits for: close from another thread",
            ));
        }
    }
    if !slot.gate.shut(generation) {
        return Err(closed());
    }
    let open = slot.cache.load(Ordering::SeqCst);
    // SAFETY: the pointer came from `Box::into_raw` in `open`, and only the one closer that won the exchange gets here.
    let open = unsafe { &*open };
    open.wake_waiters();
    slot.gate.wait_until_empty();
    let open = slot.cache.swap(std::ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: as above; no call is in flight any more, and none begins.
    let open = unsafe { Box::from_raw(open) };
    open.close();
    let _ = FREE.push(number);
    Ok(())
}
