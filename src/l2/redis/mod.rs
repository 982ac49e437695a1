//! The `redis` backend: objects on a Redis or Valkey server or a cluster of them, which processes on many machines share.
//!
//! A value goes over our own connections, from L1 to the socket and from the socket into L1, without a copy in between. [`resp`] reads
//! replies, [`outbox`] holds what is to be sent, [`redis_connection`] is one connection. [`redis_node`] is one server with its [`node_queue`];
//! [`control_link`] answers what has no value, over a connection of its own, so that a lookup never waits for a value;
//! [`data_link`] runs a [`pipeline`] of loads and stores, whose single steps are in [`active`]. [`redis_router`] knows the
//! servers of a cluster by [`slot_map`], and the replicas that are read from by [`replica_set`]. [`object_name`] has the keys and
//! values that lie on the server. The threads share [`redis_state`].

mod active;
mod back_off;
mod control_link;
mod data_link;
mod node_queue;
mod object_name;
mod outbox;
mod pipeline;
mod redis_backend;
mod redis_connection;
mod redis_node;
mod redis_options;
mod redis_router;
mod redis_state;
mod replica_set;
mod requests;
pub(crate) mod resp;
mod sentinel;
mod server_error;
mod server_usage;
mod slot_map;
#[cfg(feature = "tls")]
mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod transport;
mod wake_fd;

pub use self::redis_backend::RedisBackend;
pub(crate) use self::redis_options::RedisOptions;
