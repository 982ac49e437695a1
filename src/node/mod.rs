//! One cache in this process.
//!
//! `parts.rs` builds, connects and stops its parts, `api.rs` has its calls, `control_thread.rs` the thread that does what is
//! due, and
//! `explain.rs` the view from outside.

mod ages;
mod api;
mod control_thread;
mod delete_everywhere;
mod explain;
mod parts;

pub use parts::Node;
