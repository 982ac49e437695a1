//! The `redis` backend, against real servers.

mod access;
mod caches;
mod cluster;
mod proxied;
mod replicas;
mod round_trip;
mod sentinel;
mod tls;
mod trouble;
mod valkey;
