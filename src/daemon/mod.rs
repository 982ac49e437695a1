//! One node, many processes: the daemon that owns a cache, and the client that makes another process see it as its own.
//!
//! A client has one connection that only listens, on which results are pushed, and a few lanes, each used by one calling
//! thread at a time: a request out, a reply in. The bytes of objects never cross a socket: a client maps L1.

mod accept;
mod access;
mod begun;
mod claim;
pub mod client;
pub mod config;
mod connection;
mod connections;
pub mod descriptors;
mod dispatch;
mod face;
mod granted;
mod guest;
pub mod http;
mod jobs;
mod lane;
mod link;
mod outbox;
mod owed;
mod peer;
pub mod server;
mod spaces;
pub mod wire;
