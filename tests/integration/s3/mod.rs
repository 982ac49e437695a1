//! Objects in a bucket, of a real S3 service: moto, which scripts/moto.sh installs.

mod environment;
mod opening;
#[cfg(all(feature = "gs", feature = "az"))]
mod other_services;
mod proxied;
mod round_trip;
mod stores;
mod trouble;
