//! The functions of libcuda.so.1 that are used here, each looked for before it is called.
//!
//! cudarc finds and opens the library. Its own wrappers are not called: they panic where a driver lacks a function, and they give
//! results as a Rust enum, which a driver newer than the crate could overstep. Here results are the numbers they are in C.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{Error, KVKEEP_ERR_UNSUPPORTED, Result};

/// A context, stream, event, module or function of the driver's: opaque, never followed here.
pub type Handle = usize;

/// CUDA 11.4, the oldest that is asked for all functions; what came later is optional.
const VERSION_MIN: c_int = 11_040;
/// CUDA 12.8, the first with copies in batches.
const VERSION_BATCH: c_int = 12_080;

type CopyBatch = unsafe extern "C" fn(
    to: *mut u64,
    from: *mut u64,
    bytes: *mut usize,
    count: usize,
    attributes: *mut sys::CUmemcpyAttributes,
    attribute_indexes: *mut usize,
    attribute_count: usize,
    failed: *mut usize,
    stream: Handle,
) -> c_int;

fn unsupported(why: &str) -> Error {
    Error::new(
        KVKEEP_ERR_UNSUPPORTED,
        format!("{why}, or use KVKEEP_DEVICE_HOST and copy between the host and the device yourself"),
    )
}

/// Looks for a function. `F` is the type that the driver's documentation gives for it.
fn find<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: the library was found before; the types are written down once, below, from the documentation of each name.
    unsafe { sys::culib().get::<F>(name.as_bytes()).ok().map(|symbol| *symbol) }
}

macro_rules! driver {
    ($($field:ident = $name:literal ($($argument:ty),*);)*) => {
        /// The functions that were found in the driver.
        pub struct Driver {
            $(#[doc = $name] pub $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
            /// `cuMemcpyBatchAsync`, where it is.
            pub copy_batch: Option<CopyBatch>,
        }

        impl Driver {
            fn find_all() -> Result<Driver> {
                Ok(Driver {
                    $($field: find($name).ok_or_else(|| unsupported(&format!(
                        "libcuda.so.1 has no function {}: update the NVIDIA driver to 470 or later (530 for all there is)",
                        $name
                    )))?,)*
                    copy_batch: find("cuMemcpyBatchAsync"),
                })
            }
        }
    };
}

driver! {
    init = "cuInit"(c_uint);
    version = "cuDriverGetVersion"(*mut c_int);
    error_name = "cuGetErrorName"(c_int, *mut *const c_char);
    device_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut c_int, c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2"(c_int);
    context_push = "cuCtxPushCurrent_v2"(Handle);
    context_pop = "cuCtxPopCurrent_v2"(*mut Handle);
    capture_mode = "cuThreadExchangeStreamCaptureMode"(*mut c_int);
    stream_create = "cuStreamCreate"(*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(Handle);
    stream_synchronize = "cuStreamSynchronize"(Handle);
    stream_wait_event = "cuStreamWaitEvent"(Handle, Handle, c_uint);
    stream_is_capturing = "cuStreamIsCapturing"(Handle, *mut c_int);
    event_create = "cuEventCreate"(*mut Handle, c_uint);
    event_destroy = "cuEventDestroy_v2"(Handle);
    event_record = "cuEventRecord"(Handle, Handle);
    event_synchronize = "cuEventSynchronize"(Handle);
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost"(*mut c_void);
    host_register = "cuMemHostRegister_v2"(*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister"(*mut c_void);
    device_alloc = "cuMemAlloc_v2"(*mut u64, usize);
    device_free = "cuMemFree_v2"(u64);
    pointer_attribute = "cuPointerGetAttribute"(*mut c_void, c_int, u64);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle);
    copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle);
    module_load = "cuModuleLoadData"(*mut Handle, *const c_void);
    module_unload = "cuModuleUnload"(Handle);
    module_function = "cuModuleGetFunction"(*mut Handle, Handle, *const c_char);
    launch = "cuLaunchKernel"(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
}

impl Driver {
    /// The machine's driver, ready for use.
    pub fn open() -> Result<&'static Driver> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        let driver = Driver::load()?;
        Ok(DRIVER.get_or_init(|| driver))
    }

    fn load() -> Result<Driver> {
        // SAFETY: opening the driver's library runs its initializers, as the engine whose pages these are has done before us.
        if !unsafe { sys::is_culib_present() } {
            return Err(unsupported(
                "libcuda.so.1 cannot be loaded: install the NVIDIA driver, in a container start it with the NVIDIA runtime (--gpus \
                 all)",
            ));
        }
        let mut driver = Driver::find_all()?;
        let (mut version, mut devices) = (0, 0);
        // SAFETY: plain calls of the driver, with places for what they give.
        let codes =
            unsafe { ((driver.init)(0), (driver.version)(&raw mut version), (driver.device_count)(&raw mut devices)) };
        match codes {
            (0, 0, 0) if devices > 0 => {}
            (0, 0, 0) | (100, ..) => {
                return Err(unsupported("the NVIDIA driver sees no device: check nvidia-smi and CUDA_VISIBLE_DEVICES"));
            }
            (code, second, third) => {
                let code = [code, second, third].into_iter().find(|&code| code != 0).unwrap_or_default();
                return Err(unsupported(&format!(
                    "the NVIDIA driver does not start ({}): {}",
                    driver.name_of(code),
                    remedy(code)
                )));
            }
        }
        if version < VERSION_MIN {
            return Err(unsupported(&format!(
                "the NVIDIA driver is one for CUDA {}.{}: update it to 470 or later (CUDA 11.4)",
                version / 1000,
                version % 1000 / 10
            )));
        }
        if version < VERSION_BATCH {
            driver.copy_batch = None;
        }
        Ok(driver)
    }

    /// The driver's name for an error.
    pub fn name_of(&self, code: c_int) -> String {
        let mut name = ptr::null();
        // SAFETY: the driver gives a NUL-terminated text of its own, or none.
        let text = unsafe {
            let known = (self.error_name)(code, &raw mut name) == 0 && !name.is_null();
            known.then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
        };
        text.map_or_else(|| format!("error {code}"), |name| format!("{name}, {code}"))
    }
}

/// Whether a device never works again in this process after an error.
pub fn is_fatal(code: c_int) -> bool {
    matches!(code, 4 | 46 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 810 | 999)
}

/// The remedy for an error, for a person.
pub fn remedy(code: c_int) -> &'static str {
    match code {
        1 | 101 => "check that the addresses and the device are those of the engine's tensors",
        2 => "leave some memory of the device to others than the engine",
        3 | 4 => "close the cache before the process unloads CUDA",
        46 => "look at nvidia-smi: another process may have the device for itself, or it fell off the bus",
        201 | 400 => "pass a stream that was made in the device's primary context and is not destroyed",
        214 | 220 => "look at dmesg and nvidia-smi -q: the hardware reports errors",
        700 | 702 | 709 | 710 | 714..=719 | 999 => {
            "restart the process: its context on the device is lost, mostly by a fault of some kernel"
        }
        803 | 804 => "load the kernel module that belongs to the installed driver",
        805..=810 => "look at the MPS control daemon",
        900..=908 => "submit transfers outside of the capture of a graph",
        _ => "look for NVRM in dmesg",
    }
}
