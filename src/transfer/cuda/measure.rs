//! Which fragments the kernel moves faster than the copy engines: measured once for each device of a process, since it differs
//! with the bus, the driver and their other users.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::driver::Handle;
use super::gpu::Gpu;
use super::mover::Mover;
use super::registration::Stretch;
use crate::error::Result;
use crate::transfer::cpu_copy::Way;

/// Bytes moved in each round.
const BYTES: u64 = 4 << 20;
const ROUNDS: usize = 3;
/// Fragments that are tried, smallest first.
const SIZES: [u64; 6] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10];
/// Largest fragments for the kernel where there is no memory to measure with.
const UNMEASURED: u64 = 16 << 10;
const NON_BLOCKING: u32 = 1;

/// The results of this process, by device.
static MEASURED: Mutex<Vec<(i32, [u64; 2])>> = Mutex::new(Vec::new());

/// Memory on both sides and a stream between them.
struct MeasureScratch<'a> {
    gpu: &'a Arc<Gpu>,
    page: u64,
    host: u64,
    stream: Handle,
}

impl<'a> MeasureScratch<'a> {
    /// None where there is not enough memory.
    fn new(gpu: &'a Arc<Gpu>) -> Option<MeasureScratch<'a>> {
        let mut scratch = MeasureScratch { gpu, page: 0, host: 0, stream: 0 };
        scratch.host = gpu.host_alloc(BYTES as usize).ok()? as u64;
        // SAFETY: both are given back when this is dropped.
        let codes = unsafe {
            (
                (gpu.driver.device_alloc)(&raw mut scratch.page, BYTES as usize),
                (gpu.driver.stream_create)(&raw mut scratch.stream, NON_BLOCKING),
            )
        };
        (codes == (0, 0)).then_some(scratch)
    }

    /// The best time for all of it in fragments of `bytes`, those up to `kernel_bytes_max` through the kernel.
    fn time(&self, mover: &mut Mover, bytes: u64, kernel_bytes_max: u64) -> Result<Duration> {
        let count = BYTES / bytes;
        let mut best = Duration::MAX;
        // The first round only warms up.
        for round in 0..=ROUNDS {
            let began = Instant::now();
            let stretches = (0..count).map(|i| {
                // Not neighbours on both sides, as fragments never are.
                let page = self.page + i * 7 % count * bytes;
                Stretch { l1: self.host + i * bytes, page, bytes, reached: true }
            });
            mover.put(stretches, kernel_bytes_max, 0)?;
            self.gpu.wait_for(&*self.gpu.record(self.stream)?)?;
            if round > 0 {
                best = best.min(began.elapsed());
            }
        }
        Ok(best)
    }

    fn crossover(&self, way: Way) -> Result<u64> {
        let mut mover = Mover::new(self.gpu.clone(), way, self.stream, 1);
        let found = self.try_sizes(&mut mover);
        if found.is_err() {
            // The list of a kernel that is still under way is the mover's.
            let _ = self.gpu.wait_for_stream(self.stream);
        }
        found
    }

    fn try_sizes(&self, mover: &mut Mover) -> Result<u64> {
        let mut kernel_bytes_max = 0;
        for bytes in SIZES {
            let kernel = self.time(mover, bytes, bytes)?;
            if kernel >= self.time(mover, bytes, 0)? {
                break;
            }
            kernel_bytes_max = bytes;
        }
        Ok(kernel_bytes_max)
    }
}

impl Drop for MeasureScratch<'_> {
    fn drop(&mut self) {
        // Nothing may be under way when memory is given back, after an error either.
        let _ = self.gpu.wait_for_stream(self.stream);
        let host = std::ptr::with_exposed_provenance_mut(self.host as usize);
        // SAFETY: allocated in `new`; what was not is not given back.
        unsafe {
            if self.stream != 0 {
                (self.gpu.driver.stream_destroy)(self.stream);
            }
            if self.page != 0 {
                (self.gpu.driver.device_free)(self.page);
            }
            (self.gpu.driver.host_free)(host);
        }
    }
}

/// Sets up to which size the kernel is used. The context is entered.
pub fn crossover(gpu: &Arc<Gpu>) -> Result<()> {
    let mut measured = MEASURED.lock();
    let known = measured.iter().find(|(ordinal, _)| *ordinal == gpu.ordinal).map(|(_, bytes)| *bytes);
    let scratch = if known.is_none() { MeasureScratch::new(gpu) } else { None };
    let bytes = match (known, scratch) {
        (Some(known), _) => known,
        (None, Some(scratch)) => {
            let found = [scratch.crossover(Way::Gather)?, scratch.crossover(Way::Scatter)?];
            measured.push((gpu.ordinal, found));
            found
        }
        (None, None) => gpu.lost().map_or(Ok([UNMEASURED; 2]), Err)?,
    };
    for (place, bytes) in gpu.kernel_bytes_max.iter().zip(bytes) {
        place.store(bytes, Ordering::Relaxed);
    }
    Ok(())
}
