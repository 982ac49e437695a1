//! The `redis` backend, against real servers.

mod access;
mod caches;
mod proxied;
mod round_trip;
mod tls;
mod trouble;
