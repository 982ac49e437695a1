//! Spinning on a lock before a thread sleeps for it.

/// Longest pause between two looks at the lock: some microseconds.
const PAUSES_MAX: u32 = 256;
/// Looks after pauses of this length. A thread that runs on the same core goes first before each, since it may have the lock.
const LONG_PAUSES: usize = 32;

/// Looks again and again, and gives up after some hundreds of microseconds. A batch takes some microseconds, and waking a sleeper takes
/// tens of them of both threads, so spinning comes before sleeping. The pauses between two looks grow, so that the core that has the
/// state in its cache may make several calls before the state moves.
pub(super) fn spin<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let growing = std::iter::successors(Some(1), |pauses| (pauses * 2 < PAUSES_MAX).then_some(pauses * 2));
    for pauses in growing.chain(std::iter::repeat_n(PAUSES_MAX, LONG_PAUSES)) {
        if pauses == PAUSES_MAX {
            std::thread::yield_now();
        }
        (0..pauses).for_each(|_| std::hint::spin_loop());
        if let Some(found) = look() {
            return Some(found);
        }
    }
    None
}
