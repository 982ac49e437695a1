//! What the quickstart uses of kvkeep.h, whose words hold for it: structs as C lays them out, and functions found by dlsym.
#![allow(non_camel_case_types)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

pub const ABI_VERSION: u32 = 1;
pub const TIERS_MAX: usize = 8;
pub const LIFETIME_CACHED: u32 = 0;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}
const RTLD_NOW: c_int = 2;

/// Structs that begin with their size and the version of the header, as KVKEEP_INIT prepares them.
///
/// # Safety
///
/// The type has `repr(C)` and two fields of `u32` first, and zeros are a value of it.
pub unsafe trait Versioned: Sized {
    fn prepared() -> Self {
        // SAFETY: as the trait says.
        unsafe {
            let mut it = std::mem::zeroed::<Self>();
            let first = (&raw mut it).cast::<u32>();
            first.write(size_of::<Self>() as u32);
            first.add(1).write(ABI_VERSION);
            it
        }
    }
}

macro_rules! structs {
    ($($name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        #[repr(C)]
        pub struct $name { pub struct_size: u32, pub abi_version: u32, $(pub $field: $kind,)* }
        // SAFETY: all fields are numbers and pointers.
        unsafe impl Versioned for $name {}
    )*};
}

structs! {
    Options {
        connect: *const c_char, l1_bytes: u64, flags: u32, numa_node: u32, eviction_policy: *const c_char,
        watermark_high_percent: u32, watermark_low_percent: u32, store_mode: u32, store_after_uses: u32,
        backend_urls: *const *const c_char, backend_count: usize, sessions_max: u32, jobs_max: u32,
        writes_pending_max: u32, session_timeout_ms: u32, backend_timeout_ms: u32, store_wait_ms: u32,
        loading_bytes_max: u64, log: *const c_void, log_userdata: *mut c_void, log_level: u32, reserved: u32,
        listen: *const c_char,
    }
    SpaceOptions {
        model: *const c_char, layout: *const c_char, tenant: *const c_char, chunk_tokens: u32, reserved: u32,
        quota_bytes: u64, generation: u64,
    }
    SessionOptions { request_id: *const c_char, timeout_ms: u32, reserved: u32, }
    JobResult {
        status: i32, hit_chunks: u32, lookup_chunks: u32, failed_keys: u32, tier_keys: [u32; TIERS_MAX],
        loaded_bytes: u64, lookup_us: u64, load_us: u64, total_us: u64, message: [c_char; 128], kind: u32,
        asked_keys: u32, copied_keys: u32, reserved: u32, copied_bytes: u64, copy_us: u64,
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Key {
    pub hash: [u8; 32],
    pub rank: u32,
    pub group: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    pub data: *mut u8,
    pub size: u64,
    pub status: i32,
    pub reserved: u32,
}

pub type Cache = *mut c_void;

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of the library, each under its name without "kvkeep_".
        pub struct Library { $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Library {
            /// Loads the library, which stays loaded.
            pub fn load(file: &str) -> Result<Self, String> {
                let file = CString::new(file).map_err(|error| error.to_string())?;
                // SAFETY: the text ends with a NUL, and the library may be loaded at any time.
                let handle = unsafe { dlopen(file.as_ptr(), RTLD_NOW) };
                if handle.is_null() {
                    return Err(dl_error());
                }
                $(
                    let name = CString::new(concat!("kvkeep_", stringify!($name))).map_err(|error| error.to_string())?;
                    // SAFETY: the library is loaded, and the text ends with a NUL.
                    let $name = unsafe { dlsym(handle, name.as_ptr()) };
                    if $name.is_null() {
                        return Err(dl_error());
                    }
                )*
                // SAFETY: kvkeep.h declares each function with this signature.
                Ok(Self { $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>($name) },)* })
            }
        }
    };
}

functions! {
    last_error() -> *const c_char;
    open(*const Options, *mut Cache) -> i32;
    close(Cache) -> i32;
    open_space(Cache, *const SpaceOptions, *mut u64) -> i32;
    flush(Cache, u32) -> i32;
    begin_session(Cache, u64, *const SessionOptions, *mut u64) -> i32;
    end_session(Cache, u64) -> i32;
    append_tokens(Cache, u64, *const u32, usize, *mut usize) -> i32;
    get_session_keys(Cache, u64, u64, usize, u32, u32, u32, *mut Key, usize) -> i32;
    submit_prefetch(Cache, u64, *const Key, usize, *const c_void, *mut u64, *const c_void, *mut c_void) -> i32;
    wait_job(Cache, u64, u32) -> i32;
    query_job(Cache, u64, *mut JobResult) -> i32;
    get_views(Cache, u64, *const Key, usize, *mut View) -> i32;
    finish_read(Cache, u64, *const Key, usize, i32, *mut i32) -> i32;
    reserve_write(Cache, u64, *const Key, usize, *const u64, u32, *mut View) -> i32;
    finish_write(Cache, u64, *const Key, usize, *mut i32) -> i32;
}

impl Library {
    /// A call's status as a result, with the library's own words: the cause, then the remedy.
    pub fn check(&self, status: i32) -> Result<(), String> {
        // SAFETY: the text is this thread's until its next call.
        let words = || unsafe { CStr::from_ptr((self.last_error)()) }.to_string_lossy().into_owned();
        if status < 0 { Err(words()) } else { Ok(()) }
    }
}

fn dl_error() -> String {
    // SAFETY: called only after a failure, which has a text.
    unsafe { CStr::from_ptr(dlerror()) }.to_string_lossy().into_owned()
}
