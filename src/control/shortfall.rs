//! Refusals, drops and retries: logged by number and reason, and shown in the statistics for a minute.
//!
//! The control thread reads them from the counters, so that neither a refused call nor an eviction has to log.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, KVKEEP_ERR_LIMIT};
use crate::l1::Counts;
use crate::log::{Log, LogLevel};
use crate::meters::Meters;

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);
/// For so many looks a dropped write is called recent.
const RECENT_LOOKS: usize = 60;

/// One kind of line.
#[derive(Default)]
struct LineKind {
    /// The count when the last line was logged, and when that was.
    counted: u64,
    at: Option<Instant>,
}

#[derive(Default)]
struct ShortfallState {
    kinds: [LineKind; KINDS],
    /// Writes dropped in all, at each of the last looks.
    dropped: VecDeque<u64>,
    looked: Option<Instant>,
}

/// Calls that met a limit, and the error of the last one.
#[derive(Default)]
struct Limited {
    calls: u64,
    why: String,
}

/// Logs what fell short, and counts the writes that were dropped recently.
#[derive(Default)]
pub struct Shortfall {
    state: Mutex<ShortfallState>,
    limited: Mutex<Limited>,
}

const KINDS: usize = 9;

/// The count of each kind, and the text of its line after the number.
fn kinds(counts: &Counts, meters: &Meters, limited: &Limited) -> [(u64, String); KINDS] {
    [
        (counts.dropped_queue, "writes to L2 were dropped: as many wait as writes_pending_max allows".to_owned()),
        (counts.dropped_evicted, "writes to L2 were dropped: L1 had to evict their objects first".to_owned()),
        (meters.dropped_fenced.get(), "writes to L2 were dropped: their backend is fenced, failing or gone".to_owned()),
        (meters.dropped_slow.get(), "writes to L2 were dropped: their backend takes too long for others".to_owned()),
        (meters.dropped_closed.get(), "writes to L2 were dropped: the cache closed before they were done".to_owned()),
        (counts.refused_memory, "reservations were refused: L1 is full of what is in use".to_owned()),
        (counts.refused_quota, "reservations were refused: a space has its quota in use".to_owned()),
        (limited.calls, format!("calls were refused: {}", limited.why)),
        (
            counts.shares_revoked + meters.jobs_reclaimed.get(),
            "shares and jobs were taken from sessions past their deadlines".to_owned(),
        ),
    ]
}

impl Shortfall {
    /// Notes a refused call. Logged later, by the control thread.
    #[cold]
    pub fn refused(&self, error: &Error) {
        if error.status == KVKEEP_ERR_LIMIT {
            let mut limited = self.limited.lock();
            limited.calls += 1;
            limited.why.clone_from(&error.message);
        }
    }

    /// Logs what is new in the counters, if it is time: of one kind at once, then once in ten seconds. Called by the control
    /// thread.
    pub fn look(&self, now: Instant, log: &Log, counts: impl FnOnce() -> Counts, meters: &Meters) {
        let mut state = self.state.lock();
        if state.looked.is_some_and(|looked| now < looked + LOOK) {
            return;
        }
        state.looked = Some(now);
        let counts = counts();
        state.dropped.push_back(dropped(&counts, meters));
        if state.dropped.len() > RECENT_LOOKS + 1 {
            state.dropped.pop_front();
        }
        let lines = state.lines(now, PAUSE, &counts, meters, &self.limited.lock());
        drop(state);
        lines.into_iter().for_each(|line| log.write(LogLevel::Warn, || line));
    }

    /// Logs everything that is new. Called once, before the log ends.
    pub fn look_last(&self, log: &Log, counts: &Counts, meters: &Meters) {
        let lines = self.state.lock().lines(Instant::now(), Duration::ZERO, counts, meters, &self.limited.lock());
        lines.into_iter().for_each(|line| log.write(LogLevel::Warn, || line));
    }

    /// Writes dropped in the last minute.
    pub fn dropped_recently(&self, counts: &Counts, meters: &Meters) -> u64 {
        let state = self.state.lock();
        // In the first minute all are.
        let before = state.dropped.front().filter(|_| state.dropped.len() > RECENT_LOOKS);
        dropped(counts, meters) - before.copied().unwrap_or(0)
    }
}

fn dropped(counts: &Counts, meters: &Meters) -> u64 {
    counts.writes_dropped() + meters.writes_dropped()
}

impl ShortfallState {
    fn lines(
        &mut self,
        now: Instant,
        pause: Duration,
        counts: &Counts,
        meters: &Meters,
        limited: &Limited,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, (count, what)) in self.kinds.iter_mut().zip(kinds(counts, meters, limited)) {
            let since = kind.at.map(|at| now.saturating_duration_since(at));
            let new = count - kind.counted;
            if new == 0 || since.is_some_and(|since| since < pause) {
                continue;
            }
            let since = since.map_or(String::new(), |since| format!(" (in {} s)", since.as_secs()));
            lines.push(format!("{new} {what}{since}"));
            (kind.counted, kind.at) = (count, Some(now));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_kind_is_said_at_once_and_then_by_number() {
        let logged = Arc::new(Mutex::new(Vec::new()));
        let lines = logged.clone();
        let log = Log::new(LogLevel::Warn, move |_, line| lines.lock().push(line.to_owned()));
        let (shortfall, meters, began) = (Shortfall::default(), Meters::default(), Instant::now());
        let counts = |dropped_queue, shares_revoked| Counts { dropped_queue, shares_revoked, ..Counts::default() };
        let look = |seconds, counts: Counts| {
            shortfall.look(began + Duration::from_secs(seconds), &log, || counts, &meters);
            std::mem::take(&mut *logged.lock())
        };
        assert_eq!(look(0, counts(0, 0)), [""; 0]);
        let lines = look(1, counts(3, 0));
        assert!(lines.len() == 1 && lines[0].starts_with("3 writes to L2 were dropped: as many wait"), "{lines:?}");
        // Another kind does not wait for it.
        let lines = look(2, counts(500, 7));
        assert!(lines.len() == 1 && lines[0].starts_with("7 shares and jobs"), "{lines:?}");
        assert_eq!(look(10, counts(1003, 7)), [""; 0]);
        // Also when no more came.
        let lines = look(11, counts(1003, 7));
        assert!(lines.len() == 1 && lines[0].starts_with("1000 writes"), "{lines:?}");
        assert!(lines[0].ends_with("(in 10 s)"), "{lines:?}");
        assert_eq!(look(30, counts(1003, 7)), [""; 0]);
        shortfall.refused(&Error::new(KVKEEP_ERR_LIMIT, "5 jobs are not released yet"));
        shortfall.refused(&Error::invalid("no limit"));
        assert_eq!(look(31, counts(1003, 7)), ["1 calls were refused: 5 jobs are not released yet"]);
        // The last ones are logged at the end.
        shortfall.refused(&Error::new(KVKEEP_ERR_LIMIT, "again"));
        shortfall.look_last(&log, &counts(1003, 7), &meters);
        assert!(logged.lock()[0].starts_with("1 calls were refused: again"));
    }

    #[test]
    fn what_was_dropped_is_recent_for_a_minute() {
        let (shortfall, meters, began) = (Shortfall::default(), Meters::default(), Instant::now());
        let counts = |dropped_queue| Counts { dropped_queue, ..Counts::default() };
        for second in 0..200 {
            let now = counts(if second < 10 { 0 } else { 5 });
            shortfall.look(began + Duration::from_secs(second), &Log::none(), || now, &meters);
            let recent = (10..70).contains(&second);
            assert_eq!(shortfall.dropped_recently(&now, &meters), if recent { 5 } else { 0 }, "second {second}");
        }
    }
}
