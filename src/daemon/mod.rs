//! One node, many processes: the daemon that owns a cache, and the client that makes another process see it as its own.
//!
//! A client has one connection on which it listens for pushes, and a few request connections, each used by one calling
//! thread at a time: a request out, an answer in. The bytes of objects never cross a socket: a client maps L1.

pub mod accounts;
pub mod client;
pub mod http;
pub mod server;
pub mod service;
pub mod settings;
pub mod settings_in_force;
pub mod trace_file;
pub mod trace_line;
pub mod trace_recorder;
pub mod wire;

#[cfg(test)]
mod tests;
