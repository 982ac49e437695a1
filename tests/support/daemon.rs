//! A daemon in the test's own process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::Stats;
use kvkeep::config::NodeConfig;
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::daemon::server::{Access, Limits, LockFile, Server};
use kvkeep::node::Node;

pub struct Daemon {
    dir: tempfile::TempDir,
    config: Box<dyn Fn(&Path) -> NodeConfig>,
    node: Arc<Node>,
    server: Option<Server>,
}

impl Daemon {
    /// Serves a node of `config`, which is given a directory that lasts as long as the daemon.
    pub fn start(config: impl Fn(&Path) -> NodeConfig + 'static) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let (node, server) = serve(&dir, &config);
        Daemon { dir, config: Box::new(config), node, server: Some(server) }
    }

    /// What a client connects with; `parameters` are the URL's.
    pub fn config(&self, parameters: &str) -> ClientConfig {
        let url = format!("unix://{}/kvkeep.sock{parameters}", self.dir.path().display());
        ClientConfig { patience: Duration::from_secs(120), ..ClientConfig::new(&url).unwrap() }
    }

    pub fn client(&self) -> Arc<Client> {
        Client::open(self.config("")).unwrap()
    }

    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        kvkeep::cache::Cache::stats(&*self.node, &mut stats).unwrap();
        stats
    }

    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            self.node.close();
        }
    }

    pub fn restart(&mut self) {
        self.stop();
        let (node, server) = serve(&self.dir, &self.config);
        (self.node, self.server) = (node, Some(server));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(dir: &tempfile::TempDir, config: impl Fn(&Path) -> NodeConfig) -> (Arc<Node>, Server) {
    let lock_file = LockFile::take(&dir.path().join("kvkeep.sock")).unwrap();
    let node = Node::open(NodeConfig { boot: lock_file.boot, ..config(dir.path()) }).unwrap();
    let server = Server::start(node.clone(), lock_file, Access::default(), Limits::default()).unwrap();
    (node, server)
}
