//! Texts across the ABI: names, messages and longer texts into a caller's buffer.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use super::pointers::{null, output};
use crate::error::{Error, KVKEEP_OK, KVKEEP_PARTIAL, Result, Status};

/// Bytes that are kept of a message, its NUL included.
const LAST_ERROR_BYTES: usize = 2048;

thread_local! {
    /// It has no destructor, so that it is there as long as the thread runs any code, destructors of other thread-locals included.
    static LAST_ERROR: Cell<[u8; LAST_ERROR_BYTES]> = const { Cell::new([0; LAST_ERROR_BYTES]) };
}

/// Keeps a message for this thread, as much of it as there is room for.
pub fn set_last_error(message: &str) {
    let fits = message.floor_char_boundary(message.len().min(LAST_ERROR_BYTES - 1));
    let mut bytes = [0; LAST_ERROR_BYTES];
    for (place, byte) in bytes.iter_mut().zip(message[..fits].bytes()) {
        *place = if byte == 0 { b' ' } else { byte };
    }
    LAST_ERROR.with(|last| last.set(bytes));
}

/// Keeps a message for this thread and returns PARTIAL.
#[cold]
pub fn partial(message: &str) -> Result<Status> {
    set_last_error(message);
    Ok(KVKEEP_PARTIAL)
}

/// This thread's message.
pub fn last_error() -> *const c_char {
    LAST_ERROR.with(Cell::as_ptr).cast()
}

/// This thread's message, as a text.
pub fn last_error_text() -> String {
    let bytes = LAST_ERROR.with(Cell::get);
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// The name of a status number.
pub fn status_name(status: i32) -> *const c_char {
    macro_rules! names {
        ($($name:ident)*) => {
            match Status::from_number(status) {
                $(Some(Status::$name) => concat!(stringify!($name), "\0"),)*
                None => "unknown status\0",
            }
        };
    }
    names! {
        KVKEEP_OK KVKEEP_PENDING KVKEEP_PARTIAL KVKEEP_ERR_INVALID KVKEEP_ERR_CLOSED KVKEEP_ERR_NOT_FOUND
        KVKEEP_ERR_EXISTS KVKEEP_ERR_NOT_HELD KVKEEP_ERR_EXPIRED KVKEEP_ERR_LOCKED KVKEEP_ERR_NO_MEMORY KVKEEP_ERR_QUOTA
        KVKEEP_ERR_LIMIT KVKEEP_ERR_TIMEOUT KVKEEP_ERR_CANCELLED KVKEEP_ERR_IO KVKEEP_ERR_CORRUPT KVKEEP_ERR_UNSUPPORTED
        KVKEEP_ERR_VERSION KVKEEP_ERR_PERMISSION KVKEEP_ERR_DISCONNECTED KVKEEP_ERR_INTERNAL KVKEEP_ERR_DEVICE
    }
    .as_ptr()
    .cast()
}

/// A caller's text.
pub fn utf8<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, and NUL-terminated by the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| Error::invalid(format!("{name} is not UTF-8: pass UTF-8 text")))
}

/// A caller's text, `default` for NULL.
pub fn utf8_or<'a>(text: *const c_char, default: &'a str, name: &str) -> Result<&'a str> {
    if text.is_null() { Ok(default) } else { utf8(text, name) }
}

/// Writes `content` into a caller's buffer.
pub fn write(content: &str, buffer: *mut c_char, capacity: usize, length: *mut usize) -> Result<Status> {
    let length = output(length, "length")?;
    if capacity > 0 && buffer.is_null() {
        return Err(null("buffer"));
    }
    *length = content.len();
    let short = || partial(&format!("the text needs a buffer of {} bytes", content.len() + 1));
    if capacity == 0 {
        return short();
    }
    let fits = content.floor_char_boundary(content.len().min(capacity - 1));
    // SAFETY: not NULL, and of `capacity` bytes by the caller's promise; `fits` is below that.
    unsafe {
        std::ptr::copy_nonoverlapping(content.as_ptr(), buffer.cast::<u8>(), fits);
        *buffer.add(fits) = 0;
    }
    if fits == content.len() { Ok(KVKEEP_OK) } else { short() }
}
