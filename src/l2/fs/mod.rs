//! The `fs` backend: one file per object in a directory, on a local disk or a shared file system.
//!
//! A file is written under a temporary name and renamed when whole ([`file_format`] has its bytes), so that a process that dies, at
//! any time, leaves either an object or a leftover that the next open removes. A power cut may cost the newest objects, and the header
//! finds an object that it left half; with `durability=power` an object is synced ([`durability`]) before its store is answered.
//!
//! [`fs_backend`] opens a directory and takes requests. [`load`] and [`store`] are the two lifecycles, whose bytes one of the engines
//! in [`engine`] moves. [`index`] answers lookups without I/O; [`maintenance`] is the thread for what needs the file system but moves no
//! payload. [`recover`] reads the directory when it is opened. [`core`] is the state that all threads share, [`root`] the part of it
//! that every file here stands on.

mod background_eviction;
mod cleanup;
mod core;
mod descriptor_wait;
mod directories;
mod durability;
mod engine;
mod failures;
mod file_buffers;
mod file_format;
mod file_lookup;
mod foreign;
mod free_space;
mod fs_backend;
mod fs_options;
mod index;
pub mod listing;
mod load;
mod maintenance;
mod objects;
mod openers;
pub(crate) mod path;
mod quarantine_dir;
mod recover;
mod remove;
mod root;
mod space_files;
mod store;
mod tasks;
#[cfg(test)]
mod tests;
mod writers;

pub use self::fs_backend::Fs;
pub use self::fs_options::{Durability, EngineKind, FsOptions, MinFree};
