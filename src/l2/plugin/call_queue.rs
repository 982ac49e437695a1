//! Calls that wait for a thread of the plug-in, and keys that are being removed meanwhile.

use std::collections::VecDeque;
use std::time::Instant;

use hashbrown::HashMap;

use super::open_request::Owed;
use crate::error::{Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_LIMIT};
use crate::key::ObjectKey;
use crate::l2::StoreRequest;

/// Most keys waiting in the queue.
const QUEUE_MAX: usize = 1 << 16;

/// One call to be made.
pub(super) enum PluginCall {
    /// A request, which is owed an answer.
    Request(Owed),
    /// Keys were used.
    Touch(Vec<ObjectKey>),
    /// Keys have a pin less.
    Unpin(Vec<ObjectKey>),
}

/// The queue of one plug-in.
pub(super) struct CallQueue {
    calls: VecDeque<PluginCall>,
    /// Most objects that the plug-in loads and stores at once.
    depth: usize,
    /// Objects of loads and stores that were popped and not released.
    in_hand: usize,
    /// The number of keys in `calls`.
    keys: usize,
    /// Removals of a key that are not answered. Until they are, the key is absent, and stores of it wait.
    removing: HashMap<ObjectKey, u32>,
    /// Stores of keys that are being removed.
    held: Vec<StoreRequest>,
    closing: bool,
}

impl PluginCall {
    /// Whether it may be made before loads, stores and removals that were queued earlier: it changes no object.
    fn may_overtake(&self) -> bool {
        match self {
            PluginCall::Request(owed) => matches!(owed, Owed::Lookup(..) | Owed::Usage | Owed::Health),
            PluginCall::Touch(_) | PluginCall::Unpin(_) => true,
        }
    }

    fn len(&self) -> usize {
        match self {
            PluginCall::Request(owed) => owed.len(),
            PluginCall::Touch(keys) | PluginCall::Unpin(keys) => keys.len(),
        }
    }
}

impl CallQueue {
    pub(super) fn new(depth: usize) -> CallQueue {
        CallQueue {
            calls: VecDeque::new(),
            depth,
            in_hand: 0,
            keys: 0,
            removing: HashMap::new(),
            held: Vec::new(),
            closing: false,
        }
    }

    /// Queues a call. Refused when the plug-in is closed, or when too many keys wait already; pins are always taken off.
    pub(super) fn push(&mut self, call: PluginCall) -> std::result::Result<(), (PluginCall, Error)> {
        if self.closing {
            return Err((call, Error::new(KVKEEP_ERR_CLOSED, "the plug-in is closed")));
        }
        let keys = call.len();
        if self.keys > 0 && self.keys + keys > QUEUE_MAX && !matches!(call, PluginCall::Unpin(_)) {
            let message = format!("the plug-in has {} keys waiting already: try again later", self.keys);
            return Err((call, Error::new(KVKEEP_ERR_LIMIT, message)));
        }
        if let PluginCall::Request(Owed::Remove(keys, _)) = &call {
            keys.iter().for_each(|key| *self.removing.entry(*key).or_default() += 1);
        }
        self.keys += keys;
        self.calls.push_back(call);
        Ok(())
    }

    /// How many objects the plug-in may be given. A plug-in that is being closed gets all that is queued.
    fn room(&self) -> usize {
        if self.closing { usize::MAX } else { self.depth.saturating_sub(self.in_hand) }
    }

    /// The place of the next call that may be made.
    fn next(&self) -> Option<usize> {
        let first = self.calls.front()?;
        let waits = matches!(first, PluginCall::Request(Owed::Load(_) | Owed::Store(_))) && self.room() == 0;
        if waits { self.calls.iter().position(PluginCall::may_overtake) } else { Some(0) }
    }

    /// Whether `pop` has a call to give.
    pub(super) fn has_next(&self) -> bool {
        self.next().is_some()
    }

    /// The next call, of at most `batch` objects, and no more than the plug-in has room for, where it has payloads: the caller releases
    /// them. Stores that stand one after another become one call; those of keys that are being removed are kept back.
    pub(super) fn pop(&mut self, batch: usize) -> Option<PluginCall> {
        let batch = batch.min(self.room());
        let mut call = self.calls.remove(self.next()?)?;
        self.keys -= call.len();
        match &mut call {
            PluginCall::Request(Owed::Store(stores)) => {
                while stores.len() < batch
                    && let Some(PluginCall::Request(Owed::Store(more))) = self.calls.front_mut()
                {
                    self.keys -= more.len();
                    stores.append(more);
                    self.calls.pop_front();
                }
                let removing = &self.removing;
                self.held.extend(stores.extract_if(.., |store| removing.contains_key(&store.key)));
                if stores.len() > batch {
                    let rest = stores.split_off(batch);
                    self.keys += rest.len();
                    self.calls.push_front(PluginCall::Request(Owed::Store(rest)));
                }
            }
            PluginCall::Request(Owed::Load(loads)) if loads.len() > batch => {
                let rest = loads.split_off(batch);
                self.keys += rest.len();
                self.calls.push_front(PluginCall::Request(Owed::Load(rest)));
            }
            _ => {}
        }
        if let PluginCall::Request(owed @ (Owed::Load(_) | Owed::Store(_))) = &call {
            self.in_hand += owed.len();
        }
        Some(call)
    }

    /// The plug-in has so many objects less in hand. True if calls wait.
    pub(super) fn release(&mut self, objects: usize) -> bool {
        self.in_hand = self.in_hand.saturating_sub(objects);
        objects > 0 && !self.calls.is_empty()
    }

    /// Takes out the loads and stores whose deadline passed while they waited for room or for a removal.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Owed> {
        let mut late = vec![Owed::Store(self.held.extract_if(.., |store| store.deadline <= now).collect())];
        for call in &mut self.calls {
            match call {
                PluginCall::Request(Owed::Load(loads)) => {
                    late.push(Owed::Load(loads.extract_if(.., |load| load.deadline <= now).collect()));
                }
                PluginCall::Request(Owed::Store(stores)) => {
                    late.push(Owed::Store(stores.extract_if(.., |store| store.deadline <= now).collect()));
                }
                _ => {}
            }
        }
        self.keys -= late.iter().skip(1).map(Owed::len).sum::<usize>();
        late
    }

    /// Whether loads or stores wait that `take_late` may have to take out.
    pub(super) fn has_waiting(&self) -> bool {
        !self.calls.is_empty() || !self.held.is_empty()
    }

    /// Whether a key is being removed.
    pub(super) fn is_being_removed(&self, key: &ObjectKey) -> bool {
        self.removing.contains_key(key)
    }

    /// A removal is over: stores that waited for it are called. True if there are any.
    pub(super) fn end_removal(&mut self, keys: &[ObjectKey]) -> bool {
        for key in keys {
            if let Some(count) = self.removing.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.removing.remove(key);
                }
            }
        }
        let removing = &self.removing;
        let free: Vec<StoreRequest> = self.held.extract_if(.., |store| !removing.contains_key(&store.key)).collect();
        let any = !free.is_empty();
        if any {
            self.keys += free.len();
            self.calls.push_back(PluginCall::Request(Owed::Store(free)));
        }
        any
    }

    /// Refuses further calls. Those in the queue are still made.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it refuses calls.
    pub(super) fn is_closed(&self) -> bool {
        self.closing
    }

    /// The calls, and the stores that wait for a removal, that nobody will make any more.
    pub(super) fn take_rest(&mut self) -> Vec<Owed> {
        let mut rest = vec![Owed::Store(std::mem::take(&mut self.held))];
        rest.extend(self.calls.drain(..).filter_map(|call| match call {
            PluginCall::Request(owed) => Some(owed),
            PluginCall::Touch(_) | PluginCall::Unpin(_) => None,
        }));
        rest
    }
}
