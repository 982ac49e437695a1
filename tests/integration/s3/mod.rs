//! Objects in a bucket, of a real S3 service: moto, which scripts/moto.sh installs.

mod opening;
mod proxied;
mod round_trip;
mod trouble;
