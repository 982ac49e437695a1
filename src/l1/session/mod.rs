//! Sessions: `sessions.rs` has their data, `lifecycle.rs` every change of a session's state, `copy.rs` those that copy for another.

pub(super) mod copy;
pub(super) mod lifecycle;
pub(super) mod sessions;
