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

/// Version of the library, as "major.minor.patch". Static; never NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// ABI version of the library that was loaded; compare with KVKEEP_ABI_VERSION. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_abi_version() -> u32 {
    KVKEEP_ABI_VERSION
}

/// Name of a kvkeep_status, such as "KVKEEP_ERR_NOT_HELD"; "unknown status" for a number that is none. Static; never
/// NULL. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_status_name(status: i32) -> *const c_char {
    text::status_name(status)
}

/// Message of the last call on this thread that returned an error, or refused memory for some keys: the cause, then the remedy. UTF-8, never NULL, ""
/// if none failed, at most 2047 bytes. Owned by the library; valid until the next kvkeep call on this thread, and as long as
/// the thread runs: destructors of its thread-local objects may read it, too.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_last_error() -> *const c_char {
    text::last_error()
}

/// Extra readers of an object besides the one every share count includes. A model whose ranks each store their own
/// object (`world_size` objects a chunk): 0. An MLA model, whose tensor-parallel workers all read one object, has a
/// `world_size` already divided by `tp_size`: tp_size - 1. That is: tp_size <= 1 gives 0; tp_size > world_size gives
/// tp_size - 1; else 0. Pipeline parallelism with MLA breaks the rule: give the number yourself there. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvkeep_extra_count(tp_size: c_int, world_size: c_int) -> c_int {
    if tp_size > 1 && tp_size > world_size { tp_size - 1 } else { 0 }
}
