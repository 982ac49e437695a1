//! Prefetch jobs: submit, look up, load, done.
//!
//! `job.rs` has every transition of a job, `phases.rs` its state in each phase, `job_table.rs` all jobs. `prefetcher.rs`
//! submits, cancels and releases;
//! `lookup.rs` asks the tiers, `tier_choice.rs` compares them; `loader.rs` loads; `schedule.rs` is the control thread's part; `query.rs` answers callers.

mod hit_counters;
mod job;
mod job_table;
mod load_queue;
pub mod loader;
mod lookup;
mod no_room;
mod phases;
mod pins;
pub mod plan;
mod prefetcher;
pub mod query;
mod schedule;
mod tier_choice;

pub use job_table::{JobTable, no_job};
pub use no_room::NO_ROOM;
pub use prefetcher::Prefetcher;
