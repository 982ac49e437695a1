//! What the subcommands that talk to a daemon share.

use std::sync::Arc;

use kvkeep::abi::Stats;
use kvkeep::cache::Cache;
use kvkeep::daemon::client::{Client, ClientConfig};

/// Connects to a daemon by its URL. A command that `changes` nothing is let in also when as many clients as may be are there.
pub fn connect(url: &str, changes: bool) -> Result<Arc<Client>, String> {
    let config = ClientConfig::new(url).map_err(|error| error.to_string())?;
    Client::open(ClientConfig { read_only: !changes, observer: !changes, prefault: false, ..config })
        .map_err(|error| error.to_string())
}

/// What the daemon counted.
pub fn stats(client: &Client) -> Result<Stats, String> {
    let mut stats = Stats::default();
    client.stats(&mut stats).map_err(|error| error.to_string())?;
    Ok(stats)
}

/// Connects, does one thing, and leaves.
pub fn once<R>(url: &str, changes: bool, act: impl FnOnce(&Client) -> Result<R, String>) -> Result<R, String> {
    let client = connect(url, changes)?;
    let done = act(&client);
    client.close();
    done
}
