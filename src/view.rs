//! The bytes of views, for Rust callers that hold no pointers.

use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::types::View;

/// Copies the bytes of a view of `arena` out, as far as `into` is long.
pub fn copy_out(arena: &Arena, view: &View, into: &mut [u8]) -> Result<()> {
    let fits = into.len() as u64 <= view.size && arena.copy_out(view.data.cast(), into);
    fits.then_some(()).ok_or_else(|| not_ours(view))
}

/// Copies bytes into a view of `arena`.
pub fn copy_in(arena: &Arena, view: &View, from: &[u8]) -> Result<()> {
    let fits = from.len() as u64 <= view.size && arena.copy_in(view.data.cast(), from);
    fits.then_some(()).ok_or_else(|| not_ours(view))
}

/// The error of a view that is not of this cache, or too short.
pub fn not_ours(view: &View) -> Error {
    Error::invalid(format!(
        "the view of {} bytes (status {}) is not of this cache's L1 or is shorter than what is to be copied: pass a view \
         whose status is OK, as a reservation returned it",
        view.size, view.status
    ))
}
