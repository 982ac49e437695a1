//! How a client connects to a daemon: options, and the URL that names it.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::l2::url::{Parameters, Url};
use crate::log::Log;

/// A call that has no answer by then sleeps in any case.
const SPIN_US_MAX: u64 = 100_000;
/// By default a call that has no time of its own waits so long for its answer. A daemon that works answers the largest batch in
/// a part of this, and a stopped daemon does not hold up an engine's scheduler for long.
const PATIENCE_MS: u64 = 2000;
/// Longest time to wait for a daemon to start.
const WAIT_MS_MAX: u64 = 3_600_000;

/// How a client connects.
pub struct ClientConfig {
    /// The path of the daemon's socket.
    pub socket: PathBuf,
    /// Ask for a mapping that cannot be written.
    pub read_only: bool,
    /// Ask for numbers and reasons only, which the daemon answers also when it has as many clients as it may have.
    pub observer: bool,
    /// Map L1's pages in the background.
    pub prefault: bool,
    /// How long a call looks for its answer before it sleeps.
    pub spin: Duration,
    /// How long to wait for a daemon that is not there yet.
    pub wait: Duration,
    /// How long a call that has no time of its own waits for its answer.
    pub patience: Duration,
    /// How long this client's sessions may be idle; the daemon's own time if none.
    pub session_timeout: Option<Duration>,
    /// How long a reservation waits before L1 evicts unwritten objects; the daemon's own time if none.
    pub store_wait: Option<Duration>,
    /// Where log lines go.
    pub log: Log,
}

impl ClientConfig {
    /// All defaults, for a daemon's URL: `unix:///path?spin_us=…&wait_ms=…`.
    pub fn new(url: &str) -> Result<ClientConfig> {
        let parsed = Url::parse(url)?;
        if parsed.scheme != "unix" || !parsed.path.starts_with('/') {
            return Err(Error::invalid(format!(
                "connect is {url:?}, which names no daemon: write unix:///path/of/the.sock"
            )));
        }
        let mut options = Parameters::new("unix:", &parsed.params);
        let spin = Duration::from_micros(options.number("spin_us", 0)?.min(SPIN_US_MAX));
        let wait = Duration::from_millis(options.number("wait_ms", 0)?.min(WAIT_MS_MAX));
        let patience = options.number("patience_ms", PATIENCE_MS)?.min(WAIT_MS_MAX);
        if patience == 0 {
            return Err(Error::invalid("patience_ms is 0: give a call a millisecond at least"));
        }
        options.finish()?;
        Ok(ClientConfig {
            socket: PathBuf::from(parsed.path),
            read_only: false,
            observer: false,
            prefault: true,
            spin,
            wait,
            patience: Duration::from_millis(patience),
            session_timeout: None,
            store_wait: None,
            log: Log::none(),
        })
    }
}
