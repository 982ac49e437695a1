//! One load and one store, command by command.

use std::hash::{BuildHasher, RandomState};

use super::object_name::{MANIFEST_BYTES, Manifest, StoredHead, object_name, part_name};
use super::outbox::Outbox;
use super::redis_options::RedisOptions;
use super::redis_state::RedisState;
use super::requests::{QueuedLoad, QueuedStore};
use super::resp::RespValue;
use crate::error::{Error, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, Result};
use crate::l2::object_header::{HEADER_BYTES, Header};
use crate::l2::{Change, Stored};

/// Parts live so long, in milliseconds, unless their manifest is written by then.
const UNLISTED_PART_MS: &[u8] = b"600000";

/// A command of a request, which the server owes an answer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepKind {
    /// The value of a load.
    Value,
    /// A part of it.
    ValuePart(usize),
    /// The head of the object that a store may find there, and the length of a part of that.
    Check,
    CheckPart(usize),
    /// The object, whole, unless something is there; whatever is there; one of its parts; and the manifest.
    SetNew,
    Set,
    SetPart,
    SetManifest,
    /// A command on parts whose answer changes nothing.
    Settle,
    /// ASKING, before a command to a server that has the slot on trial.
    Asking,
}

impl StepKind {
    /// Whether its answer is a value that belongs into a load's buffer.
    pub fn is_value(self) -> bool {
        matches!(self, StepKind::Value | StepKind::ValuePart(_))
    }

    /// The name of its command.
    pub fn command(self) -> &'static str {
        match self {
            StepKind::Value | StepKind::ValuePart(_) => "GET",
            StepKind::Check => "GETRANGE",
            StepKind::CheckPart(_) => "STRLEN",
            StepKind::SetNew | StepKind::Set | StepKind::SetPart | StepKind::SetManifest => "SET",
            StepKind::Settle => "PERSIST, EXPIRE or UNLINK",
            StepKind::Asking => "ASKING",
        }
    }
}

/// Adds the command that asks for the head of an object.
pub fn ask_head(outbox: &mut Outbox, name: &str) {
    let last = (MANIFEST_BYTES - 1).to_string();
    outbox.command(&[b"GETRANGE", name.as_bytes(), b"0", last.as_bytes()]);
}

fn unexpected(kind: StepKind) -> Error {
    Error::new(KVKEEP_ERR_IO, format!("the server answered {} with another kind of reply", kind.command()))
}

/// A load under way.
pub struct ServerLoad {
    pub queued: QueuedLoad,
    name: String,
    header: [u8; HEADER_BYTES],
    manifest: Option<Manifest>,
    /// Commands that are not answered.
    left: usize,
    failed: Option<Error>,
}

impl ServerLoad {
    pub fn begin(queued: QueuedLoad, options: &RedisOptions, outbox: &mut Outbox) -> ServerLoad {
        let name = object_name(&options.prefix, &queued.load.key);
        outbox.command(&[b"GET", name.as_bytes()]);
        ServerLoad { queued, name, header: [0; HEADER_BYTES], manifest: None, left: 1, failed: None }
    }

    /// The places for the rest of a value of which `at` bytes are there.
    pub fn places(&mut self, kind: StepKind, at: usize) -> [&mut [u8]; 2] {
        let payload = self.queued.load.buffer.bytes_mut();
        match (kind, &self.manifest) {
            (StepKind::ValuePart(number), Some(manifest)) => [&mut payload[manifest.range(number)][at..], &mut []],
            _ => [&mut self.header[at.min(HEADER_BYTES)..], &mut payload[at.saturating_sub(HEADER_BYTES)..]],
        }
    }

    /// Whether a value of `length` bytes has the places.
    pub fn expects(&self, kind: StepKind, length: usize) -> bool {
        match (kind, &self.manifest) {
            (StepKind::ValuePart(number), Some(manifest)) => length == manifest.range(number).len(),
            _ => length == HEADER_BYTES + self.queued.load.buffer.len(),
        }
    }

    /// Whether a value of `length` bytes may be a manifest.
    pub fn may_be_manifest(&self, kind: StepKind, length: usize) -> bool {
        kind == StepKind::Value && length == MANIFEST_BYTES
    }

    /// Something else than the object that was looked up is there now.
    pub fn is_another(&mut self) {
        let message =
            format!("there is no object {} of the length that was looked up any more", self.queued.load.key.key);
        self.failed = Some(Error::new(KVKEEP_ERR_NOT_FOUND, message));
    }

    /// Takes the answer to a command: a reply, or none for a value that is in its place or was skipped. True if it was the last one.
    pub fn answered(
        &mut self,
        kind: StepKind,
        reply: Result<Option<RespValue>>,
        state: &RedisState,
        outbox: &mut Outbox,
        mut add: impl FnMut(StepKind),
    ) -> bool {
        self.left -= 1;
        match reply {
            Ok(None) => {}
            Ok(Some(RespValue::Nil)) => self.is_another(),
            Ok(Some(RespValue::Bulk(bytes))) => match StoredHead::parse(&bytes, &self.queued.load.key) {
                StoredHead::Parts(manifest) if manifest.length == self.queued.load.buffer.len() => {
                    self.header = manifest.header.0;
                    self.manifest = Some(manifest);
                    self.left = manifest.parts();
                    for number in 0..manifest.parts() {
                        let name = part_name(&self.name, manifest.nonce, number);
                        outbox.command(&[b"GET", name.as_bytes()]);
                        add(StepKind::ValuePart(number));
                    }
                }
                StoredHead::Foreign => {
                    state.found_foreign(&self.queued.load.key);
                    self.is_another();
                }
                _ => self.is_another(),
            },
            Ok(Some(_)) => self.failed = Some(unexpected(kind)),
            Err(error) => self.failed = Some(error),
        }
        self.left == 0
    }

    /// Why it failed, if it has.
    pub fn failure(&self) -> Option<Error> {
        self.failed.clone()
    }

    /// Answers the load.
    pub fn end(self, state: &RedisState) {
        let load = self.queued.load;
        let result = match self.failed {
            Some(error) => {
                if error.status == KVKEEP_ERR_NOT_FOUND {
                    state.notify(Change::Vanished, &load.key, load.buffer.len() as u64);
                }
                Err(error)
            }
            None => Ok(Header(self.header)),
        };
        load.sink.loaded(load.index, load.buffer, result);
    }
}

/// A store under way.
pub struct ServerStore {
    pub queued: Box<QueuedStore>,
    name: String,
    /// The parts that are written, and those of an older object that is not whole.
    manifest: Option<Manifest>,
    old: Option<Manifest>,
    /// Parts of the older object were found shorter or missing.
    torn: bool,
    /// It was sent whole, to be taken unless something was there.
    sent_new: bool,
    left: usize,
    outcome: Result<Stored>,
}

impl ServerStore {
    /// The store that is `request`, and its first command: a SET where the object is probably not there, else a question.
    pub fn begin(
        queued: Box<QueuedStore>,
        request: u64,
        state: &RedisState,
        outbox: &mut Outbox,
    ) -> (ServerStore, StepKind) {
        let (options, length) = (&state.options, queued.store.buffer.len());
        let name = object_name(&options.prefix, &queued.store.key);
        let outcome = Ok(Stored::Already);
        let sent_new = length <= options.part && state.there.may_send_unasked(length as u64);
        let mut store =
            ServerStore { queued, name, manifest: None, old: None, torn: false, sent_new, left: 1, outcome };
        if sent_new {
            let header = store.queued.store.seal();
            store.set_whole(&header.0, 0..length, request, true, options, outbox);
            return (store, StepKind::SetNew);
        }
        ask_head(outbox, &store.name);
        (store, StepKind::Check)
    }

    /// Takes the reply to a command of `request`, which this is. True if it was the last one.
    pub fn answered(
        &mut self,
        kind: StepKind,
        reply: Result<RespValue>,
        request: u64,
        state: &RedisState,
        outbox: &mut Outbox,
        mut add: impl FnMut(StepKind),
    ) -> bool {
        self.left -= 1;
        let before = self.left;
        let options = &state.options;
        let mut next = |store: &mut ServerStore, kind| {
            store.left += 1;
            add(kind);
        };
        let length = self.queued.store.buffer.len();
        match (kind, reply) {
            (StepKind::Settle | StepKind::Asking, _) => {}
            (StepKind::SetNew, Ok(RespValue::Text(_))) => {
                self.outcome = Ok(Stored::Written);
                state.there.note(false);
            }
            // Something is there: its head tells whether it is the object.
            (StepKind::SetNew, Ok(RespValue::Nil)) => {
                ask_head(outbox, &self.name);
                next(self, StepKind::Check);
            }
            (StepKind::Check, Ok(RespValue::Bulk(bytes))) => {
                let head = StoredHead::parse(&bytes, &self.queued.store.key);
                if head != StoredHead::Absent {
                    state.there.note(true);
                }
                match head {
                    StoredHead::Whole(found) if found == length as u64 => {
                        if options.ttl > 0 {
                            outbox.command(&[b"EXPIRE", self.name.as_bytes(), options.ttl.to_string().as_bytes()]);
                            next(self, StepKind::Settle);
                        }
                    }
                    StoredHead::Parts(old) => {
                        self.old = Some(old);
                        self.torn = old.length != length;
                        for number in 0..old.parts() {
                            outbox.command(&[b"STRLEN", part_name(&self.name, old.nonce, number).as_bytes()]);
                            next(self, StepKind::CheckPart(number));
                        }
                    }
                    head => {
                        if head == StoredHead::Foreign {
                            state.found_foreign(&self.queued.store.key);
                        }
                        // An empty value looks absent, and is refused as present.
                        let only_new = head == StoredHead::Absent && !self.sent_new;
                        self.write(only_new, request, options, outbox, &mut next);
                    }
                }
            }
            (StepKind::CheckPart(number), Ok(RespValue::Integer(found))) => {
                self.torn |= self.old.is_none_or(|old| found != old.range(number).len() as i64);
                if before == 0 && self.torn {
                    self.write(false, request, options, outbox, &mut next);
                }
            }
            (StepKind::Set | StepKind::SetPart | StepKind::SetManifest, Ok(RespValue::Text(_))) => {
                if kind != StepKind::SetPart {
                    self.outcome = Ok(Stored::Written);
                    if let Some(old) = self.old.take() {
                        self.drop_parts(&old, outbox, &mut next);
                    }
                }
                match (kind, self.manifest) {
                    (StepKind::SetPart, Some(manifest)) if before == 0 && self.outcome.is_ok() => {
                        self.set_whole(&manifest.write(), 0..0, request, false, options, outbox);
                        next(self, StepKind::SetManifest);
                    }
                    (StepKind::SetManifest, Some(manifest)) => {
                        for number in 0..manifest.parts() {
                            let name = part_name(&self.name, manifest.nonce, number);
                            let ttl = options.ttl.to_string();
                            match options.ttl {
                                0 => outbox.command(&[b"PERSIST", name.as_bytes()]),
                                _ => outbox.command(&[b"EXPIRE", name.as_bytes(), ttl.as_bytes()]),
                            }
                            next(self, StepKind::Settle);
                        }
                    }
                    _ => {}
                }
            }
            (kind, Ok(_)) => self.outcome = Err(unexpected(kind)),
            (_, Err(error)) => self.outcome = Err(error),
        }
        if self.left == 0
            && self.outcome.is_err()
            && let Some(manifest) = self.manifest.take()
        {
            self.drop_parts(&manifest, outbox, &mut next);
        }
        self.left == 0
    }

    /// Writes the object. `only_new`: if it goes whole, then unless something is there.
    fn write(
        &mut self,
        only_new: bool,
        request: u64,
        options: &RedisOptions,
        outbox: &mut Outbox,
        next: &mut impl FnMut(&mut ServerStore, StepKind),
    ) {
        let (header, length) = (self.queued.store.seal(), self.queued.store.buffer.len());
        if length <= options.part {
            self.set_whole(&header.0, 0..length, request, only_new, options, outbox);
            self.sent_new |= only_new;
            return next(self, if only_new { StepKind::SetNew } else { StepKind::Set });
        }
        let nonce = RandomState::new().hash_one(request);
        let manifest = Manifest { header, length, part: options.part, nonce };
        self.manifest = Some(manifest);
        for number in 0..manifest.parts() {
            let name = part_name(&self.name, nonce, number);
            outbox.set(name.as_bytes(), &[], request, manifest.range(number), &[b"PX", UNLISTED_PART_MS]);
            next(self, StepKind::SetPart);
        }
    }

    /// Adds the command that makes the object be found. `only_new`: unless something is there.
    fn set_whole(
        &self,
        head: &[u8],
        part: std::ops::Range<usize>,
        request: u64,
        only_new: bool,
        options: &RedisOptions,
        outbox: &mut Outbox,
    ) {
        let ttl = options.ttl.to_string();
        let conditions: [&[u8]; 3] = [b"NX", b"EX", ttl.as_bytes()];
        let (from, until) = (if only_new { 0 } else { 1 }, if options.ttl > 0 { 3 } else { 1 });
        outbox.set(self.name.as_bytes(), head, request, part, &conditions[from..until]);
    }

    fn drop_parts(
        &mut self,
        manifest: &Manifest,
        outbox: &mut Outbox,
        next: &mut impl FnMut(&mut ServerStore, StepKind),
    ) {
        for number in 0..manifest.parts() {
            outbox.command(&[b"UNLINK", part_name(&self.name, manifest.nonce, number).as_bytes()]);
            next(self, StepKind::Settle);
        }
    }

    /// Answers the store.
    pub fn end(self, state: &RedisState) {
        let store = self.queued.store;
        state.store_ended(self.outcome.as_ref().err());
        if matches!(self.outcome, Ok(Stored::Written)) {
            state.notify(Change::Appeared, &store.key, store.buffer.len() as u64);
        }
        store.answer(self.outcome);
    }
}
