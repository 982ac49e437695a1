//! The device of one pool whose pages are on a GPU.

use std::sync::Arc;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::gpus::Gpus;
use super::reach::Reach;
use super::streams::CopyStream;
use crate::arena::Arena;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, Result};
use crate::transfer::copy_device::{CopyWork, Device, StreamEvent, StreamPoint};
use crate::transfer::cpu_copy::Way;
use crate::transfer::layout::Segment;

/// The state of a pool between `open` and `close`.
struct OpenPool {
    reach: Arc<Reach>,
    /// By way; made when the first transfer goes that way.
    streams: [OnceCell<CopyStream>; 2],
}

/// The device of one pool. It has streams of its own, so that no pool waits for another's.
pub struct CudaDevice {
    open: Mutex<Option<Arc<OpenPool>>>,
}

impl CudaDevice {
    /// Opens a GPU for a pool whose pages are `segments` of `blocks` blocks, and begins to make L1 reachable for it.
    pub fn open(
        gpus: &Arc<Gpus>,
        ordinal: i32,
        segments: &[Segment],
        blocks: u32,
        l1: Option<Arc<Arena>>,
    ) -> Result<CudaDevice> {
        let gpu = gpus.gpu(ordinal)?;
        gpu.check_pages(segments, blocks)?;
        let reach = Arc::new(Reach::new(gpus.registrations.clone(), gpu, l1));
        Ok(CudaDevice { open: Mutex::new(Some(Arc::new(OpenPool { reach, streams: Default::default() }))) })
    }

    fn opened(&self) -> Result<Arc<OpenPool>> {
        let closed = || Error::new(KVKEEP_ERR_NOT_FOUND, "the pool was closed: open it again");
        self.open.lock().clone().ok_or_else(closed)
    }
}

impl Device for CudaDevice {
    fn open(&self) -> Result<()> {
        Ok(())
    }

    fn point(&self, stream: u64, way: Way) -> Result<StreamPoint> {
        let open = self.opened()?;
        let mark = open.reach.gpu.mark_stream(stream)?;
        open.streams[way as usize].get_or_try_init(|| CopyStream::open(open.reach.clone(), way))?;
        Ok(StreamPoint(Some(mark)))
    }

    fn follow(&self, stream: u64, event: Option<&dyn StreamEvent>) -> Result<bool> {
        let open = self.opened()?;
        open.reach.gpu.follow(stream, event).map(|()| true)
    }

    fn start(&self, work: Arc<dyn CopyWork>, after: StreamPoint) {
        // A transfer of a closed pool has been completed already: closing waits for all.
        let Ok(open) = self.opened() else { return };
        if let Some(stream) = open.streams[work.way() as usize].get() {
            stream.push(work, after);
        }
    }

    fn close(&self) {
        let open = self.open.lock().take();
        if let Some(open) = open {
            open.streams.iter().filter_map(OnceCell::get).for_each(CopyStream::close);
            open.reach.forget();
        }
    }
}
