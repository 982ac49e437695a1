//! Version: exported functions.

use std::ffi::{c_char, c_int};

use super::text;

/// ---- Version ----
///
/// The ABI version changes only when a caller built before could break. While the major version is 0, the minor
/// version is part of the SONAME.
///
/// Version of the ABI that this header describes.
pub const KVKEEP_ABI_VERSION: u32 = 1;

const _: () = assert!(KVKEEP_ABI_VERSION == crate::l2::plugin::ABI_VERSION);

/// Version of the library, as "major.minor.patch". Static; never NULL. Any thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// ABI version of the library that was loaded; compare with KVKEEP_ABI_VERSION. Any thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_abi_version() -> u32 {
    KVKEEP_ABI_VERSION
}

/// Name of a kvkeep_status, such as "KVKEEP_ERR_NOT_HELD"; "unknown status" for a number that is none. Static; never
/// NULL. Any thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_status_name(status: i32) -> *const c_char {
    text::status_name(status)
}

/// Message of the last call on this thread that returned an error or PARTIAL: the cause, then the remedy. Of PARTIAL it says how many
/// keys fell short, the first of them and its reason; of keys without memory, who holds it; of a key that is only staged, by whom (where
/// at most 1024 sessions live). UTF-8, never NULL, "" if none failed, at most 2047 bytes. The library owns it; it is valid until the
/// next kvkeep call on this thread, and as long as the thread runs: destructors of its thread-local objects may read it, too. `kvkeep_get_error` serves hosts whose next call may run on another thread.
/// Since: 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_last_error() -> *const c_char {
    text::last_error()
}

/// The `extra_count` of a model: readers of an object besides the one that every share count includes. `world_size` is the
/// number of objects of a chunk. Any thread.
///
/// | the model                                                            | the numbers                | result           |
/// |----------------------------------------------------------------------|----------------------------|------------------|
/// | one worker                                                           | tp_size <= 1               | 0                |
/// | each rank stores an object of its own                                | 1 < tp_size <= world_size  | 0                |
/// | MLA: all ranks read one object, and world_size is divided by tp_size | tp_size > world_size       | tp_size - 1      |
/// | MLA with pipeline parallelism: the caller counts the readers itself  | may be those of the second | may be too small |
/// Since: 0.1.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_extra_count(tp_size: c_int, world_size: c_int) -> c_int {
    if tp_size > 1 && tp_size > world_size { tp_size - 1 } else { 0 }
}
