//! Puts the copies of a piece on a stream: small fragments as a list for the kernel, the others to the copy engines, all at once
//! where the driver takes batches.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::sys;

use super::driver::{Handle, is_fatal};
use super::gpu::Gpu;
use super::registration::Stretch;
use crate::error::Result;
use crate::transfer::cpu_copy::Way;

/// A line of the kernel's list.
#[repr(C)]
#[derive(Clone, Copy)]
struct KernelLine {
    from: u64,
    to: u64,
    bytes: u64,
}

/// Lines of a list: more than a piece has fragments.
const LINES: usize = 4096 + 64;
/// A few blocks of threads fill the bus, and leave the rest of the device to the engine.
const BLOCKS_MAX: usize = 16;
const BLOCK_THREADS: usize = 512;
const WARP: usize = 32;

/// Lists of the kernel's, in memory that it reads while it runs.
struct Lists {
    gpu: Arc<Gpu>,
    at: *mut KernelLine,
    count: usize,
}

// SAFETY: plain memory of which this is the only owner.
unsafe impl Send for Lists {}

impl Lists {
    fn new(gpu: &Arc<Gpu>, count: usize) -> Result<Lists> {
        let at = gpu.host_alloc(count * LINES * size_of::<KernelLine>())?;
        Ok(Lists { gpu: gpu.clone(), at: at.cast(), count })
    }

    fn set(&mut self, list: usize, line: usize, value: KernelLine) {
        assert!(list < self.count && line < LINES, "line {line} of list {list}");
        // SAFETY: inside the allocation; no kernel reads the list, since its last piece has landed.
        unsafe { self.at.add(list * LINES + line).write(value) };
    }

    fn address(&self, list: usize) -> u64 {
        self.at.wrapping_add(list * LINES) as u64
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        let _inside = self.gpu.enter();
        // SAFETY: allocated in `new`, freed once, after all that used it has landed.
        unsafe { (self.gpu.driver.host_free)(self.at.cast()) };
    }
}

/// Copies one way on one stream, from one thread.
pub struct Mover {
    gpu: Arc<Gpu>,
    way: Way,
    stream: Handle,
    lists: Option<Lists>,
    to: Vec<u64>,
    from: Vec<u64>,
    bytes: Vec<usize>,
}

impl Mover {
    /// Copies on `stream`, with at most `depth` pieces in flight. The context is entered.
    pub fn new(gpu: Arc<Gpu>, way: Way, stream: Handle, depth: usize) -> Mover {
        // Without memory for the lists there is no kernel.
        let lists = gpu.kernel().and_then(|_| Lists::new(&gpu, depth).ok());
        Mover { gpu, way, stream, lists, to: Vec::new(), from: Vec::new(), bytes: Vec::new() }
    }

    /// Puts copies on the stream, those of at most `kernel_bytes_max` bytes through the kernel where that is to be had. `list` is one
    /// that no piece in flight uses. The context is entered. After an error, some of the copies may be under way.
    pub fn put(&mut self, stretches: impl Iterator<Item = Stretch>, kernel_bytes_max: u64, list: usize) -> Result<()> {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
        let mut lines = 0;
        for stretch in stretches {
            let (from, to) = self.ends(&stretch);
            if stretch.reached
                && stretch.bytes <= kernel_bytes_max
                && lines < LINES
                && let Some(lists) = &mut self.lists
            {
                lists.set(list, lines, KernelLine { from, to, bytes: stretch.bytes });
                lines += 1;
            } else if stretch.reached && self.gpu.batches.load(Ordering::Relaxed) {
                self.to.push(to);
                self.from.push(from);
                self.bytes.push(stretch.bytes as usize);
            } else {
                self.copy(from, to, stretch.bytes)?;
            }
        }
        self.copy_batch()?;
        self.launch(list, lines)
    }

    fn ends(&self, stretch: &Stretch) -> (u64, u64) {
        match self.way {
            Way::Gather => (stretch.page, stretch.l1),
            Way::Scatter => (stretch.l1, stretch.page),
        }
    }

    fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let driver = self.gpu.driver;
        // SAFETY: one side is in L1 and held by the transfer until this has landed, the other one was promised with the pool.
        let code = unsafe {
            match self.way {
                Way::Gather => {
                    let to = ptr::with_exposed_provenance_mut::<c_void>(to as usize);
                    (driver.copy_to_host)(to, from, bytes as usize, self.stream)
                }
                Way::Scatter => {
                    let from = ptr::with_exposed_provenance::<c_void>(from as usize);
                    (driver.copy_to_device)(to, from, bytes as usize, self.stream)
                }
            }
        };
        self.gpu.check(code, "copying")
    }

    fn copy_batch(&mut self) -> Result<()> {
        let batch = self.gpu.driver.copy_batch.filter(|_| self.bytes.len() > 1);
        if let Some(batch) = batch {
            let none = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
            let mut attributes = sys::CUmemcpyAttributes {
                srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
                srcLocHint: none,
                dstLocHint: none,
                flags: sys::CUmemcpyFlags::CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE as c_uint,
            };
            let (mut index, mut failed) = (0, 0);
            // SAFETY: three arrays of the same length, read during the call; the sides of each copy are as for `copy`.
            let code = unsafe {
                batch(
                    self.to.as_mut_ptr(),
                    self.from.as_mut_ptr(),
                    self.bytes.as_mut_ptr(),
                    self.bytes.len(),
                    &raw mut attributes,
                    &raw mut index,
                    1,
                    &raw mut failed,
                    self.stream,
                )
            };
            if code == 0 || is_fatal(code) {
                return self.gpu.check(code, "copying a batch");
            }
            // Where it is the copies that are wrong, they are so one by one too; else the driver has the function and not its use.
            self.gpu.batches.store(false, Ordering::Relaxed);
        }
        for ((&from, &to), &bytes) in self.from.iter().zip(&self.to).zip(&self.bytes) {
            self.copy(from, to, bytes as u64)?;
        }
        Ok(())
    }

    fn launch(&self, list: usize, lines: usize) -> Result<()> {
        let (Some(lists), Some(kernel)) = (&self.lists, self.gpu.kernel()) else { return Ok(()) };
        if lines == 0 {
            return Ok(());
        }
        let blocks = lines.div_ceil(BLOCK_THREADS / WARP).min(BLOCKS_MAX) as c_uint;
        let (mut address, mut count) = (lists.address(list), lines as c_uint);
        let mut parameters: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut count).cast()];
        // SAFETY: the parameters are the kernel's, copied during the call; the list stays as it is until the piece has landed, and
        // the sides of each line are as for `copy`, reached by the device.
        let code = unsafe {
            let (one, threads) = (1, BLOCK_THREADS as c_uint);
            (self.gpu.driver.launch)(
                kernel,
                blocks,
                one,
                one,
                threads,
                one,
                one,
                0,
                self.stream,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.gpu.check(code, "launching the kernel")
    }
}
