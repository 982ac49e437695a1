//! Campaigns of random operations and kills, each by seed; `make soak` makes them long.
//!
//! A program of its own: each loads every core for seconds, and tests with deadlines beside it would miss them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod bad_day;
mod chaos;
mod faults;
mod stress;
