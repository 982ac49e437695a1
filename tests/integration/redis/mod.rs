//! The `redis` backend, against real servers.

mod access;
mod caches;
mod cluster;
mod proxied;
mod round_trip;
mod sentinel;
mod tls;
mod trouble;
