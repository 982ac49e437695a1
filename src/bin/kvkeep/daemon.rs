//! What the subcommands that talk to a daemon share.

use std::sync::Arc;

use kvkeep::abi::Stats;
use kvkeep::cache::Cache;
use kvkeep::daemon::client::{Client, ClientConfig};
use serde_json::Value;

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

/// The open spaces, that with most bytes of L1 first, or why they are not told.
pub fn spaces(client: &Client) -> Result<Vec<Value>, String> {
    let answer = client.list_spaces().map_err(|error| error.message)?;
    serde_json::from_str(&answer).map_err(|error| format!("the daemon's answer is no JSON: {error}"))
}

/// Connects, does one thing, and leaves.
pub fn once<R>(url: &str, changes: bool, act: impl FnOnce(&Client) -> Result<R, String>) -> Result<R, String> {
    let client = connect(url, changes)?;
    let done = act(&client);
    client.close();
    done
}
