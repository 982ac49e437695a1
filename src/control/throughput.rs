//! The bytes that a backend reads or writes, and the time that it takes for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::meters::Count;

/// Counters of one direction of one backend.
#[derive(Default)]
pub struct Throughput {
    objects: Count,
    bytes: Count,
    latency_us: Count,
    busy: Mutex<Busy>,
}

#[derive(Default)]
struct Busy {
    under_way: u64,
    since: Option<Instant>,
    total: Duration,
}

/// The counters at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThroughputCounts {
    /// Objects that were moved.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The sum of their latencies.
    pub latency_us: u64,
    /// How long at least one request was under way.
    pub busy_us: u64,
}

/// A request under way, until this is dropped.
pub struct UnderWay(Arc<Throughput>);

impl Throughput {
    /// Notes that a request begins. It ends when the guard is dropped.
    pub fn begin(self: &Arc<Throughput>) -> UnderWay {
        let mut busy = self.busy.lock();
        busy.under_way += 1;
        busy.since.get_or_insert_with(Instant::now);
        drop(busy);
        UnderWay(self.clone())
    }

    /// Counts an object that was read or written.
    pub fn moved(&self, bytes: u64, latency: Duration) {
        self.objects.add(1);
        self.bytes.add(bytes);
        self.latency_us.add(latency.as_micros() as u64);
    }

    /// A copy of the counters as they are now.
    pub fn get(&self) -> ThroughputCounts {
        let busy = self.busy.lock();
        let busy = busy.total + busy.since.map_or(Duration::ZERO, |since| since.elapsed());
        ThroughputCounts {
            objects: self.objects.get(),
            bytes: self.bytes.get(),
            latency_us: self.latency_us.get(),
            busy_us: busy.as_micros() as u64,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock();
        busy.under_way -= 1;
        if busy.under_way == 0
            && let Some(since) = busy.since.take()
        {
            busy.total += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_overlap_are_busy_once() {
        let meter = Arc::new(Throughput::default());
        let began = Instant::now();
        let (one, other) = (meter.begin(), meter.begin());
        std::thread::sleep(Duration::from_millis(5));
        meter.moved(4096, Duration::from_micros(7));
        drop(one);
        assert!(meter.get().busy_us >= 5000);
        drop(other);
        let reading = meter.get();
        assert_eq!((reading.objects, reading.bytes, reading.latency_us), (1, 4096, 7));
        assert!(reading.busy_us <= began.elapsed().as_micros() as u64);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(meter.get(), reading);
    }
}
