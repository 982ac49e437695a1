//! Objects in a bucket of an S3 service: `s3://bucket/prefix?endpoint=…`.
//!
//! [`bucket_client`] moves bytes between the service and L1's memory, [`known_objects`] answers lookups without the service, and
//! [`bucket_tasks`] joins both into the life of each request. They run on a runtime of their own, whose threads nothing else uses.

mod aws_credentials;
mod bucket_client;
mod bucket_errors;
mod bucket_tasks;
mod generations;
mod known_objects;
mod object_names;
mod request_gate;
mod s3_backend;
mod s3_options;
mod sent_buffer;

pub use self::s3_backend::S3Backend;
