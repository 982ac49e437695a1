//! Loading the kernel that moves small fragments.

use std::ffi::{CStr, c_int};
use std::sync::Arc;

use super::gpu::{Gpu, Kernel};
use super::measure;
use crate::error::Result;
use crate::log::LogLevel;

/// Number of the driver's attribute.
const REGISTERED_BY_ONE_ADDRESS: c_int = 91;
const KERNEL: &CStr = match CStr::from_bytes_with_nul(concat!(include_str!("kernel.ptx"), "\0").as_bytes()) {
    Ok(kernel) => kernel,
    Err(_) => panic!("the kernel has a NUL inside"),
};
const KERNEL_NAME: &CStr = c"kvkeep_move";

/// Loads the kernel and measures when to use it. Without it, or where that fails, the copy engines move everything. Fails only if the
/// device was lost by it.
pub fn load(gpu: &Arc<Gpu>) -> Result<()> {
    let _inside = gpu.enter()?;
    if let Err(error) = try_kernel(gpu) {
        gpu.log.write(LogLevel::Warn, || format!("small fragments go by the copy engines, slower: {error}"));
    }
    gpu.lost().map_or(Ok(()), Err)
}

/// Fails for a driver that is older than the kernel, has no compiler, or has no memory for it. The context is entered.
fn try_kernel(gpu: &Arc<Gpu>) -> Result<()> {
    if gpu.attribute(REGISTERED_BY_ONE_ADDRESS)? == 0 {
        return Ok(());
    }
    let (mut module, mut function) = (0, 0);
    // SAFETY: the text of the kernel ends with a NUL and is not changed by the driver.
    let code = unsafe { (gpu.driver.module_load)(&raw mut module, KERNEL.as_ptr().cast()) };
    gpu.check(code, "loading the kernel")?;
    // SAFETY: the module was loaded above; the name ends with a NUL.
    let code = unsafe { (gpu.driver.module_function)(&raw mut function, module, KERNEL_NAME.as_ptr()) };
    if code != 0 {
        // SAFETY: loaded above and not used by any thread.
        unsafe { (gpu.driver.module_unload)(module) };
    }
    gpu.check(code, "finding the kernel in its module")?;
    let _ = gpu.kernel.set(Kernel { module, function });
    measure::crossover(gpu)
}
