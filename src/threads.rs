//! The library's background threads, and how the kernel schedules them.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// Set once in a process: background threads are deferred.
static DEFERRED: AtomicBool = AtomicBool::new(false);

/// Starts a background thread. Threads that answer a caller (connections, callbacks, copies) are started otherwise.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        follow_policy();
        body();
    })
}

/// Makes the calling thread a background thread. Called first by a thread that another library starts for this one.
pub fn follow_policy() {
    if DEFERRED.load(Ordering::Relaxed) {
        defer();
    }
}

/// From now on the kernel does not run a background thread the moment a caller wakes it.
///
/// A scheduler's call wakes threads that look into files and load. Where no core is idle, the kernel would preempt the scheduler
/// in the middle of its call.
pub fn defer_background() {
    DEFERRED.store(true, Ordering::Relaxed);
}

/// Gives the calling thread the batch policy: a wake-up does not preempt others for it. Its share of the processor stays.
fn defer() {
    // SAFETY: 0 is the calling thread; the calls read and change how it is scheduled, and nothing else.
    unsafe {
        // Another policy was chosen by the operator and stays.
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            let parameters: libc::sched_param = std::mem::zeroed();
            // A thread that cannot be deferred works all the same.
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_thread_is_deferred_and_another_is_not() {
        defer_background();
        // SAFETY: asks how the calling thread is scheduled.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let (sender, receiver) = std::sync::mpsc::channel();
        spawn("test", move || sender.send(policy()).unwrap()).unwrap().join().unwrap();
        assert_eq!(receiver.recv().unwrap(), if before == libc::SCHED_OTHER { libc::SCHED_BATCH } else { before });
        assert_eq!(policy(), before);
    }
}
