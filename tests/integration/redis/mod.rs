//! The `redis` backend, against real servers.

mod access;
mod caches;
mod cluster;
mod proxied;
mod replicas;
mod round_trip;
mod sentinel;
mod stores;
mod tls;
mod trouble;
mod valkey;
