//! One device, as this process uses it: its primary context, its events, its kernel.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::driver::{Driver, Handle, is_fatal, remedy};
use crate::error::{Error, KVKEEP_ERR_DEVICE, KVKEEP_ERR_INVALID, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::log::Log;
use crate::transfer::copy_device::StreamEvent;
use crate::transfer::cpu_copy::Way;
use crate::transfer::layout::Segment;

/// Numbers of the driver's attributes and flags.
const UNIFIED_ADDRESSING: c_int = 41;
pub const READ_ONLY_REGISTRATION: c_int = 113;
const MEMORY_TYPE: c_int = 2;
const DEVICE_ORDINAL: c_int = 9;
const MEMORY_TYPE_DEVICE: u32 = 2;
const RELAXED_CAPTURE: c_int = 2;
const EVENT_BLOCKING: u32 = 1;
const EVENT_NO_TIMING: u32 = 2;

/// The kernel and the module that has it.
pub struct Kernel {
    pub module: Handle,
    pub function: Handle,
}

/// An open device of this process.
pub struct Gpu {
    /// The driver of the machine.
    pub driver: &'static Driver,
    /// The number that the driver gives it.
    pub ordinal: i32,
    device: c_int,
    context: Handle,
    name: String,
    lost: OnceLock<Error>,
    /// Events that are free to be used again.
    events: Mutex<Vec<Handle>>,
    /// Set once, by [`kernel::load`](super::kernel::load).
    pub kernel: OnceLock<Kernel>,
    /// Whether copies go in batches.
    pub batches: AtomicBool,
    /// Fragments of at most so many bytes are moved by the kernel, by way.
    pub kernel_bytes_max: [AtomicU64; 2],
    /// Gets a line about everything that is slower than it could be.
    pub log: Log,
}

/// The device's context is the thread's while this lives, and what it calls disturbs no capture of another thread's.
pub struct Inside<'a> {
    gpu: &'a Gpu,
    capture_mode: c_int,
    /// Contexts are a thread's.
    here: PhantomData<*const ()>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut context = 0;
        // SAFETY: undoes what `enter` did, on the same thread.
        unsafe {
            (self.gpu.driver.capture_mode)(&raw mut self.capture_mode);
            (self.gpu.driver.context_pop)(&raw mut context);
        }
    }
}

/// A place in the order of a stream. Its event is used again when the mark is dropped.
pub struct Mark {
    gpu: Arc<Gpu>,
    event: Handle,
}

impl StreamEvent for Mark {
    fn handle(&self) -> u64 {
        self.event as u64
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.gpu.events.lock().push(self.event);
    }
}

impl Gpu {
    /// Retains the primary context of a device. It has no kernel yet.
    pub fn open(ordinal: i32, log: &Log) -> Result<Arc<Gpu>> {
        let driver = Driver::open()?;
        let (mut device, mut count, mut text) = (0, 0, [0; 256]);
        // SAFETY: plain calls of the driver, with places for what they give.
        let (counted, got) =
            unsafe { ((driver.device_count)(&raw mut count), (driver.device_get)(&raw mut device, ordinal)) };
        if counted == 0 && ordinal >= count {
            return Err(Error::invalid(format!(
                "device is {ordinal}, but the driver sees {count} CUDA devices: pass 0 to {} (CUDA_VISIBLE_DEVICES renumbers them)",
                count - 1
            )));
        }
        let mut gpu = Gpu {
            driver,
            ordinal,
            device,
            context: 0,
            name: String::new(),
            lost: OnceLock::new(),
            events: Mutex::default(),
            kernel: OnceLock::new(),
            batches: AtomicBool::new(driver.copy_batch.is_some()),
            kernel_bytes_max: Default::default(),
            log: log.clone(),
        };
        gpu.check(counted, "counting devices")?;
        gpu.check(got, "finding it")?;
        // SAFETY: the text has room for as many bytes as are said.
        let code = unsafe { (driver.device_name)(text.as_mut_ptr(), text.len() as c_int, device) };
        let name: Vec<u8> = text.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
        gpu.check(code, "asking its name")?;
        gpu.name = String::from_utf8_lossy(&name).into_owned();
        if gpu.attribute(UNIFIED_ADDRESSING)? == 0 {
            return Err(Error::new(
                KVKEEP_ERR_UNSUPPORTED,
                format!("CUDA device {ordinal} ({}) has no unified addresses: use another device", gpu.name),
            ));
        }
        // SAFETY: released when this is dropped.
        let code = unsafe { (driver.context_retain)(&raw mut gpu.context, device) };
        gpu.check(code, "retaining its primary context")?;
        Ok(Arc::new(gpu))
    }

    /// The kernel, if the device has it.
    pub fn kernel(&self) -> Option<Handle> {
        self.kernel.get().map(|kernel| kernel.function)
    }

    /// The largest fragments that the kernel moves.
    pub fn kernel_bytes_max(&self, way: Way) -> u64 {
        self.kernel_bytes_max[way as usize].load(Ordering::Relaxed)
    }

    pub fn attribute(&self, attribute: c_int) -> Result<c_int> {
        let mut value = 0;
        // SAFETY: a plain call of the driver, with a place for what it gives.
        let code = unsafe { (self.driver.device_attribute)(&raw mut value, attribute, self.device) };
        self.check(code, "asking an attribute").map(|()| value)
    }

    /// Makes the device's context the thread's, until what is given is dropped.
    pub fn enter(&self) -> Result<Inside<'_>> {
        let mut capture_mode = RELAXED_CAPTURE;
        // SAFETY: the context is retained while this lives; both are undone by the guard.
        let code = unsafe { (self.driver.context_push)(self.context) };
        self.check(code, "entering its context")?;
        // SAFETY: as above.
        unsafe { (self.driver.capture_mode)(&raw mut capture_mode) };
        Ok(Inside { gpu: self, capture_mode, here: PhantomData })
    }

    /// Turns a result of the driver's into an error with the failed action and its remedy.
    pub fn check(&self, code: c_int, doing: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let error = Error::new(
            KVKEEP_ERR_DEVICE,
            format!(
                "{doing} failed on CUDA device {} ({}) with {}: {}",
                self.ordinal,
                self.name,
                self.driver.name_of(code),
                remedy(code)
            ),
        );
        if is_fatal(code) {
            self.lose(error.clone());
        }
        Err(error)
    }

    /// The device does not work any more.
    pub fn lose(&self, error: Error) {
        let _ = self.lost.set(error);
    }

    /// Why the device does not work any more.
    pub fn lost(&self) -> Option<Error> {
        self.lost.get().cloned()
    }

    /// Refuses pages that are not memory of this device.
    pub fn check_pages(&self, segments: &[Segment], blocks: u32) -> Result<()> {
        let _inside = self.enter()?;
        for (index, segment) in segments.iter().enumerate() {
            for address in [segment.address, segment.block(blocks - 1) + segment.block_bytes - 1] {
                let (mut kind, mut ordinal) = (0_u32, -1);
                // SAFETY: both places are as large as the attributes; the driver only looks the address up.
                let codes = unsafe {
                    (
                        (self.driver.pointer_attribute)((&raw mut kind).cast(), MEMORY_TYPE, address),
                        (self.driver.pointer_attribute)((&raw mut ordinal).cast(), DEVICE_ORDINAL, address),
                    )
                };
                if codes != (0, 0) || kind != MEMORY_TYPE_DEVICE || ordinal != self.ordinal {
                    return Err(Error::new(
                        KVKEEP_ERR_INVALID,
                        format!(
                            "segments[{index}] (layer {}, group {}) has a byte at {address:#x} that is not memory of CUDA device {}: \
                             pass the address and size of a tensor on that device",
                            segment.layer, segment.group, self.ordinal
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// An event to be recorded. The context is entered.
    pub fn event(self: &Arc<Self>) -> Result<Mark> {
        let known = self.events.lock().pop();
        let event = match known {
            Some(event) => event,
            None => {
                let mut event = 0;
                // SAFETY: destroyed when the device is dropped.
                let code = unsafe { (self.driver.event_create)(&raw mut event, EVENT_BLOCKING | EVENT_NO_TIMING) };
                self.check(code, "creating an event")?;
                event
            }
        };
        Ok(Mark { gpu: self.clone(), event })
    }

    /// Marks what is on a stream by now. The context is entered.
    pub fn record(self: &Arc<Self>, stream: Handle) -> Result<Arc<Mark>> {
        let mark = self.event()?;
        // SAFETY: the event is live and this mark's alone; a stream that is none is refused by the driver as far as it can see.
        let code = unsafe { (self.driver.event_record)(mark.event, stream) };
        self.check(code, "recording an event on the stream").map(|()| Arc::new(mark))
    }

    /// Marks what is on a caller's stream by now.
    pub fn mark_stream(self: &Arc<Self>, stream: u64) -> Result<Arc<dyn StreamEvent>> {
        if let Some(lost) = self.lost() {
            return Err(lost);
        }
        let _inside = self.enter()?;
        self.check_stream(stream)?;
        let mark = self.record(stream as Handle)?;
        Ok(mark)
    }

    /// Makes a caller's stream wait for a mark.
    pub fn follow(&self, stream: u64, event: Option<&dyn StreamEvent>) -> Result<()> {
        if let Some(lost) = self.lost() {
            return Err(lost);
        }
        let _inside = self.enter()?;
        self.check_stream(stream)?;
        event.map_or(Ok(()), |event| self.wait_behind(stream as Handle, event))
    }

    /// Has work that is put on a stream from now on wait for a mark. The context is entered.
    pub fn wait_behind(&self, stream: Handle, event: &dyn StreamEvent) -> Result<()> {
        // SAFETY: the event lives as long as it is borrowed; the driver remembers its state, not the event.
        let code = unsafe { (self.driver.stream_wait_event)(stream, event.handle() as Handle, 0) };
        self.check(code, "making a stream wait")
    }

    /// Refuses a stream that is capturing a graph: captured work happens when the graph runs, which cannot be waited for here.
    fn check_stream(&self, stream: u64) -> Result<()> {
        let mut capturing = 0;
        // SAFETY: a plain call of the driver, with a place for what it gives.
        let code = unsafe { (self.driver.stream_is_capturing)(stream as Handle, &raw mut capturing) };
        if let Err(error) = self.check(code, "looking at the stream") {
            // A device that is lost is not the caller's mistake.
            let status = if self.lost.get().is_some() { KVKEEP_ERR_DEVICE } else { KVKEEP_ERR_INVALID };
            return Err(Error::new(status, format!("stream is {stream:#x}: {}", error.message)));
        }
        if capturing != 0 {
            return Err(Error::invalid(format!(
                "stream is {stream:#x}, which is capturing a graph: submit transfers before or after the capture"
            )));
        }
        Ok(())
    }

    /// Blocks until a mark is reached. The context is entered.
    pub fn wait_for(&self, event: &dyn StreamEvent) -> Result<()> {
        // SAFETY: the event lives as long as it is borrowed.
        let code = unsafe { (self.driver.event_synchronize)(event.handle() as Handle) };
        self.check(code, "copying")
    }

    /// Blocks until a stream has nothing to do. The context is entered.
    pub fn wait_for_stream(&self, stream: Handle) -> Result<()> {
        // SAFETY: a stream of the caller's.
        let code = unsafe { (self.driver.stream_synchronize)(stream) };
        self.check(code, "copying")
    }

    /// Memory of the host's that the device reaches. The context is entered.
    pub fn host_alloc(&self, bytes: usize) -> Result<*mut c_void> {
        const PORTABLE: u32 = 1;
        const MAPPED: u32 = 2;
        let mut at = std::ptr::null_mut();
        // SAFETY: a plain call of the driver, with a place for what it gives.
        let code = unsafe { (self.driver.host_alloc)(&raw mut at, bytes, PORTABLE | MAPPED) };
        self.check(code, "allocating pinned memory").map(|()| at)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context == 0 {
            return;
        }
        let inside = self.enter();
        // SAFETY: none of these is used any more, since all users hold this device.
        unsafe {
            for event in self.events.lock().drain(..) {
                (self.driver.event_destroy)(event);
            }
            if let Some(kernel) = self.kernel.get() {
                (self.driver.module_unload)(kernel.module);
            }
            drop(inside);
            (self.driver.context_release)(self.device);
        }
    }
}
