//! Structs that a plug-in passes: read in the size and version that it was built with.

use std::ffi::{CStr, c_char};

use super::vtable::{BackendAnswer, BackendVtable};
use crate::error::{Error, KVKEEP_ERR_VERSION, Result};

/// KVKEEP_ABI_VERSION, which the C ABI compares with its own.
pub const ABI_VERSION: u32 = 1;

/// Larger structs are of no version to come.
const SIZE_MAX: usize = 1 << 16;

/// A struct of the ABI that a plug-in fills in.
///
/// # Safety
///
/// It is plain data that begins with [`ForeignHead`], and all zeroes are a valid value of it.
pub(super) unsafe trait ForeignStruct: Copy {}

// SAFETY: `repr(C)`, plain data, nullable pointers, and its first two fields are those of `ForeignHead`.
unsafe impl ForeignStruct for BackendVtable {}
// SAFETY: as above.
unsafe impl ForeignStruct for BackendAnswer {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ForeignHead {
    struct_size: u32,
    abi_version: u32,
}

/// A copy of the struct at `address`, which has at least its head.
pub(super) fn read<T: ForeignStruct>(address: *const T, name: &str) -> Result<T> {
    if address.is_null() {
        return Err(Error::invalid(format!("{name} is NULL: pass a valid pointer")));
    }
    if !address.is_aligned() {
        return Err(Error::invalid(format!("{name} is not aligned: pass a pointer to the type in the header")));
    }
    // SAFETY: not NULL and aligned; every such struct has at least its head by the plug-in's promise.
    let head = unsafe { *address.cast::<ForeignHead>() };
    if head.abi_version != ABI_VERSION {
        let message = format!(
            "{name}->abi_version is {}, the library has {ABI_VERSION}: build the plug-in against the header of the library that loads it",
            head.abi_version
        );
        return Err(Error::new(KVKEEP_ERR_VERSION, message));
    }
    let (size, own) = (head.struct_size as usize, size_of::<T>());
    if size < own || size > SIZE_MAX || !size.is_multiple_of(align_of::<T>()) {
        return Err(Error::invalid(format!(
            "{name}->struct_size is {size}, which no version of this struct has (known: {own}): set it to sizeof of the struct"
        )));
    }
    // SAFETY: the struct has `size` bytes by the plug-in's promise.
    let rest = unsafe { std::slice::from_raw_parts(address.cast::<u8>().add(own), size - own) };
    if rest.iter().any(|&byte| byte != 0) {
        let message =
            format!("{name} sets fields that this library does not know: load the plug-in into a newer library");
        return Err(Error::new(KVKEEP_ERR_VERSION, message));
    }
    // SAFETY: not NULL, aligned, and at least as large as the type.
    Ok(unsafe { *address })
}

/// A plug-in's text, at most `most` bytes of it; what is not UTF-8 is replaced. Empty for NULL.
pub(super) fn text(address: *const c_char, most: usize) -> String {
    if address.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, and NUL-terminated by the plug-in's promise.
    let text = unsafe { CStr::from_ptr(address) }.to_string_lossy();
    text[..text.floor_char_boundary(text.len().min(most))].to_owned()
}

/// A plug-in's array of `count` elements; none for NULL or a count of 0.
pub(super) fn array<'a, T: Copy>(first: *const T, count: usize, name: &str) -> Result<Option<&'a [T]>> {
    if first.is_null() || count == 0 {
        return Ok(None);
    }
    if !first.is_aligned() {
        return Err(Error::invalid(format!("{name} is not aligned: pass a pointer to the type in the header")));
    }
    // SAFETY: not NULL, aligned, and of `count` elements by the plug-in's promise; the caller has bounded `count`.
    Ok(Some(unsafe { std::slice::from_raw_parts(first, count) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KVKEEP_ERR_INVALID;

    fn vtable() -> BackendVtable {
        // SAFETY: all zeroes are a valid value of it.
        let mut vtable: BackendVtable = unsafe { std::mem::zeroed() };
        (vtable.struct_size, vtable.abi_version) = (size_of::<BackendVtable>() as u32, ABI_VERSION);
        vtable
    }

    #[test]
    fn a_struct_of_another_size_or_version_is_refused() {
        let mut other = vtable();
        assert!(read(&raw const other, "vtable").is_ok());
        other.abi_version = 2;
        let error = read(&raw const other, "vtable").unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_VERSION);
        assert!(
            error.message.contains("abi_version is 2") && error.message.contains("header of the library"),
            "{error}"
        );
        for size in [0, 8, 104, 113, 1 << 20] {
            let mut other = vtable();
            other.struct_size = size;
            let error = read(&raw const other, "vtable").unwrap_err();
            assert_eq!(error.status, KVKEEP_ERR_INVALID, "{size}");
            assert!(error.message.contains(&format!("struct_size is {size},")), "{error}");
        }
        assert_eq!(read::<BackendVtable>(std::ptr::null(), "vtable").unwrap_err().status, KVKEEP_ERR_INVALID);
    }

    #[test]
    fn a_newer_struct_may_be_longer_by_zeroes() {
        #[repr(C)]
        struct Longer(BackendVtable, u64);
        let mut longer = Longer(vtable(), 0);
        longer.0.struct_size += 8;
        assert!(read((&raw const longer).cast::<BackendVtable>(), "vtable").is_ok());
        longer.1 = 1;
        let error = read((&raw const longer).cast::<BackendVtable>(), "vtable").unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_VERSION);
    }
}
