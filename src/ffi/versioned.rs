//! Structs that carry their size and version: what a caller of any version may pass.

use zerocopy::FromBytes;

use super::options::{
    kvkeep_group_rule, kvkeep_options, kvkeep_pool_options, kvkeep_prefetch_options, kvkeep_segment,
    kvkeep_session_options, kvkeep_space_options, kvkeep_transfer_options,
};
use super::pointers::{checked_count, input, misaligned, null, output};
use super::version::KVKEEP_ABI_VERSION;
use crate::abi::{JobResult, SessionState, SpaceUsage, Stats};
use crate::error::{Error, KVKEEP_ERR_VERSION, Result};
use crate::misses::miss_report::MissReport;

/// A struct of the ABI that begins with its size and version. Fields are appended at the end.
///
/// # Safety
///
/// It is plain data that begins with [`Head`], and all zeroes are a valid value of it.
pub unsafe trait Versioned {}

/// A versioned struct that callers fill in.
pub trait Options: Versioned {
    /// The sizes that versions of the struct had, in rising order; the last is the size today.
    const SIZES: &[usize];
}

macro_rules! options {
    ($($struct:ident: $($size:literal),+;)*) => {
        $(
            // SAFETY: `repr(C)`, plain data, and its first two fields are those of `Head`.
            unsafe impl Versioned for $struct {}
            impl Options for $struct {
                const SIZES: &[usize] = &[$($size),+];
            }
            const _: () = assert!(is_history(<$struct as Options>::SIZES, size_of::<$struct>(), align_of::<$struct>()));
        )*
    };
}

options! {
    kvkeep_options: 128, 136, 152;
    kvkeep_space_options: 48, 56;
    kvkeep_session_options: 24;
    kvkeep_prefetch_options: 72, 80;
    kvkeep_pool_options: 40, 48, 56;
    kvkeep_transfer_options: 40;
}

// SAFETY: `repr(C)`, plain data, and its first two fields are those of `Head`.
unsafe impl Versioned for JobResult {}
// SAFETY: as above.
unsafe impl Versioned for SpaceUsage {}
// SAFETY: as above.
unsafe impl Versioned for SessionState {}
// SAFETY: as above.
unsafe impl Versioned for Stats {}
// SAFETY: as above.
unsafe impl Versioned for MissReport {}

/// A type whose elements stand in arrays that an option struct points to. Fields are appended at the end.
pub trait Element: FromBytes + Copy {
    /// The option struct.
    type Owner: Options;

    /// Its size in a caller whose option struct has `owner_size` bytes.
    fn size(owner_size: usize) -> usize;
}

impl Element for kvkeep_group_rule {
    type Owner = kvkeep_prefetch_options;

    fn size(owner_size: usize) -> usize {
        if owner_size < 80 { 16 } else { size_of::<kvkeep_group_rule>() }
    }
}

impl Element for kvkeep_segment {
    type Owner = kvkeep_pool_options;

    fn size(owner_size: usize) -> usize {
        if owner_size < 56 { 32 } else { size_of::<kvkeep_segment>() }
    }
}

/// Copies of the `count` elements that an option struct, itself a copy of the caller's of `owner_size` bytes, points to.
pub fn input_elements<T: Element>(first: *const T, count: usize, owner_size: u32, name: &str) -> Result<Vec<T>> {
    let size = T::size(owner_size as usize);
    if size == size_of::<T>() {
        return input(first, count, name).map(<[T]>::to_vec);
    }
    checked_count(count, name)?;
    if !first.is_null() && !first.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    let bytes = input(first.cast::<u8>(), count * size, name)?;
    Ok(bytes
        .chunks_exact(size)
        .map(|bytes| {
            let mut element = T::new_zeroed();
            // SAFETY: `size` bytes of a struct of plain data that has at least as many.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut element).cast::<u8>(), size) };
            element
        })
        .collect())
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

/// The head of a caller's struct, whose version must be the library's.
fn head<T: Versioned>(address: *const T, name: &str) -> Result<Head> {
    if address.is_null() {
        return Err(null(name));
    }
    if !address.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL and aligned; every versioned struct has at least its head by the caller's promise.
    Ok(unsafe { *address.cast::<Head>() })
}

/// Zeroes a struct of `size` bytes, and writes its head.
pub fn init(address: *mut u64, size: usize, abi_version: u32) -> Result<()> {
    if address.is_null() {
        return Err(null("versioned"));
    }
    if !address.is_aligned() {
        return Err(misaligned::<u64>("versioned"));
    }
    if !(size_of::<Head>()..=SIZE_MAX).contains(&size) {
        return Err(Error::invalid(format!(
            "struct_size is {size}, and must be {} to {SIZE_MAX}: pass the size of the struct",
            size_of::<Head>()
        )));
    }
    let head = Head { struct_size: size as u32, abi_version };
    check_version(head, "versioned")?;
    // SAFETY: not NULL, aligned, and of `size` bytes, at least those of a head, by the caller's promise.
    unsafe {
        address.cast::<u8>().write_bytes(0, size);
        address.cast::<Head>().write(head);
    }
    Ok(())
}

fn check_version(head: Head, name: &str) -> Result<()> {
    if head.abi_version == KVKEEP_ABI_VERSION {
        return Ok(());
    }
    Err(Error::new(
        KVKEEP_ERR_VERSION,
        format!(
            "{name}->abi_version is {}, the library has {KVKEEP_ABI_VERSION}: build against the header of the library that is loaded",
            head.abi_version
        ),
    ))
}

/// The size of a caller's option struct, which a version of it has or may come to have.
fn options_size<T: Options>(address: *const T, name: &str) -> Result<usize> {
    let head = head(address, name)?;
    let size = head.struct_size as usize;
    let newer = size > size_of::<T>() && size <= SIZE_MAX && size.is_multiple_of(align_of::<T>());
    if !newer && !T::SIZES.contains(&size) {
        return Err(unknown_size(size, T::SIZES, name));
    }
    check_version(head, name)?;
    Ok(size)
}

/// The size of a caller's result struct, whatever it is.
fn result_size<T: Versioned>(address: *const T, name: &str) -> Result<usize> {
    let head = head(address, name)?;
    let size = head.struct_size as usize;
    if !(size_of::<Head>()..=SIZE_MAX).contains(&size) {
        return Err(Error::invalid(format!(
            "{name}->struct_size is {size}, and must be {} to {SIZE_MAX}: prepare it with KVKEEP_INIT",
            size_of::<Head>()
        )));
    }
    check_version(head, name)?;
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
pub fn input_struct<T: Options>(address: *const T, name: &str) -> Result<T> {
    let size = options_size(address, name)?;
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
pub fn input_struct_or_default<T: Options>(address: *const T, name: &str) -> Result<T> {
    if address.is_null() {
        // SAFETY: zero is a valid value of every versioned struct.
        return Ok(unsafe { std::mem::zeroed() });
    }
    input_struct(address, name)
}

/// Fills in a caller's result struct by `fill`, up to the size that the caller's has.
pub fn fill_struct<T: Versioned, R>(address: *mut T, name: &str, fill: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
    let size = result_size(address, name)?;
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
    unsafe impl Versioned for Known {}

    impl Options for Known {
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
    fn a_result_of_any_size_is_filled_up_to_it() {
        for size in (0..1 << 17).filter(|size| !(8..=1 << 16).contains(size)) {
            let error = fill_struct(address(&mut caller(size)), "result", |_| Ok(())).unwrap_err();
            assert_eq!(error.status, KVKEEP_ERR_INVALID, "{size}: {error}");
            assert!(error.message.starts_with(&format!("result->struct_size is {size}, ")), "{error}");
            assert!(error.message.contains("KVKEEP_INIT"), "{error}");
        }
        let fill = |known: &mut Known| {
            (known.first, known.second) = (u64::MAX, u64::MAX);
            Ok(())
        };
        for size in 8..=24 {
            let mut shorter = caller(size);
            fill_struct(address(&mut shorter), "result", fill).unwrap();
            let bytes = |value: u64, field: u32| {
                let filled = size.saturating_sub(field).min(8) as usize;
                let mut bytes = value.to_le_bytes();
                bytes[..filled].fill(0xff);
                u64::from_le_bytes(bytes)
            };
            assert_eq!(shorter, Grown { first: bytes(1, 8), second: bytes(2, 16), ..caller(size) }, "{size}");
        }
    }

    #[test]
    fn elements_have_the_size_of_their_caller_s_version() {
        let former: [u64; 8] = std::array::from_fn(|i| i as u64 + 1);
        let segments = input_elements(former.as_ptr().cast::<kvkeep_segment>(), 2, 48, "segments").unwrap();
        let [first, second] = segments[..] else { panic!("{segments:?}") };
        assert_eq!((first.address, first.block_bytes, first.block_stride, first.group, first.layer), (1, 2, 3, 4, 0));
        assert_eq!((second.address, second.reserved), (5, [0; 2]));
        let rules: [u32; 8] = std::array::from_fn(|i| i as u32 + 1);
        let rules = input_elements(rules.as_ptr().cast::<kvkeep_group_rule>(), 2, 72, "group_rules").unwrap();
        assert_eq!(
            (rules[1].group, rules[1].mode, rules[1].window_chunks, rules[1].reserved),
            (5, 6, 7, [8, 0, 0, 0, 0])
        );
        let same = input_elements(segments.as_ptr(), 2, 56, "segments").unwrap();
        assert_eq!(same[1].address, 5);
        let null = input_elements(std::ptr::null::<kvkeep_segment>(), 1, 48, "segments").unwrap_err();
        assert!(null.message.contains("segments is NULL"), "{null}");
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
