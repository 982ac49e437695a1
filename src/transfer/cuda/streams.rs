//! One direction of one pool: a stream, a thread that puts pieces on it, and one that notices landed pieces.
//!
//! They are two so that pieces are queued, and a caller's stream can wait for them, while those before them still wait for the engine's
//! own work.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::driver::Handle;
use super::gpu::{Gpu, Mark};
use super::mover::Mover;
use super::reach::Reach;
use super::registration::RegisteredArena;
use crate::error::{Error, Result};
use crate::transfer::copy_device::{CopyPiece, CopyWork, StreamPoint};
use crate::transfer::cpu_copy::{Fragment, Way};

/// Pieces in flight: enough for the bus to have more to do while one is noticed.
const DEPTH: usize = 16;
const NON_BLOCKING: u32 = 1;

/// A piece on its way.
struct PieceInFlight {
    work: Arc<dyn CopyWork>,
    piece: CopyPiece,
    /// Behind its copies; none where it could not be set.
    mark: Option<Arc<Mark>>,
    /// Whether all of it was put on the stream.
    put: Result<()>,
    /// Its side of L1 stays registered.
    _pinned: Arc<RegisteredArena>,
}

#[derive(Default)]
struct StreamQueue {
    works: VecDeque<(Arc<dyn CopyWork>, StreamPoint)>,
    in_flight: VecDeque<PieceInFlight>,
    closing: bool,
    /// No more pieces will be put on the stream.
    fed: bool,
}

struct StreamState {
    reach: Arc<Reach>,
    gpu: Arc<Gpu>,
    way: Way,
    stream: Handle,
    queue: Mutex<StreamQueue>,
    changed: Condvar,
}

/// A direction of a pool.
pub struct CopyStream {
    inner: Arc<StreamState>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
}

impl CopyStream {
    /// Makes the stream and starts the threads.
    pub fn open(reach: Arc<Reach>, way: Way) -> Result<CopyStream> {
        let (gpu, mut stream) = (reach.gpu.clone(), 0);
        {
            let _inside = gpu.enter()?;
            // SAFETY: destroyed by `close`. It is not to wait for the default stream, whose work is the engine's.
            let code = unsafe { (gpu.driver.stream_create)(&raw mut stream, NON_BLOCKING) };
            gpu.check(code, "creating a stream")?;
        }
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let inner = Arc::new(StreamState { reach, gpu, way, stream, queue, changed });
        let stream = CopyStream { inner, threads: Mutex::default(), closed: AtomicBool::new(false) };
        stream.spawn("kvkeep-cuda", StreamState::feed)?;
        stream.spawn("kvkeep-landed", StreamState::land)?;
        Ok(stream)
    }

    fn spawn(&self, name: &str, run: impl FnOnce(&StreamState) + Send + 'static) -> Result<()> {
        let inner = self.inner.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&inner));
        let thread = thread.map_err(|error| Error::io("starting a thread that copies", &error))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// There is work behind a point of a caller's stream.
    pub fn push(&self, work: Arc<dyn CopyWork>, after: StreamPoint) {
        self.inner.queue.lock().works.push_back((work, after));
        self.inner.changed.notify_all();
    }

    /// Ends the threads. Nothing is in flight any more.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.queue.lock().closing = true;
        self.inner.changed.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
        let Ok(_inside) = self.inner.gpu.enter() else { return };
        // SAFETY: made in `open`, used by no thread any more.
        unsafe { (self.inner.gpu.driver.stream_destroy)(self.inner.stream) };
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        self.close();
    }
}

impl StreamState {
    fn feed(&self) {
        let inside = self.gpu.enter();
        let mut mover = Mover::new(self.gpu.clone(), self.way, self.stream, DEPTH);
        let (mut fragments, mut number) = (Vec::new(), 0);
        while let Some((work, after)) = self.next_work() {
            let step = AssertUnwindSafe(|| self.feed_work(&mut mover, &work, &after, &mut fragments, &mut number));
            if catch_unwind(step).is_err() {
                work.broken();
            }
        }
        let mut queue = self.queue.lock();
        queue.fed = true;
        self.changed.notify_all();
        // The lists of kernels in flight are the mover's.
        while !queue.in_flight.is_empty() {
            self.changed.wait(&mut queue);
        }
        drop(queue);
        drop(mover);
        drop(inside);
    }

    fn next_work(&self) -> Option<(Arc<dyn CopyWork>, StreamPoint)> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(work) = queue.works.pop_front() {
                return Some(work);
            }
            if queue.closing {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    fn feed_work(
        &self,
        mover: &mut Mover,
        work: &Arc<dyn CopyWork>,
        after: &StreamPoint,
        fragments: &mut Vec<Fragment>,
        number: &mut usize,
    ) {
        let mut stood: Option<Result<()>> = None;
        while let Some(piece) = work.next(fragments) {
            drop(self.wait_for_place());
            let pinned = self.reach.of(&piece.arena);
            *number += 1;
            let behind = || after.0.as_ref().map_or(Ok(()), |event| self.gpu.wait_behind(self.stream, &**event));
            let stood = stood.get_or_insert_with(behind).clone();
            let put = self.gpu.lost().map_or(stood, Err).and_then(|()| {
                let stretches = fragments.iter().flat_map(|fragment| pinned.cut(fragment));
                mover.put(stretches, self.gpu.kernel_bytes_max(self.way), *number % DEPTH)
            });
            // Behind what was put on the stream before an error, too.
            let mark = self.gpu.record(self.stream).ok();
            if let (Ok(()), Some(mark)) = (&put, &mark) {
                work.queued(&piece, mark.clone());
            }
            self.queue.lock().in_flight.push_back(PieceInFlight {
                work: work.clone(),
                piece,
                mark,
                put,
                _pinned: pinned,
            });
            self.changed.notify_all();
        }
    }

    /// Waits until another piece may be in flight.
    fn wait_for_place(&self) -> MutexGuard<'_, StreamQueue> {
        let mut queue = self.queue.lock();
        while queue.in_flight.len() >= DEPTH {
            self.changed.wait(&mut queue);
        }
        queue
    }

    fn land(&self) {
        let _inside = self.gpu.enter();
        while let Some(mark) = self.next_mark() {
            let landed = self.wait(mark.as_deref());
            let Some(landing) = self.queue.lock().in_flight.pop_front() else { return };
            self.changed.notify_all();
            let PieceInFlight { work, piece, put, .. } = landing;
            if catch_unwind(AssertUnwindSafe(|| work.landed(piece, put.and(landed)))).is_err() {
                work.broken();
            }
        }
    }

    /// The mark of the piece that lands next; it stays in flight until it has.
    fn next_mark(&self) -> Option<Option<Arc<Mark>>> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(landing) = queue.in_flight.front() {
                return Some(landing.mark.clone());
            }
            if queue.fed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// Blocks until the device touches nothing of a piece any more.
    fn wait(&self, mark: Option<&Mark>) -> Result<()> {
        if mark.is_some_and(|mark| self.gpu.wait_for(mark).is_ok()) {
            return Ok(());
        }
        // Where the piece cannot be waited for, all of the stream is. Where that fails too, the driver has given the device up.
        self.gpu.wait_for_stream(self.stream).inspect_err(|error| self.gpu.lose(error.clone()))
    }
}
