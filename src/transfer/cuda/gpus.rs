//! The GPUs that one cache uses.

use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::gpu::Gpu;
use super::kernel;
use super::registration::Registrations;
use crate::error::Result;
use crate::log::Log;

/// The GPUs in use by one cache, and the registrations of its memory for them.
pub struct Gpus {
    open: Mutex<HashMap<i32, Weak<Gpu>>>,
    pub registrations: Arc<Registrations>,
    log: Log,
}

impl Gpus {
    /// None yet. `refused` is called for each mapping of L1 that a driver does not register.
    pub fn new(log: Log, refused: impl Fn(bool) + Send + Sync + 'static) -> Gpus {
        Gpus { open: Mutex::default(), registrations: Registrations::new(refused), log }
    }

    /// A device by its ordinal: opened, and measured, once for all pools.
    pub fn gpu(&self, ordinal: i32) -> Result<Arc<Gpu>> {
        // Held while it is opened, so that one device is opened and measured once.
        let mut open = self.open.lock();
        if let Some(gpu) = open.get(&ordinal).and_then(Weak::upgrade) {
            return gpu.lost().map_or(Ok(gpu), Err);
        }
        let gpu = Gpu::open(ordinal, &self.log)?;
        kernel::load(&gpu)?;
        open.insert(ordinal, Arc::downgrade(&gpu));
        Ok(gpu)
    }
}
