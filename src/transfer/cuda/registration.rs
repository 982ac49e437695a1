//! L1 as GPUs reach it: its mapping registered with the driver, part by part, in the background, a part that a copy needs first.
//!
//! Memory that the machine does not let register is copied all the same: the driver takes such bytes through memory of its own, slower,
//! and makes the calling thread wait for the work on the stream before them.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::gpu::{Gpu, READ_ONLY_REGISTRATION};
use crate::arena::Arena;
use crate::error::{Error, KVKEEP_ERR_DEVICE, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::log::LogLevel;
use crate::threads;
use crate::transfer::cpu_copy::Fragment;

/// Parts are multiples of a huge page: many enough for the threads, and small enough to be waited for.
const PART_BYTES_MIN: u64 = 2 << 20;
const PART_BYTES_MAX: u64 = 64 << 20;
const PARTS: u64 = 16;
/// Registering a page is mostly the kernel's work, which a few threads do side by side.
const THREADS_MAX: usize = 4;

const PORTABLE: u32 = 1;
const MAPPED: u32 = 2;
const READ_ONLY: u32 = 8;

/// The driver's error for memory that the system does not let it lock.
const OUT_OF_MEMORY: c_int = 2;

/// A stretch of a fragment inside one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Its address in L1.
    pub l1: u64,
    /// Its address among the pages.
    pub page: u64,
    /// The number of its bytes.
    pub bytes: u64,
    /// Whether devices reach it in L1.
    pub reached: bool,
}

struct ArenaRegistration {
    registrations: Arc<Registrations>,
    gpu: Arc<Gpu>,
    arena: Arc<Arena>,
    part_bytes: u64,
    /// A state for each.
    parts: Vec<AtomicU8>,
    /// None need be registered any more, because it is over, or because one could not be.
    stop: AtomicBool,
    /// For threads that wait until another has registered a part.
    waiting: Mutex<()>,
    changed: Condvar,
}

/// How the reason begins where a limit on locked memory refuses.
const NO_LOCKABLE: &str = "no more memory may be locked for the device";
/// No thread has begun with the part.
const LEFT: u8 = 0;
/// A thread is registering the part.
const TAKEN: u8 = 1;
/// The part is registered.
const DONE: u8 = 2;
/// The part cannot be registered.
const REFUSED: u8 = 3;

/// The mappings that are registered for one cache's GPUs, by their first address.
pub struct Registrations {
    all: Mutex<Vec<(usize, Weak<RegisteredArena>)>>,
    gone: Condvar,
    /// Called for each mapping that is not registered; true for want of lockable memory.
    refused: Box<dyn Fn(bool) + Send + Sync>,
}

impl Registrations {
    /// No mapping is registered yet.
    pub fn new(refused: impl Fn(bool) + Send + Sync + 'static) -> Arc<Registrations> {
        Arc::new(Registrations { all: Mutex::default(), gone: Condvar::new(), refused: Box::new(refused) })
    }

    /// A mapping, registered once for all GPUs, in the background.
    pub fn register(self: &Arc<Self>, gpu: &Arc<Gpu>, arena: &Arc<Arena>) -> Arc<RegisteredArena> {
        let at = arena.at(0) as usize;
        let mut all = self.all.lock();
        while let Some((_, pinned)) = all.iter().find(|(of, _)| *of == at) {
            if let Some(pinned) = pinned.upgrade() {
                return pinned;
            }
            // Its last user is dropping it, and it is registered until that is over.
            self.gone.wait(&mut all);
        }
        let pinned = RegisteredArena::begin(self.clone(), gpu.clone(), arena.clone());
        all.push((at, Arc::downgrade(&pinned)));
        pinned
    }
}

/// A mapping that is registered, or being so, until this is dropped.
pub struct RegisteredArena {
    registrations: Arc<Registrations>,
    registration: Arc<ArenaRegistration>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl RegisteredArena {
    fn begin(registrations: Arc<Registrations>, gpu: Arc<Gpu>, arena: Arc<Arena>) -> Arc<RegisteredArena> {
        let bytes = arena.bytes() as u64;
        let part_bytes = bytes.div_ceil(PARTS).next_multiple_of(PART_BYTES_MIN).clamp(PART_BYTES_MIN, PART_BYTES_MAX);
        let count = bytes.div_ceil(part_bytes) as usize;
        let parts = (0..count).map(|_| AtomicU8::new(LEFT)).collect();
        let (stop, waiting, changed) = (AtomicBool::new(false), Mutex::new(()), Condvar::new());
        let registration = Arc::new(ArenaRegistration {
            registrations: registrations.clone(),
            gpu,
            arena,
            part_bytes,
            parts,
            stop,
            waiting,
            changed,
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores.min(THREADS_MAX).min(count))
            .filter_map(|_| {
                let registration = registration.clone();
                // Where there is no thread for it, all is copied as unregistered.
                threads::spawn("kvkeep-pin", move || registration.run()).ok()
            })
            .collect();
        Arc::new(RegisteredArena { registrations, registration, threads: Mutex::new(threads) })
    }

    /// Whether it is of this mapping.
    pub fn is_of(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.registration.arena, arena)
    }

    /// Cuts a fragment where parts meet, since no copy may go across two registrations, and has registered what is not yet. The
    /// context is entered.
    pub fn cut(&self, fragment: &Fragment) -> impl Iterator<Item = Stretch> {
        let base = self.registration.arena.at(0) as u64;
        let part_bytes = self.registration.part_bytes;
        let (first, end) = (fragment.l1() - base, fragment.l1() - base + fragment.bytes());
        let page = fragment.page();
        (first / part_bytes..end.div_ceil(part_bytes)).map(move |part| {
            let (from, to) = (first.max(part * part_bytes), end.min((part + 1) * part_bytes));
            let reached = self.registration.register(part as usize);
            Stretch { l1: base + from, page: page + (from - first), bytes: to - from, reached }
        })
    }
}

impl ArenaRegistration {
    fn part(&self, part: usize) -> (u64, u64) {
        let from = part as u64 * self.part_bytes;
        (from, self.part_bytes.min(self.arena.bytes() as u64 - from))
    }

    fn run(&self) {
        let Ok(_inside) = self.gpu.enter() else { return };
        for part in 0..self.parts.len() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if self.parts[part].load(Ordering::Relaxed) == LEFT {
                self.register(part);
            }
        }
    }

    /// Registers a part, or waits until another thread has. True if it is registered. The context is entered.
    fn register(&self, part: usize) -> bool {
        let state = &self.parts[part];
        match state.compare_exchange(LEFT, TAKEN, Ordering::AcqRel, Ordering::Acquire) {
            Err(TAKEN) => {
                let mut waiting = self.waiting.lock();
                while state.load(Ordering::Acquire) == TAKEN {
                    self.changed.wait(&mut waiting);
                }
            }
            Err(_) => {}
            Ok(_) => {
                let mut registered = false;
                if !self.stop.load(Ordering::Relaxed) {
                    let tried = self.try_part(part);
                    registered = tried.is_ok();
                    // The machine would refuse the next part as well.
                    if let Err(error) = tried
                        && !self.stop.swap(true, Ordering::Relaxed)
                    {
                        self.gpu.log.write(LogLevel::Warn, || {
                            format!("copies to and from some of L1 take a detour, slower: {error}")
                        });
                        (self.registrations.refused)(error.message.starts_with(NO_LOCKABLE));
                    }
                }
                let waiting = self.waiting.lock();
                state.store(if registered { DONE } else { REFUSED }, Ordering::Release);
                drop(waiting);
                self.changed.notify_all();
            }
        }
        state.load(Ordering::Acquire) == DONE
    }

    fn try_part(&self, part: usize) -> Result<()> {
        let mut flags = PORTABLE | MAPPED;
        if !self.arena.is_writable() {
            if self.gpu.attribute(READ_ONLY_REGISTRATION).unwrap_or_default() == 0 {
                return Err(Error::new(
                    KVKEEP_ERR_UNSUPPORTED,
                    "the device does not register memory that is read-only: open the client without READ_ONLY",
                ));
            }
            flags |= READ_ONLY;
        }
        let (from, bytes) = self.part(part);
        // A registered page is not joined to its neighbours any more.
        let _ = self.arena.populate(from, bytes);
        let at = self.arena.at(from).cast::<c_void>();
        // SAFETY: a part of a mapping that stays until it was unregistered.
        let code = unsafe { (self.gpu.driver.host_register)(at, bytes as usize, flags) };
        if code == OUT_OF_MEMORY {
            return Err(Error::new(
                KVKEEP_ERR_DEVICE,
                format!("{NO_LOCKABLE}: raise the limit on locked memory (ulimit -l), or make L1 smaller"),
            ));
        }
        self.gpu.check(code, "registering memory")
    }

    /// The context is entered.
    fn unregister(&self) {
        for part in (0..self.parts.len()).filter(|&part| self.parts[part].load(Ordering::Acquire) == DONE) {
            let at = self.arena.at(self.part(part).0);
            // SAFETY: registered by `run`, and no copy is under way: every copy holds a reference to this.
            unsafe { (self.gpu.driver.host_unregister)(at.cast()) };
        }
    }
}

impl Drop for RegisteredArena {
    fn drop(&mut self) {
        let registration = &self.registration;
        registration.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.get_mut().drain(..) {
            let _ = thread.join();
        }
        if let Ok(_inside) = registration.gpu.enter() {
            registration.unregister();
        }
        let at = registration.arena.at(0) as usize;
        self.registrations.all.lock().retain(|(of, _)| *of != at);
        self.registrations.gone.notify_all();
    }
}
