//! Spinning on a lock before a thread sleeps for it.

/// Longest pause between two looks at the lock before sleeping: all pauses together are some tens of microseconds.
const PAUSES_MAX: u32 = 512;

/// Looks again and again, and gives up after some tens of microseconds. A batch takes one microsecond and waking a sleeper takes
/// tens of them, so spinning comes before sleeping. The pauses between two looks grow, so that the core that has the state in its
/// cache may make several calls before the state moves.
pub(super) fn spin<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let mut pauses = 1;
    while pauses <= PAUSES_MAX {
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        if let Some(found) = look() {
            return Some(found);
        }
        pauses *= 2;
    }
    None
}
