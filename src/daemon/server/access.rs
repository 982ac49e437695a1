//! Access to a daemon: the users who may connect, and how much one client may take.

use super::peer::Peer;
use crate::daemon::wire::FRAME_BYTES_MAX;
use crate::error::{Error, KVKEEP_ERR_PERMISSION, Result};

/// Bounds of one client.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most clients at once.
    pub clients_max: usize,
    /// Most request connections of one client, and so its most calls at once.
    pub connections_per_client_max: usize,
    /// Most live sessions of one client.
    pub sessions_per_client_max: usize,
    /// Most jobs of one client that are not released.
    pub jobs_per_client_max: usize,
    /// Most bytes that one client stages.
    pub staged_bytes_per_client_max: u64,
    /// Most bytes of one message.
    pub message_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients_max: 256,
            connections_per_client_max: 64,
            sessions_per_client_max: 1 << 16,
            jobs_per_client_max: 1 << 16,
            staged_bytes_per_client_max: u64::MAX,
            message_bytes_max: FRAME_BYTES_MAX,
        }
    }
}

/// The users who may connect, and what they may use.
#[derive(Clone, Debug)]
pub struct Access {
    /// File mode of the socket.
    pub mode: u32,
    /// Users who may connect, besides the daemon's own and root.
    pub uids: Vec<u32>,
    /// Groups whose members (by their process's group) may connect.
    pub gids: Vec<u32>,
    /// Users who may connect and only read.
    pub read_only_uids: Vec<u32>,
    /// Tenants whose spaces only these users may open, besides the daemon's own and root.
    pub tenants: Vec<(String, Vec<u32>)>,
}

impl Default for Access {
    fn default() -> Access {
        Access { mode: 0o600, uids: Vec::new(), gids: Vec::new(), read_only_uids: Vec::new(), tenants: Vec::new() }
    }
}

impl Access {
    /// Whether a peer may write and administer; an error if it may not even connect.
    pub(in crate::daemon) fn rights(&self, peer: Peer) -> Result<(bool, bool)> {
        let own = rustix::process::geteuid().as_raw();
        let admin = peer.uid == own || peer.uid == 0;
        let reader = self.read_only_uids.contains(&peer.uid);
        let writer = admin || self.uids.contains(&peer.uid) || self.gids.contains(&peer.gid);
        if !reader && !writer {
            return Err(Error::new(
                KVKEEP_ERR_PERMISSION,
                format!(
                    "user {} (group {}) may not use this daemon: give it to kvkeep serve as --allow-users, --allow-groups or --read-only-users",
                    peer.uid, peer.gid
                ),
            ));
        }
        Ok((!reader, admin && !reader))
    }
}
