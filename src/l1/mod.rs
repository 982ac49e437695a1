//! The host-memory tier: objects by key, the shares of them, the sessions that hold these, and the memory all of it takes.
//!
//! All of it is one [`state::L1State`] behind one lock, which a call holds for a whole batch: that makes a batch atomic (P11).
//! Nothing under the lock does I/O, waits, or calls out.
//!
//! `tier.rs` has the lock and the clock, `api.rs` and `backend_api.rs` have the methods that others call. Each act stands in a
//! file of its own as functions over the state. `object_life.rs` has every change of an object's state, `session/lifecycle.rs`
//! every change of a session's.

pub mod alloc;
mod api;
mod backend_api;
mod count_lookups;
mod counters;
mod detached_writes;
pub mod evict;
mod freed_memory;
mod holders;
pub mod holdings;
pub mod inspect;
mod last_batch;
mod lookup;
pub mod memory_wait;
mod object_life;
mod open_space;
mod outcome;
mod pending_writes;
mod pools;
mod read;
mod recency;
mod remove;
mod session;
mod shapes;
mod share;
mod share_return;
mod single_key_read;
pub mod slot;
mod slots;
mod space;
mod spin;
pub mod staged_bytes;
mod state;
mod tier;
mod tier_io;
pub mod tier_notes;
mod wakes;
mod write;

pub use counters::{Counts, Gauges};
pub use outcome::Outcome;
pub use space::SpaceInfo;
pub use state::L1Config;
pub use tier::L1;
pub use tier_io::{LoadReader, QueuedWrite};
pub use wakes::{WAKE_COMMITS, WAKE_EVICTION, WAKE_WRITES, Wakes};

#[cfg(test)]
mod tests;
