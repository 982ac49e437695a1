//! The `redis` backend, against real servers.

mod access;
mod caches;
mod round_trip;
mod trouble;
