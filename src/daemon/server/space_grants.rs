//! Spaces that only some users may use: those of tenants with users of their own.

use std::sync::{Arc, Weak};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use super::client_state::ClientState;
use crate::cache::Cache;
use crate::config::SpaceSpec;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION, Result};
use crate::hash::space_tag;
use crate::node::Node;

/// The users of spaces that not everyone may use.
pub struct SpaceGrants {
    node: Arc<Node>,
    /// Tenants with users of their own.
    tenants: Vec<(String, Vec<u32>)>,
    /// The users of each space of such a tenant.
    grants: RwLock<HashMap<u64, Vec<u32>>>,
    /// The clients that have each space open.
    openers: Mutex<HashMap<u64, Vec<Weak<ClientState>>>>,
}

impl SpaceGrants {
    /// No space is open yet. `tenants` have users who alone may open their spaces.
    pub fn new(node: Arc<Node>, tenants: Vec<(String, Vec<u32>)>) -> SpaceGrants {
        SpaceGrants { node, tenants, grants: RwLock::default(), openers: Mutex::default() }
    }

    /// Opens a space, if its tenant has no users of its own or this client is one.
    pub fn open_space(&self, client: &Arc<ClientState>, spec: SpaceSpec) -> Result<u64> {
        // Held meanwhile, so that no other client closes it before this one has it.
        let mut openers = self.openers.lock();
        let space = self.open_granted(client, spec)?;
        let openers = openers.entry(space).or_default();
        openers.retain(|opener| opener.strong_count() > 0);
        if !openers.iter().any(|opener| opener.as_ptr() == Arc::as_ptr(client)) {
            openers.push(Arc::downgrade(client));
        }
        Ok(space)
    }

    /// Closes a space for this client, and altogether where no other client that is connected has it open.
    pub fn close_space(&self, client: &Arc<ClientState>, space: u64) -> Result<()> {
        self.check_space(client, space)?;
        let mut openers = self.openers.lock();
        let is_client = |opener: &Weak<ClientState>| opener.as_ptr() == Arc::as_ptr(client);
        let of_space = openers.get_mut(&space).filter(|openers| openers.iter().any(is_client)).ok_or_else(|| {
            Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("space {space} is not open for this client: it was never opened, or closed before"),
            )
        })?;
        let is_there = |opener: &Weak<ClientState>| opener.upgrade().is_some_and(|client| !client.is_gone());
        if of_space.iter().any(|opener| !is_client(opener) && is_there(opener)) {
            of_space.retain(|opener| !is_client(opener) && is_there(opener));
            return Ok(());
        }
        self.node.close_space(space)?;
        openers.remove(&space);
        self.grants.write().remove(&space);
        Ok(())
    }

    fn open_granted(&self, client: &ClientState, spec: SpaceSpec) -> Result<u64> {
        let users = self.tenants.iter().find(|(tenant, _)| *tenant == spec.tenant).map(|(_, users)| users.clone());
        if let Some(users) = &users {
            allow(client, users)?;
        }
        let Some(users) = users else { return self.open_in_node(client, spec) };
        // Held meanwhile, so that no request names the space before its users are known.
        let mut grants = self.grants.write();
        let space = self.open_in_node(client, spec)?;
        grants.insert(space, users);
        Ok(space)
    }

    /// Opens a space. A reader opens one that is open already as it is: a quota evicts.
    fn open_in_node(&self, client: &ClientState, spec: SpaceSpec) -> Result<u64> {
        let tag = space_tag(&spec);
        let is_open = self.node.l1.space(tag.number()).is_ok_and(|known| known.tag == tag);
        if client.read_only && is_open { Ok(tag.number()) } else { self.node.open_space(spec) }
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
        // A client that is refused renews no deadline.
        let space = self.node.l1.space_of_session(session)?;
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
