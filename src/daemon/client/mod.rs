//! A cache that a daemon keeps, as one of its clients: requests go out on request connections, results are pushed, and objects are
//! read and written where they are.

mod api;
mod client_lifecycle;
mod connect_options;
mod daemon_link;
mod jobs;
mod pending_returns;
mod read_answer;
mod request_connection;
mod spaces;
mod started_ids;

pub use client_lifecycle::Client;
pub use connect_options::ClientConfig;
