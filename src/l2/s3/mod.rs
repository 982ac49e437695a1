//! Objects in a bucket of S3 (`s3://bucket/prefix?endpoint=…`), Google Cloud Storage (`gs:`) or Azure (`az:`).
//!
//! [`bucket_client`] moves bytes between the service and L1's memory, [`known_objects`] answers lookups without the service, and
//! [`bucket_tasks`] joins both into the life of each request. They run on a runtime of their own, whose threads nothing else uses.

mod aws_credentials;
mod bucket_client;
mod bucket_errors;
mod bucket_tasks;
#[cfg(feature = "az")]
mod connection_string;
mod generations;
mod known_objects;
mod object_names;
mod object_service;
mod request_gate;
mod s3_backend;
mod s3_options;
mod sent_buffer;
mod service_clients;

pub use self::s3_backend::S3Backend;
pub(super) use self::s3_options::S3Options;
