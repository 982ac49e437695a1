//! A request that a plug-in owes an answer to, with the arrays that the plug-in reads and writes meanwhile.

use std::time::Instant;

use super::vtable::{BackendKey, BackendObject};
use crate::arena::Buffer;
use crate::error::Error;
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::l2::object_header::{HEADER_BYTES, Header};
use crate::l2::{LoadRequest, LookupRequest, Reply, StoreRequest};

/// Forgetting the objects of a space that nobody here knows: list, remove, list again.
pub(super) struct Sweep {
    pub(super) space: Option<SpaceTag>,
    pub(super) cursor: u64,
    /// Objects removed so far.
    pub(super) removed: u64,
    pub(super) reply: Reply<u64>,
}

/// The continuation of a removal.
pub(super) enum AfterRemoval {
    Reply(Reply<u64>),
    Sweep(Sweep),
}

/// The waiter for a request.
pub(super) enum Owed {
    /// The lookup, and for each key whether it was being removed when it was asked for.
    Lookup(LookupRequest, Vec<bool>),
    Load(Vec<LoadRequest>),
    Store(Vec<StoreRequest>),
    Remove(Vec<ObjectKey>, AfterRemoval),
    List(Sweep),
    Usage,
    Health,
    /// Its waiter was answered that it took too long. The arrays stay until the plug-in answers, and the keys of a removal count as
    /// being removed.
    GivenUp(Vec<ObjectKey>),
}

/// One request. The arrays are the plug-in's to use until it answers; vectors, since what they own stays where it is when they move.
pub(super) struct OpenRequest {
    pub(super) owed: Owed,
    pub(super) until: Instant,
    keys: Vec<BackendKey>,
    objects: Vec<BackendObject>,
    headers: Vec<Header>,
}

// SAFETY: the pointers in `objects` point into `headers` and into buffers that `owed` owns.
unsafe impl Send for OpenRequest {}

/// A key as a plug-in sees it.
pub(super) fn foreign_key(key: &ObjectKey) -> BackendKey {
    BackendKey { space: key.space.0, key: key.key }
}

/// A key that a plug-in named.
pub(super) fn own_key(key: &BackendKey) -> ObjectKey {
    ObjectKey { space: SpaceTag(key.space), key: key.key }
}

impl Owed {
    /// How many keys or objects it is about.
    pub(super) fn len(&self) -> usize {
        match self {
            Owed::Lookup(lookup, _) => lookup.keys.len(),
            Owed::Load(loads) => loads.len(),
            Owed::Store(stores) => stores.len(),
            Owed::Remove(keys, _) | Owed::GivenUp(keys) => keys.len(),
            Owed::List(_) | Owed::Usage | Owed::Health => 0,
        }
    }

    /// When its waiter gives it up, where the waiter says so.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Owed::Lookup(lookup, _) => Some(lookup.deadline),
            Owed::Load(loads) => loads.iter().map(|load| load.deadline).min(),
            Owed::Store(stores) => stores.iter().map(|store| store.deadline).min(),
            Owed::Remove(..) | Owed::List(_) | Owed::Usage | Owed::Health | Owed::GivenUp(_) => None,
        }
    }

    /// Answers the waiter with an error.
    pub(super) fn fail(self, error: &Error) {
        match self {
            Owed::Lookup(lookup, _) => lookup.reply.send(Err(error.clone())),
            Owed::Load(loads) => {
                loads.into_iter().for_each(|load| load.sink.loaded(load.index, load.buffer, Err(error.clone())));
            }
            Owed::Store(stores) => stores.into_iter().for_each(|store| store.answer(Err(error.clone()))),
            Owed::Remove(_, AfterRemoval::Reply(reply)) => reply.send(Err(error.clone())),
            Owed::Remove(_, AfterRemoval::Sweep(sweep)) | Owed::List(sweep) => sweep.reply.send(Err(error.clone())),
            Owed::Usage | Owed::Health | Owed::GivenUp(_) => {}
        }
    }
}

fn object(key: &ObjectKey, header: &mut Header, buffer: &Buffer) -> BackendObject {
    BackendObject {
        key: foreign_key(key),
        header: (&raw mut *header).cast(),
        data: buffer.as_ptr().cast(),
        size: buffer.len() as u64,
        reserved: [0; 2],
    }
}

impl OpenRequest {
    /// A request with its arrays.
    pub(super) fn new(owed: Owed, until: Instant) -> OpenRequest {
        let (mut keys, mut objects, mut headers) = (Vec::new(), Vec::new(), Vec::new());
        match &owed {
            Owed::Lookup(LookupRequest { keys: own, .. }, _) | Owed::Remove(own, _) => {
                keys = own.iter().map(foreign_key).collect();
            }
            Owed::Load(loads) => {
                headers = vec![Header([0; HEADER_BYTES]); loads.len()];
                let pairs = loads.iter().zip(&mut headers);
                objects = pairs.map(|(load, header)| object(&load.key, header, &load.buffer)).collect();
            }
            Owed::Store(stores) => {
                headers = stores.iter().map(|store| store.header.seal(store.buffer.bytes())).collect();
                let pairs = stores.iter().zip(&mut headers);
                objects = pairs.map(|(store, header)| object(&store.key, header, &store.buffer)).collect();
            }
            // The tag stands in the one key.
            Owed::List(Sweep { space: Some(space), .. }) => {
                let key = Key { hash: [0; 32], rank: 0, group: 0 };
                keys.push(BackendKey { space: space.0, key });
            }
            Owed::List(_) | Owed::Usage | Owed::Health | Owed::GivenUp(_) => {}
        }
        OpenRequest { owed, until, keys, objects, headers }
    }

    /// The keys for the plug-in, which stay in place when the request moves.
    pub(super) fn keys(&self) -> *const BackendKey {
        self.keys.as_ptr()
    }

    /// The tag of the space to list, NULL for all.
    pub(super) fn space(&self) -> *const u8 {
        self.keys.first().map_or(std::ptr::null(), |key| key.space.as_ptr())
    }

    /// The objects for the plug-in, which stay in place when the request moves.
    pub(super) fn objects(&self) -> *const BackendObject {
        self.objects.as_ptr()
    }

    /// The waiter, and the headers that a load has read.
    pub(super) fn into_parts(self) -> (Owed, Vec<Header>) {
        (self.owed, self.headers)
    }

    /// The number of payloads that the plug-in reads or writes.
    pub(super) fn object_count(&self) -> usize {
        self.objects.len()
    }

    /// Takes the waiter out, and keeps the arrays.
    pub(super) fn take_waiter(&mut self) -> Owed {
        let keys = if let Owed::Remove(keys, _) = &self.owed { keys.clone() } else { Vec::new() };
        std::mem::replace(&mut self.owed, Owed::GivenUp(keys))
    }
}
