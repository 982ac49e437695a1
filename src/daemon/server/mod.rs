//! The daemon's side of the socket: it lets clients in, gives each connection a thread, and notices when one dies.

mod accept;
mod access;
mod answers;
mod batch;
mod client_state;
mod connection;
mod connections;
pub mod descriptors;
mod dispatch;
mod inspection;
mod listener;
mod lock_file;
mod peer;
mod push;
mod recording;
mod server_state;
mod serving;
mod space_grants;
mod undo;

pub use access::{Access, Limits};
pub use listener::Server;
pub use lock_file::LockFile;
