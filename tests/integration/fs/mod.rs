//! The `fs` backend, by what its callers and its directory see.

mod bounds;
mod directory;
mod disk_full;
mod durable;
mod fallback;
mod kill;
mod known;
mod leftovers;
mod observer;
mod processes;
mod round_trip;
mod trouble;
