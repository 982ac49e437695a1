//! Spaces that only some users may use: those of tenants with users of their own.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;

use super::client_state::ClientState;
use crate::cache::Cache;
use crate::config::SpaceSpec;
use crate::error::{Error, KVKEEP_ERR_PERMISSION, Result};
use crate::node::Node;

/// The users of spaces that not everyone may use.
pub struct SpaceGrants {
    node: Arc<Node>,
    /// Tenants with users of their own.
    tenants: Vec<(String, Vec<u32>)>,
    /// The users of each space of such a tenant.
    grants: RwLock<HashMap<u64, Vec<u32>>>,
}

impl SpaceGrants {
    /// No space is open yet. `tenants` have users who alone may open their spaces.
    pub fn new(node: Arc<Node>, tenants: Vec<(String, Vec<u32>)>) -> SpaceGrants {
        SpaceGrants { node, tenants, grants: RwLock::default() }
    }

    /// Opens a space, if its tenant has no users of its own or this client is one.
    pub fn open_space(&self, client: &ClientState, spec: SpaceSpec) -> Result<u64> {
        let users = self.tenants.iter().find(|(tenant, _)| *tenant == spec.tenant).map(|(_, users)| users.clone());
        if let Some(users) = &users {
            allow(client, users)?;
        }
        let Some(users) = users else { return self.node.open_space(spec) };
        // Held meanwhile, so that no request names the space before its users are known.
        let mut grants = self.grants.write();
        let space = self.node.open_space(spec)?;
        grants.insert(space, users);
        Ok(space)
    }

    /// Refuses a space that is not for this client.
    pub fn check_space(&self, client: &ClientState, space: u64) -> Result<()> {
        match self.grants.read().get(&space) {
            Some(users) => allow(client, users),
            None => Ok(()),
        }
    }

    /// Refuses the sessions of spaces that are not for this client, and 0, which is all of them.
    pub fn check_session(&self, client: &ClientState, session: u64) -> Result<()> {
        if self.grants.read().is_empty() {
            return Ok(());
        }
        if session == 0 {
            return client.may_administer();
        }
        let space = self.node.l1.session_space(session)?;
        self.check_space(client, space.tag.number())
    }

    /// Refuses a job of a space that is not for this client.
    pub fn check_job(&self, client: &ClientState, job: u64) -> Result<()> {
        if self.grants.read().is_empty() {
            return Ok(());
        }
        match self.node.prefetcher.table().space_of(job) {
            Some(space) => self.check_space(client, space.tag.number()),
            None => Ok(()),
        }
    }
}

fn allow(client: &ClientState, users: &[u32]) -> Result<()> {
    if client.admin || users.contains(&client.peer.uid) {
        return Ok(());
    }
    Err(Error::new(
        KVKEEP_ERR_PERMISSION,
        format!(
            "user {} may not use this tenant's spaces: add it to the tenant's uids in the daemon's configuration",
            client.peer.uid
        ),
    ))
}
