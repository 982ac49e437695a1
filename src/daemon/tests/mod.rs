//! Tests of the daemon's parts that need no daemon.

mod settings;
mod wire;
