//! What `src/sync.rs` has, of loom.

use std::ops::DerefMut;
use std::time::Duration;

use loom::sync::{Arc, Condvar};

pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
pub use loom::thread::yield_now;

/// Where a thread sleeps; loom's own would also wake it from a join.
#[derive(Clone, Default)]
pub struct Thread(Arc<(loom::sync::Mutex<bool>, Condvar)>);

loom::thread_local! {
    static CURRENT: Thread = Thread::default();
}

pub fn current() -> Thread {
    CURRENT.with(Thread::clone)
}

impl Thread {
    pub fn unpark(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }
}

/// No time passes in a model: a thread sleeps until it is woken.
pub fn park_timeout(_time: Duration) {
    let Thread(parking) = current();
    let mut woken = parking.0.lock().unwrap();
    while !std::mem::take(&mut *woken) {
        woken = parking.1.wait(woken).unwrap();
    }
}

pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> impl DerefMut<Target = T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicBool,
}

impl<T> OnceLock<T> {
    pub fn new() -> OnceLock<T> {
        OnceLock { value: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
    }

    pub fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let value = self.value.get_or_init(make);
        self.is_set.store(true, Ordering::Release);
        value
    }
}

macro_rules! per_thread {
    ($($(#[$about:meta])* static $name:ident: $type:ty = const { $value:expr };)*) => {
        $(loom::thread_local! {
            $(#[$about])*
            static $name: $type = $value;
        })*
    };
}
pub(crate) use per_thread;
