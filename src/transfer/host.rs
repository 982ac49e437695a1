//! The CPU's own memory as a device: a few threads that copy.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::copy_device::{CopyWork, Device, StreamEvent, StreamPoint};
use super::cpu_copy::{self, Fragment, Way};
use crate::error::{Error, Result};

/// Two threads fill most memory controllers, four nearly all; an engine on the same cores has use for the others.
const THREADS_MAX: usize = 4;

#[derive(Default)]
struct HostQueue {
    /// Each with the number of its start, so that none is taken off that was started later.
    works: VecDeque<(u64, Arc<dyn CopyWork>)>,
    started: u64,
    idle: usize,
    closing: bool,
}

/// The threads, and the transfers that have something for them.
pub struct HostDevice {
    queue: Mutex<HostQueue>,
    some: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    me: Weak<HostDevice>,
}

impl HostDevice {
    /// A host without threads; [`open`](Device::open) starts them.
    pub fn new() -> Arc<HostDevice> {
        Arc::new_cyclic(|me| HostDevice {
            queue: Mutex::default(),
            some: Condvar::new(),
            threads: Mutex::default(),
            me: me.clone(),
        })
    }

    fn run(&self) {
        let mut fragments: Vec<Fragment> = Vec::new();
        while let Some((number, work)) = self.front() {
            let step = AssertUnwindSafe(|| self.step(number, &work, &mut fragments));
            if catch_unwind(step).is_err() {
                self.done(number);
                work.broken();
            }
        }
    }

    fn step(&self, number: u64, work: &Arc<dyn CopyWork>, fragments: &mut Vec<Fragment>) {
        let Some(piece) = work.next(fragments) else { return self.done(number) };
        if piece.more && self.queue.lock().idle > 0 {
            self.some.notify_one();
        }
        cpu_copy::run(fragments, piece.way, piece.cold);
        work.landed(piece, Ok(()));
    }

    fn front(&self) -> Option<(u64, Arc<dyn CopyWork>)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some((number, work)) = queue.works.front() {
                return Some((*number, work.clone()));
            }
            if queue.closing {
                return None;
            }
            queue.idle += 1;
            self.some.wait(&mut queue);
            queue.idle -= 1;
        }
    }

    /// The transfer that was started with this number has nothing left to do.
    fn done(&self, number: u64) {
        let works = &mut self.queue.lock().works;
        if let Ok(at) = works.binary_search_by_key(&number, |(other, _)| *other) {
            works.remove(at);
        }
    }
}

impl Device for HostDevice {
    fn open(&self) -> Result<()> {
        let mut threads = self.threads.lock();
        if !threads.is_empty() {
            return Ok(());
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores.min(THREADS_MAX) {
            let Some(me) = self.me.upgrade() else { break };
            let thread = std::thread::Builder::new().name("kvkeep-copy".to_owned()).spawn(move || me.run());
            match thread {
                Ok(thread) => threads.push(thread),
                // One is enough.
                Err(_) if !threads.is_empty() => break,
                Err(error) => return Err(Error::io("starting a thread that copies", &error)),
            }
        }
        Ok(())
    }

    fn point(&self, stream: u64, _way: Way) -> Result<StreamPoint> {
        if stream != 0 {
            return Err(Error::invalid(format!(
                "stream is {stream:#x}, but the pool is of the host, which has no streams: pass 0, once the pages are written"
            )));
        }
        Ok(StreamPoint::default())
    }

    fn follow(&self, stream: u64, _event: Option<&dyn StreamEvent>) -> Result<bool> {
        self.point(stream, Way::Gather).map(|_| false)
    }

    fn start(&self, work: Arc<dyn CopyWork>, _after: StreamPoint) {
        let mut queue = self.queue.lock();
        if queue.closing {
            // It has ended, since closing waits for all, and no thread would take it off again.
            return;
        }
        queue.started += 1;
        let number = queue.started;
        queue.works.push_back((number, work));
        drop(queue);
        self.some.notify_one();
    }

    fn close(&self) {
        self.queue.lock().closing = true;
        self.some.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::copy_device::CopyPiece;

    struct Nothing;

    impl CopyWork for Nothing {
        fn way(&self) -> Way {
            Way::Gather
        }

        fn next(&self, _fragments: &mut Vec<Fragment>) -> Option<CopyPiece> {
            None
        }

        fn queued(&self, _piece: &CopyPiece, _event: Arc<dyn StreamEvent>) {}

        fn landed(&self, _piece: CopyPiece, _result: Result<()>) {}

        fn broken(&self) {}
    }

    #[test]
    fn a_transfer_that_a_closed_host_is_to_start_is_not_kept() {
        let (host, before, after) = (HostDevice::new(), Arc::new(Nothing), Arc::new(Nothing));
        host.open().unwrap();
        host.start(before.clone(), StreamPoint::default());
        host.close();
        host.start(after.clone(), StreamPoint::default());
        assert_eq!((Arc::strong_count(&before), Arc::strong_count(&after)), (1, 1));
    }
}
