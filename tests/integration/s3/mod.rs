//! Objects in a bucket, of a real S3 service: moto, which scripts/moto.sh installs.

mod opening;
mod round_trip;
mod service;
mod trouble;
