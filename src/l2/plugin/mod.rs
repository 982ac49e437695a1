//! Stores that others bring: functions in a vtable, given by the host program or exported by a shared library.
//!
//! A plug-in is called from threads of this folder and answers by numbers, never by pointers: an answer that comes twice, late or never
//! finds nothing that it could harm.
#![allow(unsafe_code)]

mod answer;
mod call_queue;
mod foreign_struct;
mod host_calls;
mod open_request;
mod plugin_backend;
mod plugin_source;
mod plugin_state;
pub mod vtable;

pub use self::foreign_struct::ABI_VERSION;
pub use self::plugin_backend::PluginBackend;
pub use self::plugin_source::PluginSource;
