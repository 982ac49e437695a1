//! A node that others use: its socket, and its HTTP port. `kvkeep serve` has one, and so has a cache that is opened with `listen`.

use std::net::SocketAddr;
use std::sync::Arc;

use super::http::{Http, HttpOptions};
use super::server::descriptors::DescriptorShares;
use super::server::{Access, Limits, LockFile, Server};
use super::settings::FileMode;
use super::trace_recorder::TraceRecorder;
use crate::error::{Error, Result};
use crate::l2::url::{Parameters, Url};
use crate::log::{Log, LogLevel};
use crate::node::Node;

/// How a node is opened to others.
pub struct ServiceOptions {
    /// The users who may connect.
    pub access: Access,
    /// The bounds of one client.
    pub limits: Limits,
    /// Where to answer HTTP.
    pub http: Option<SocketAddr>,
    /// Where requests are recorded.
    pub recorder: Option<Arc<TraceRecorder>>,
}

/// The open socket, and the open port.
pub struct Service {
    server: Server,
    http: Option<Http>,
    recorder: Option<Arc<TraceRecorder>>,
}

impl ServiceOptions {
    /// The socket of a `listen` URL, `unix:///path?http=address:port&mode=0660`, locked for this process, and its options.
    pub fn of_url(url: &str) -> Result<(LockFile, ServiceOptions)> {
        let parsed = Url::parse(url)?;
        if parsed.scheme != "unix" || !parsed.path.starts_with('/') {
            return Err(Error::invalid(format!(
                "listen is {url:?}, which names no socket: write unix:///path/of/the.sock"
            )));
        }
        let mut options = Parameters::new("listen", &parsed.params);
        let http = options.read("http", None, |text| match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(Error::invalid(format!("{text:?} is no address; write 127.0.0.1:9400"))),
        })?;
        let mode = options.read("mode", Access::default().mode, |text| text.parse().map(|FileMode(mode)| mode))?;
        options.finish()?;
        let lock_file = LockFile::take(parsed.path.as_ref())?;
        let access = Access { mode, ..Access::default() };
        Ok((lock_file, ServiceOptions { access, limits: Limits::default(), http, recorder: None }))
    }
}

impl Service {
    /// Opens a node to others.
    pub fn start(node: &Arc<Node>, lock_file: LockFile, options: ServiceOptions, log: &Log) -> Result<Service> {
        let start = |address| {
            let defaults = HttpOptions::new(address);
            let connections_max = DescriptorShares::now().http.min(defaults.connections_max);
            let followers_max = defaults.followers_max.min(connections_max / 2);
            Http::start(node.clone(), HttpOptions { connections_max, followers_max, ..defaults }, log.clone())
        };
        let http = options.http.map(start).transpose()?;
        if let Some(http) = &http {
            log.write(LogLevel::Info, || format!("the page is at http://{}/", http.address()));
        }
        let ServiceOptions { access, limits, recorder, .. } = options;
        let server = Server::start_recorded(node.clone(), lock_file, access, limits, recorder.clone())?;
        Ok(Service { server, http, recorder })
    }

    /// Lets nobody in any more, ends the connections, and closes the socket. The port stays.
    pub fn stop_clients(self) -> Option<Http> {
        self.server.stop();
        if let Some(recorder) = &self.recorder {
            recorder.close();
        }
        self.http
    }

    /// Closes the socket and the port.
    pub fn stop(self) {
        if let Some(http) = self.stop_clients() {
            http.stop();
        }
    }
}
