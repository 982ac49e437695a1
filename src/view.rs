//! The bytes of views, for Rust callers that hold no pointers.

use crate::error::{Error, Result};
use crate::node::Node;
use crate::types::View;

impl Node {
    /// Copies the bytes of a view out, as far as `into` is long. The session must hold shares of it meanwhile: else the bytes
    /// may be those of another object.
    pub fn copy_out(&self, view: &View, into: &mut [u8]) -> Result<()> {
        let fits = into.len() as u64 <= view.size && self.l1.arena().copy_out(view.data.cast(), into);
        fits.then_some(()).ok_or_else(|| not_ours(view))
    }

    /// Copies bytes into a view from `reserve_write`, which must not be committed or given back yet: else they may replace
    /// those of another object.
    pub fn copy_in(&self, view: &View, from: &[u8]) -> Result<()> {
        let fits = from.len() as u64 <= view.size && self.l1.arena().copy_in(view.data.cast(), from);
        fits.then_some(()).ok_or_else(|| not_ours(view))
    }
}

fn not_ours(view: &View) -> Error {
    Error::invalid(format!(
        "the view of {} bytes (status {}) is not of this cache's L1 or is shorter than what is to be copied: pass a view \
         whose status is OK, as a reservation returned it",
        view.size, view.status
    ))
}
