//! When the library's own threads run.

use crate::background;

/// From now on the library's background threads do not push aside the thread that wakes one of them.
///
/// A scheduler's call wakes threads that look into files and load. Where no core is idle, the kernel would run such a thread at
/// once, in place of the scheduler and in the middle of its call.
pub fn defer_background() {
    background::begin_with(defer);
}

/// Makes the calling thread one that is not run the moment it is woken; its share of the processor stays what it was.
fn defer() {
    // SAFETY: 0 is the calling thread; the calls read and change how it is scheduled, and nothing else.
    unsafe {
        // Whoever runs the process under another policy has chosen it.
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            let parameters: libc::sched_param = std::mem::zeroed();
            // One that cannot be deferred works all the same.
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
        let (told, heard) = std::sync::mpsc::channel();
        background::spawn("test", move || told.send(policy()).unwrap()).unwrap().join().unwrap();
        assert_eq!(heard.recv().unwrap(), if before == libc::SCHED_OTHER { libc::SCHED_BATCH } else { before });
        assert_eq!(policy(), before);
    }
}
