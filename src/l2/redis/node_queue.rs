//! The requests that wait for the connections of one server, and whether there are any.

use std::collections::VecDeque;
use std::time::Instant;

use super::redis_state::closed;
use super::requests::{KeySweep, NodeDelete, NodeLookup, QueuedLoad, QueuedStore};
use crate::error::{Error, KVKEEP_ERR_LIMIT};
use crate::key::ObjectKey;

/// Most keys that wait.
const KEYS_MAX: usize = 1 << 17;

/// The connections of one kind.
#[derive(Default)]
pub struct Links {
    pub up: usize,
    /// Why the last one could not be had, unless one is up since.
    pub trouble: Option<Error>,
}

/// What waits for one server. Held under the lock of its node.
#[derive(Default)]
pub struct NodeQueue {
    pub loads: VecDeque<QueuedLoad>,
    pub stores: VecDeque<Box<QueuedStore>>,
    pub lookups: VecDeque<NodeLookup>,
    pub deletes: VecDeque<NodeDelete>,
    pub touches: VecDeque<ObjectKey>,
    pub sweeps: VecDeque<KeySweep>,
    /// Keys in `loads`, `stores`, `lookups` and `deletes`.
    pub keys: usize,
    pub loads_in_a_row: u32,
    /// Threads of data connections that wait for work, by number.
    pub free: Vec<usize>,
    pub control: Links,
    pub data: Links,
    pub paused: Option<(Instant, Error)>,
    pub closed: Option<Instant>,
}

/// What the control connection is to do next.
#[derive(Default)]
pub struct ControlTurn {
    pub lookups: Vec<NodeLookup>,
    pub deletes: Vec<NodeDelete>,
    pub touches: Vec<ObjectKey>,
    pub sweep: Option<KeySweep>,
}

/// Which connections a thread keeps: the one without values, or those for values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Control,
    Data,
}

impl ControlTurn {
    pub fn is_empty(&self) -> bool {
        self.lookups.is_empty() && self.deletes.is_empty() && self.touches.is_empty() && self.sweep.is_none()
    }
}

impl NodeQueue {
    /// The connections of a kind.
    pub fn links(&mut self, kind: LinkKind) -> &mut Links {
        match kind {
            LinkKind::Control => &mut self.control,
            LinkKind::Data => &mut self.data,
        }
    }

    /// Why a request would be refused now.
    pub fn refusal(&mut self, kind: LinkKind, keys: usize) -> Option<Error> {
        if self.closed.is_some() {
            return Some(closed());
        }
        if let Some((until, error)) = &self.paused {
            if Instant::now() < *until {
                return Some(error.clone());
            }
            self.paused = None;
        }
        let (waiting, links) = (self.keys, self.links(kind));
        if links.up == 0 && links.trouble.is_some() {
            return links.trouble.clone();
        }
        // One batch is accepted whole, however large.
        (waiting > 0 && waiting + keys > KEYS_MAX).then(|| {
            let message = format!("the redis backend has {waiting} keys waiting already: try again later");
            Error::new(KVKEEP_ERR_LIMIT, message)
        })
    }
}
