//! The C ABI: one file per noun, in the order of the header. An exported function checks its pointers, calls the cache
//! and turns the result into a status; nothing else happens here.
//!
//! C promises that a pointer that is not NULL points to as much as its count says. `pointers` relies on that promise; its
//! functions are private to this folder, because only an `unsafe extern "C"` function may pass the promise on.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

pub mod cache;
mod config;
pub mod device;
mod gate;
mod guard;
mod handle;
pub mod object;
pub mod observe;
pub mod options;
mod partial;
mod pointers;
pub mod prefetch;
pub mod session;
mod text;
pub mod version;
mod versioned;
