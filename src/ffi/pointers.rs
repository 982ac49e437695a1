//! Pointers and counts from C: each is checked here before anything reads or writes behind it.

use std::ops::Range;

use crate::abi::KVKEEP_KEYS_MAX;
use crate::error::{Error, Result};
use crate::key::Key;

#[cold]
pub(super) fn null(name: &str) -> Error {
    Error::invalid(format!("{name} is NULL: pass a valid pointer"))
}

#[cold]
pub(super) fn misaligned<T>(name: &str) -> Error {
    Error::invalid(format!(
        "{name} is not aligned to {} bytes: pass a pointer to the type in the header",
        align_of::<T>()
    ))
}

#[cold]
pub(super) fn bad_count(count: usize, name: &str) -> Error {
    Error::invalid(if count == 0 {
        format!("the count of {name} is 0: pass at least one")
    } else {
        format!("the count of {name} is {count}, more than KVKEEP_KEYS_MAX ({KVKEEP_KEYS_MAX}): split the batch")
    })
}

#[inline]
pub(super) fn checked_count(count: usize, name: &str) -> Result<()> {
    if count == 0 || count > KVKEEP_KEYS_MAX { Err(bad_count(count, name)) } else { Ok(()) }
}

/// A caller's array to read.
#[inline]
pub(super) fn input<'a, T>(first: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    checked_count(count, name)?;
    if first.is_null() {
        return Err(null(name));
    }
    if !first.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and of `count` elements by the caller's promise; `count` cannot overflow.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// A caller's place to write one value to.
pub(super) fn output<'a, T>(place: *mut T, name: &str) -> Result<&'a mut T> {
    if place.is_null() {
        return Err(null(name));
    }
    if !place.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and writable by the caller's promise; T is plain data.
    Ok(unsafe { &mut *place })
}

/// A caller's place to write one value to, if it wants that value. Made before the work, so that a refusal changes nothing.
pub(super) fn optional_output<'a, T>(place: *mut T, name: &str) -> Result<Option<&'a mut T>> {
    if place.is_null() { Ok(None) } else { output(place, name).map(Some) }
}

/// A caller's array to write.
#[inline]
pub(super) fn output_slice<'a, T>(first: *mut T, count: usize, name: &str) -> Result<&'a mut [T]> {
    checked_count(count, name)?;
    if first.is_null() {
        return Err(null(name));
    }
    if !first.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    // SAFETY: not NULL, aligned, and of `count` elements by the caller's promise; T is plain data.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
}

/// A caller's optional array of one status per key.
#[inline]
pub(super) fn optional_statuses<'a>(first: *mut i32, keys: &[Key]) -> Result<Option<&'a mut [i32]>> {
    if first.is_null() {
        return Ok(None);
    }
    let statuses = output_slice(first, keys.len(), "statuses")?;
    disjoint(&[keys.as_ptr_range().into(), statuses.as_ptr_range().into()])?;
    Ok(Some(statuses))
}

/// Where an array lies.
#[derive(Clone, Copy)]
pub(super) struct Span {
    start: usize,
    end: usize,
}

impl<T> From<Range<*const T>> for Span {
    fn from(range: Range<*const T>) -> Span {
        Span { start: range.start.addr(), end: range.end.addr() }
    }
}

/// Refuses arrays that overlap.
#[inline]
pub(super) fn disjoint(spans: &[Span]) -> Result<()> {
    for (i, a) in spans.iter().enumerate() {
        for b in &spans[i + 1..] {
            if a.start < b.end && b.start < a.end {
                return Err(Error::invalid("two of the arrays overlap: pass separate memory for each"));
            }
        }
    }
    Ok(())
}
