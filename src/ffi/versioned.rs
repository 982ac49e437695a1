//! Structs that carry their size and version: what a caller of any version may pass.

use super::options::{
    kvkeep_options, kvkeep_pool_options, kvkeep_prefetch_options, kvkeep_session_options, kvkeep_space_options,
    kvkeep_transfer_options,
};
use super::version::KVKEEP_ABI_VERSION;
use super::{misaligned, null, output};
use crate::abi::{JobResult, SpaceUsage, Stats};
use crate::error::{Error, KVKEEP_ERR_VERSION, Result};

/// A struct of the ABI that begins with its size and version.
///
/// # Safety
///
/// It is plain data that begins with [`Head`], and all zeroes are a valid value of it.
pub unsafe trait Versioned {
    /// The sizes that versions of the struct had, in rising order; the last is the size today. Fields are appended at the
    /// end, and the former size stays in the list.
    const SIZES: &[usize];
}

macro_rules! versioned {
    ($($struct:ident: $($size:literal),+;)*) => {
        $(
            // SAFETY: `repr(C)`, plain data, and its first two fields are those of `Head`.
            unsafe impl Versioned for $struct {
                const SIZES: &[usize] = &[$($size),+];
            }
            const _: () = assert!(is_history(<$struct as Versioned>::SIZES, size_of::<$struct>(), align_of::<$struct>()));
        )*
    };
}

versioned! {
    kvkeep_options: 128;
    kvkeep_space_options: 48, 56;
    kvkeep_session_options: 24;
    kvkeep_prefetch_options: 72;
    kvkeep_pool_options: 40, 48;
    kvkeep_transfer_options: 40;
    JobResult: 216, 248;
    SpaceUsage: 32;
    Stats: 1440, 1600;
}

/// Whether the sizes rise to the size of today and can be sizes of such a struct.
const fn is_history(sizes: &[usize], today: usize, align: usize) -> bool {
    let mut last = size_of::<Head>();
    let mut i = 0;
    while i < sizes.len() {
        if sizes[i] <= last || !sizes[i].is_multiple_of(align) {
            return false;
        }
        last = sizes[i];
        i += 1;
    }
    last == today
}

/// The head that every versioned struct begins with.
#[repr(C)]
#[derive(Clone, Copy)]
struct Head {
    struct_size: u32,
    abi_version: u32,
}

/// Larger structs are of no version to come.
const SIZE_MAX: usize = 1 << 16;

#[cold]
fn unknown_size(size: usize, sizes: &[usize], name: &str) -> Error {
    let known: Vec<String> = sizes.iter().map(usize::to_string).collect();
    Error::invalid(format!(
        "{name}->struct_size is {size}, which no version of this struct has (known: {}): prepare it with KVKEEP_INIT",
        known.join(", ")
    ))
}

/// The size of a caller's struct, which a version of it has or may come to have.
fn check_head<T: Versioned>(address: *const T, name: &str) -> Result<usize> {
    if address.is_null() {
        return Err(null(name));
    }
    if !address.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL and aligned; every versioned struct has at least its head by the caller's promise.
    let head = unsafe { *address.cast::<Head>() };
    let size = head.struct_size as usize;
    let newer = size > size_of::<T>() && size <= SIZE_MAX && size.is_multiple_of(align_of::<T>());
    if !newer && !T::SIZES.contains(&size) {
        return Err(unknown_size(size, T::SIZES, name));
    }
    if head.abi_version != KVKEEP_ABI_VERSION {
        return Err(Error::new(
            KVKEEP_ERR_VERSION,
            format!(
                "{name}->abi_version is {}, the library has {KVKEEP_ABI_VERSION}: build against the header of the library that is loaded",
                head.abi_version
            ),
        ));
    }
    Ok(size)
}

/// A copy of a caller's struct of `size` bytes: as much as the caller's version has, zeroes for the rest.
///
/// # Safety
///
/// `address` points to `size` bytes.
unsafe fn copied<T: Versioned>(address: *const T, size: usize) -> T {
    let mut copy = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: at most as many bytes as both sides have; zero is a valid value of every versioned struct.
    unsafe {
        std::ptr::copy_nonoverlapping(address.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size.min(size_of::<T>()));
        copy.assume_init()
    }
}

/// A copy of a caller's option struct: as much as the caller's version has, zeroes for the rest.
pub fn input_struct<T: Versioned>(address: *const T, name: &str) -> Result<T> {
    let size = check_head(address, name)?;
    if let Some(newer) = size.checked_sub(size_of::<T>()) {
        // SAFETY: the struct has `size` bytes by the caller's promise.
        let rest = unsafe { std::slice::from_raw_parts(address.cast::<u8>().add(size_of::<T>()), newer) };
        if rest.iter().any(|&byte| byte != 0) {
            return Err(Error::new(
                KVKEEP_ERR_VERSION,
                format!(
                    "{name} sets fields that this library does not know: load a library at least as new as the header"
                ),
            ));
        }
    }
    // SAFETY: as above.
    Ok(unsafe { copied(address, size) })
}

/// As [`input_struct`], all defaults for NULL.
pub fn input_struct_or_default<T: Versioned>(address: *const T, name: &str) -> Result<T> {
    if address.is_null() {
        // SAFETY: zero is a valid value of every versioned struct.
        return Ok(unsafe { std::mem::zeroed() });
    }
    input_struct(address, name)
}

/// Has `fill` fill in a caller's result struct, or as much of it as the caller's version has.
pub fn fill_struct<T: Versioned, R>(address: *mut T, name: &str, fill: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
    let size = check_head(address, name)?;
    if size >= size_of::<T>() {
        return fill(output(address, name)?);
    }
    // SAFETY: the struct has `size` bytes by the caller's promise.
    let mut copy = unsafe { copied(address, size) };
    let filled = fill(&mut copy)?;
    // SAFETY: as above; the copy is longer.
    unsafe { std::ptr::copy_nonoverlapping((&raw const copy).cast::<u8>(), address.cast::<u8>(), size) };
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KVKEEP_ERR_INVALID;

    /// A struct whose first version ended before `second`; its third one is yet to come.
    #[repr(C)]
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Grown {
        struct_size: u32,
        abi_version: u32,
        first: u64,
        second: u64,
        /// No field of the library's struct: memory behind it.
        third: u64,
    }

    #[repr(C)]
    struct Known {
        struct_size: u32,
        abi_version: u32,
        first: u64,
        second: u64,
    }

    // SAFETY: plain data that begins with size and version.
    unsafe impl Versioned for Known {
        const SIZES: &[usize] = &[16, 24];
    }

    fn caller(struct_size: u32) -> Grown {
        Grown { struct_size, abi_version: KVKEEP_ABI_VERSION, first: 1, second: 2, third: 3 }
    }

    fn address(caller: &mut Grown) -> *mut Known {
        (&raw mut *caller).cast()
    }

    #[test]
    fn a_size_that_no_version_had_is_refused_and_named_with_those_that_are_known() {
        for size in
            (0..1 << 17).filter(|size| ![16, 24].contains(size) && (*size < 24 || size % 8 != 0 || *size > 1 << 16))
        {
            let mut caller = caller(size);
            let error = input_struct(address(&mut caller), "options").err().unwrap();
            assert_eq!(error.status, KVKEEP_ERR_INVALID, "{size}: {error}");
            assert!(error.message.starts_with(&format!("options->struct_size is {size}, ")), "{error}");
            assert!(error.message.contains("(known: 16, 24)") && error.message.contains("KVKEEP_INIT"), "{error}");
        }
    }

    #[test]
    fn an_older_caller_gives_and_is_given_only_the_fields_it_has() {
        let mut older = caller(16);
        let input = input_struct(address(&mut older), "options").unwrap();
        assert_eq!((input.first, input.second), (1, 0));
        let fill = |known: &mut Known| {
            (known.first, known.second) = (10, 20);
            Ok(())
        };
        fill_struct(address(&mut older), "result", fill).unwrap();
        assert_eq!(older, Grown { first: 10, ..caller(16) });
        // A failure changes nothing.
        let mut older = caller(16);
        let fail = |known: &mut Known| {
            known.first = 10;
            Err::<(), _>(Error::invalid("no"))
        };
        fill_struct(address(&mut older), "result", fail).unwrap_err();
        assert_eq!(older, caller(16));
    }

    #[test]
    fn a_newer_caller_may_set_only_what_is_known_and_keeps_what_is_not() {
        let mut newer = caller(32);
        let error = input_struct(address(&mut newer), "options").err().unwrap();
        assert_eq!(error.status, KVKEEP_ERR_VERSION, "{error}");
        newer.third = 0;
        let input = input_struct(address(&mut newer), "options").unwrap();
        assert_eq!((input.first, input.second), (1, 2));
        let mut newer = caller(32);
        let fill = |known: &mut Known| {
            (known.first, known.second) = (10, 20);
            Ok(())
        };
        fill_struct(address(&mut newer), "result", fill).unwrap();
        assert_eq!(newer, Grown { first: 10, second: 20, ..caller(32) });
    }

    #[test]
    fn a_history_of_sizes_rises_to_the_size_of_today() {
        assert!(is_history(&[16, 24], 24, 8));
        assert!(
            [&[16][..], &[24, 16], &[16, 24, 32], &[8, 24], &[20, 24], &[24, 24], &[]]
                .iter()
                .all(|sizes| !is_history(sizes, 24, 8))
        );
    }
}
