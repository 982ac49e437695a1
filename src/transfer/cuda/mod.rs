//! NVIDIA's GPUs as devices, through the driver that the machine has, if it has one.
//!
//! Nothing of CUDA is needed to build or to load. [`driver`] is libcuda.so.1, opened with the first pool of a GPU; [`gpu`] one
//! device in this process; [`registration`] makes L1 reachable for it; [`mover`] puts the copies of a piece on a stream; [`streams`] has one
//! stream and direction of a pool, with a thread that feeds it and one that notices what has landed; [`measure`] finds out which
//! fragments a kernel moves faster than the copy engines.
//!
//! `unsafe` lives in `driver` and in calls of its functions: handles are opaque numbers, and addresses are those of a pool's
//! promise, of L1, or of memory that the driver gave.
#![allow(unsafe_code)]

mod driver;
mod gpu;
mod measure;
mod mover;
mod registration;
mod streams;

use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use self::gpu::Gpu;
use self::registration::{Pinned, Pins};
use self::streams::Lane;
use super::copy::Way;
use super::device::{Device, Event, Point, Work};
use super::layout::Segment;
use crate::arena::Arena;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, Result};
use crate::log::Log;

/// The GPUs in use by one cache, and what of its memory they reach.
pub struct Gpus {
    open: Mutex<HashMap<i32, Weak<Gpu>>>,
    pins: Arc<Pins>,
    log: Log,
}

impl Gpus {
    /// None yet. `refused` hears of each mapping of L1 that a driver does not register.
    pub fn new(log: Log, refused: impl Fn(bool) + Send + Sync + 'static) -> Gpus {
        Gpus { open: Mutex::default(), pins: Pins::new(refused), log }
    }

    fn gpu(&self, ordinal: i32) -> Result<Arc<Gpu>> {
        // Held while it is opened, so that one device is opened and measured once.
        let mut open = self.open.lock();
        if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
            return gpu.lost().map_or(Ok(gpu), Err);
        }
        let gpu = Gpu::open(ordinal, &self.log)?;
        open.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }
}

/// L1 as one pool's device reaches it.
struct Reach {
    gpus: Arc<Gpus>,
    gpu: Arc<Gpu>,
    pinned: Mutex<Option<Arc<Pinned>>>,
}

impl Reach {
    /// A mapping of L1's, which from now on is the pool's. A client of a daemon that came back has another than before.
    fn of(&self, arena: &Arc<Arena>) -> Arc<Pinned> {
        let mut pinned = self.pinned.lock();
        match &*pinned {
            Some(pinned) if pinned.is_of(arena) => pinned.clone(),
            _ => pinned.insert(self.gpus.pins.pin(&self.gpu, arena)).clone(),
        }
    }
}

/// What a pool of a GPU has while it is open.
struct Parts {
    reach: Arc<Reach>,
    /// By way; made when something goes that way.
    lanes: [OnceCell<Lane>; 2],
}

/// The device of one pool: lanes of its own, so that no pool waits for another's stream.
pub struct Cuda {
    parts: Mutex<Option<Arc<Parts>>>,
}

impl Cuda {
    /// Opens a GPU for a pool whose pages are `segments` of `blocks` blocks, and begins to make L1 reachable for it.
    pub fn open(
        gpus: &Arc<Gpus>,
        ordinal: i32,
        segments: &[Segment],
        blocks: u32,
        l1: Option<Arc<Arena>>,
    ) -> Result<Cuda> {
        let gpu = gpus.gpu(ordinal)?;
        gpu.check_pages(segments, blocks)?;
        let pinned = Mutex::new(l1.map(|arena| gpus.pins.pin(&gpu, &arena)));
        let reach = Arc::new(Reach { gpus: gpus.clone(), gpu, pinned });
        Ok(Cuda { parts: Mutex::new(Some(Arc::new(Parts { reach, lanes: Default::default() }))) })
    }

    fn parts(&self) -> Result<Arc<Parts>> {
        let closed = || Error::new(KVKEEP_ERR_NOT_FOUND, "the pool was closed: open it again");
        self.parts.lock().clone().ok_or_else(closed)
    }
}

impl Device for Cuda {
    fn open(&self) -> Result<()> {
        Ok(())
    }

    fn point(&self, stream: u64, way: Way) -> Result<Point> {
        let parts = self.parts()?;
        let mark = parts.reach.gpu.mark_stream(stream)?;
        parts.lanes[way as usize].get_or_try_init(|| Lane::open(parts.reach.clone(), way))?;
        Ok(Point(Some(mark)))
    }

    fn follow(&self, stream: u64, event: Option<&dyn Event>) -> Result<bool> {
        let parts = self.parts()?;
        parts.reach.gpu.follow(stream, event).map(|()| true)
    }

    fn start(&self, work: Arc<dyn Work>, after: Point) {
        // Who tells a closed pool of work has been completed already: closing waits for all.
        let Ok(parts) = self.parts() else { return };
        if let Some(lane) = parts.lanes[work.way() as usize].get() {
            lane.push(work, after);
        }
    }

    fn close(&self) {
        let parts = self.parts.lock().take();
        if let Some(parts) = parts {
            parts.lanes.iter().filter_map(OnceCell::get).for_each(Lane::close);
            parts.reach.pinned.lock().take();
        }
    }
}
