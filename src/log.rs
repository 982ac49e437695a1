//! Log lines: where they go, and a bound on how many there are of one kind.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines of one kind that come within this time are counted instead of written.
const PERIOD: Duration = Duration::from_secs(10);

/// How important a log line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// A failure that a person should look at.
    Error = 1,
    /// Something was refused, dropped or retried.
    Warn = 2,
    /// Something was opened, closed, added or removed.
    Info = 3,
}

/// A kind of line that was written less than a period ago.
struct Repeated {
    level: LogLevel,
    since: Instant,
    /// Lines counted since then, and the last of them.
    count: u64,
    last: String,
}

impl Repeated {
    /// The lines that were counted, as one.
    fn summary(&self) -> String {
        let more = if self.count == 1 { "1 time" } else { &format!("{} times", self.count) };
        format!("{} ({more} in {} s)", self.last, self.since.elapsed().as_secs())
    }
}

#[derive(Default)]
struct Repeats {
    kinds: Mutex<HashMap<&'static str, Repeated>>,
    /// `kinds` is not empty.
    any: AtomicBool,
}

type Write = dyn Fn(LogLevel, &str) + Send + Sync;

struct Sink {
    write: Box<Write>,
    repeats: Repeats,
}

/// Where log lines go.
#[derive(Clone)]
pub struct Log {
    level: LogLevel,
    sink: Option<Arc<Sink>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("level", &self.level).field("open", &self.sink.is_some()).finish()
    }
}

impl Log {
    /// Lines of at least this importance go to `sink`.
    pub fn new(level: LogLevel, sink: impl Fn(LogLevel, &str) + Send + Sync + 'static) -> Log {
        Log { level, sink: Some(Arc::new(Sink { write: Box::new(sink), repeats: Repeats::default() })) }
    }

    /// A log that drops all lines.
    pub fn none() -> Log {
        Log { level: LogLevel::Error, sink: None }
    }

    fn listener(&self, level: LogLevel) -> Option<&Sink> {
        self.sink.as_deref().filter(|_| level <= self.level)
    }

    /// Writes one line; `line` is not made when the log drops it.
    pub fn write(&self, level: LogLevel, line: impl FnOnce() -> String) {
        if let Some(sink) = self.listener(level) {
            (sink.write)(level, &line());
        }
    }

    /// Writes a line of a kind that may come by the thousand: the first at once, then at most one in ten seconds, which
    /// gives the number of lines it stands for and the last of them. Call it with no lock held.
    pub fn often(&self, kind: &'static str, level: LogLevel, line: impl FnOnce() -> String) {
        let Some(sink) = self.listener(level) else { return };
        let line = line();
        let mut kinds = sink.repeats.kinds.lock();
        if let Some(repeated) = kinds.get_mut(kind) {
            repeated.count += 1;
            repeated.last = line;
            drop(kinds);
            return self.write_repeated();
        }
        kinds.insert(kind, Repeated { level, since: Instant::now(), count: 0, last: String::new() });
        sink.repeats.any.store(true, Ordering::Release);
        drop(kinds);
        (sink.write)(level, &line);
    }

    /// Writes the lines that [`often`](Log::often) has counted for a whole period. The control thread calls it now and then,
    /// so that the last lines of a burst are written without another line.
    pub fn write_repeated(&self) {
        self.write_repeated_after(PERIOD);
    }

    /// Writes all that is counted, before the log ends.
    pub fn write_repeated_now(&self) {
        self.write_repeated_after(Duration::ZERO);
    }

    fn write_repeated_after(&self, period: Duration) {
        let Some(sink) = self.sink.as_deref() else { return };
        if !sink.repeats.any.load(Ordering::Acquire) {
            return;
        }
        let mut due = Vec::new();
        {
            let mut kinds = sink.repeats.kinds.lock();
            kinds.retain(|_, repeated| {
                if repeated.since.elapsed() < period {
                    return true;
                }
                let counted = repeated.count > 0;
                if counted {
                    due.push((repeated.level, repeated.summary()));
                    (repeated.since, repeated.count) = (Instant::now(), 0);
                }
                counted
            });
            sink.repeats.any.store(!kinds.is_empty(), Ordering::Release);
        }
        for (level, line) in due {
            (sink.write)(level, &line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening(level: LogLevel) -> (Log, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = lines.clone();
        (Log::new(level, move |_, line| written.lock().push(line.to_owned())), lines)
    }

    #[test]
    fn lines_of_one_kind_are_said_once_and_then_counted() {
        let (log, lines) = listening(LogLevel::Warn);
        for number in 0..1000 {
            log.often("drop", LogLevel::Warn, || format!("write {number} was dropped"));
            log.often("retry", LogLevel::Warn, || format!("write {number} is retried"));
            log.often("open", LogLevel::Info, || format!("opened {number}"));
        }
        assert_eq!(*lines.lock(), ["write 0 was dropped", "write 0 is retried"]);
        log.write_repeated();
        assert_eq!(lines.lock().len(), 2, "the period is not over");
        log.write_repeated_now();
        let mut counted = lines.lock().split_off(2);
        counted.sort();
        assert_eq!(counted, ["write 999 is retried (999 times in 0 s)", "write 999 was dropped (999 times in 0 s)"]);
        // The kind was quiet for a period: its next line is a first one again.
        log.write_repeated_now();
        log.often("drop", LogLevel::Warn, || "write 7 was dropped".to_owned());
        assert_eq!(lines.lock()[2..], ["write 7 was dropped"]);
    }

    #[test]
    fn a_log_of_its_own_counts_for_itself() {
        let ((one, of_one), (two, of_two)) = (listening(LogLevel::Warn), listening(LogLevel::Warn));
        one.clone().often("drop", LogLevel::Warn, || "a".to_owned());
        one.often("drop", LogLevel::Warn, || "b".to_owned());
        two.often("drop", LogLevel::Warn, || "c".to_owned());
        assert_eq!(
            (of_one.lock().as_slice(), of_two.lock().as_slice()),
            (&["a".to_owned()][..], &["c".to_owned()][..])
        );
    }
}
