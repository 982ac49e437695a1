//! The promises, P1 to P12, each held to its words.
#![allow(unsafe_code)]

mod backends;
mod bad_input;
mod bounds;
pub mod cache;
mod completions;
mod counters;
mod disk;
mod memory;
mod order;
mod pins;
mod shares;
mod tiers;
mod visible;
