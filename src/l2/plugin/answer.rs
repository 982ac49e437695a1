//! A plug-in's answer: checked against its request, then passed on to the waiter.

use super::call_queue::PluginCall;
use super::foreign_struct::{array, read, text};
use super::open_request::{AfterRemoval, OpenRequest, Owed, Sweep, own_key};
use super::plugin_state::PluginState;
use super::vtable::{BackendAnswer, BackendKey};
use crate::abi::KVKEEP_KEYS_MAX;
use crate::error::{
    Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_EXISTS, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK,
    Result, Status,
};
use crate::key::ObjectKey;
use crate::l2::object_header::Header;
use crate::l2::{Change, Found, Health, LoadRequest, LookupRequest, StoreRequest, Stored, Usage};

/// Most bytes of a plug-in's message.
const MESSAGE_MAX: usize = 512;

/// The arrays of an answer, checked.
#[derive(Default)]
struct Items<'a> {
    statuses: Option<&'a [i32]>,
    sizes: Option<&'a [u64]>,
    message: String,
}

impl PluginState {
    /// Ends a request by the answer that its plug-in gave. Returns an error if the answer is none; the request has ended all the same.
    pub(super) fn end(&self, request: OpenRequest, answer: *const BackendAnswer) -> Result<()> {
        let count = request.owed.len();
        let checked = read(answer, "answer").and_then(|answer| Ok((answer, Items::of(&answer, count)?)));
        let (owed, headers) = request.into_parts();
        let (answer, items) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                self.refuse(&format!("gave an answer that is none ({})", error.message));
                let failure = Error::new(KVKEEP_ERR_IO, format!("the plug-in {} gave no valid answer", self.name));
                self.fail(owed, &failure);
                return Err(error);
            }
        };
        if answer.status != KVKEEP_OK as i32 {
            let failure = self.failure(answer.status, &items.message);
            self.fail(owed, &failure);
            return Ok(());
        }
        match owed {
            Owed::Lookup(lookup, removing) => self.found(lookup, &removing, &items),
            Owed::Load(loads) => self.loaded(loads, headers, &items),
            Owed::Store(stores) => self.stored(stores, &items),
            Owed::Remove(keys, after) => self.removed(&keys, after, &items),
            Owed::List(sweep) => self.listed(sweep, &answer),
            Owed::Usage => {
                let BackendAnswer { objects, bytes, capacity_bytes: capacity, evictions: evicted, .. } = answer;
                self.set_usage(Some(Usage { objects, bytes, capacity, evicted, ..Usage::default() }));
            }
            Owed::Health if items.message.is_empty() => self.set_health(Health::Good),
            Owed::Health => self.set_health(Health::Noted(items.message)),
            Owed::GivenUp(keys) => drop(self.note_removed(&keys, &items)),
        }
        Ok(())
    }

    /// Ends a request by an error.
    pub(super) fn fail(&self, owed: Owed, error: &Error) {
        match &owed {
            Owed::Remove(keys, _) | Owed::GivenUp(keys) => self.end_removal(keys),
            Owed::Usage => self.set_usage(None),
            Owed::Health => self.set_health(Health::Bad(error.message.clone())),
            _ => {}
        }
        owed.fail(error);
    }

    /// The error that a plug-in's status stands for.
    fn failure(&self, status: i32, message: &str) -> Error {
        let known = Status::from_number(status).filter(|_| status < 0);
        let Some(status) = known else {
            self.refuse(&format!("answered with the status {status}, which is no error"));
            return Error::new(KVKEEP_ERR_IO, format!("the plug-in {} answered with the status {status}", self.name));
        };
        // INTERNAL is for bugs of kvkeep.
        let status = if status == KVKEEP_ERR_INTERNAL { KVKEEP_ERR_IO } else { status };
        let message =
            if message.is_empty() { format!("it answered {status:?} and no reason") } else { message.to_owned() };
        Error::new(status, format!("the plug-in {}: {message}", self.name))
    }

    /// Ends a request about nothing.
    pub(super) fn end_empty(&self, owed: Owed) {
        match owed {
            Owed::Lookup(lookup, _) => lookup.reply.send(Ok(Vec::new())),
            Owed::Remove(keys, after) => self.removed(&keys, after, &Items::default()),
            other => drop(other),
        }
    }

    fn found(&self, lookup: LookupRequest, removing: &[bool], items: &Items<'_>) {
        let mut unwanted = Vec::new();
        let mut found = Vec::with_capacity(lookup.keys.len());
        for (i, key) in lookup.keys.iter().enumerate() {
            let (status, size) = (items.status(i), items.sizes.map_or(0, |sizes| sizes[i]));
            let there = status == KVKEEP_OK as i32;
            if !there && status != KVKEEP_ERR_NOT_FOUND as i32 {
                // The key counts as absent.
                drop(self.failure(status, ""));
            } else if there && (size == 0 || size > self.arena_bytes) {
                self.refuse(&format!("found an object of {size} bytes, which L1 cannot hold"));
            }
            let usable =
                there && size > 0 && size <= self.arena_bytes && !removing.get(i).is_some_and(|removing| *removing);
            if there && !usable {
                unwanted.push(*key);
            }
            found.push(if usable { Found::Present(size) } else { Found::Absent });
        }
        let present = found.iter().filter(|found| matches!(found, Found::Present(_))).count();
        self.add_pins((present + unwanted.len()) as u64);
        if !unwanted.is_empty() {
            self.unpin(&unwanted);
        }
        lookup.reply.send(Ok(found));
    }

    fn loaded(&self, loads: Vec<LoadRequest>, headers: Vec<Header>, items: &Items<'_>) {
        for (i, (load, header)) in loads.into_iter().zip(headers).enumerate() {
            let (wanted, status) = (load.buffer.len() as u64, items.status(i));
            let read = items.sizes.map_or(wanted, |sizes| sizes[i]);
            let result = if status == KVKEEP_ERR_NOT_FOUND as i32 {
                self.notify(Change::Vanished, &load.key, wanted);
                let message = format!("the plug-in {} has no object {} any more", self.name, load.key.key);
                Err(Error::new(KVKEEP_ERR_NOT_FOUND, message))
            } else if status != KVKEEP_OK as i32 {
                Err(self.failure(status, &items.message))
            } else if read != wanted {
                let message = format!("the plug-in {} has {read} bytes of an object of {wanted}", self.name);
                Err(Error::new(KVKEEP_ERR_CORRUPT, message))
            } else {
                Ok(header)
            };
            load.sink.loaded(load.index, load.buffer, result);
        }
    }

    fn stored(&self, stores: Vec<StoreRequest>, items: &Items<'_>) {
        for (i, store) in stores.into_iter().enumerate() {
            let status = items.status(i);
            let result = if status == KVKEEP_OK as i32 {
                self.notify(Change::Appeared, &store.key, store.buffer.len() as u64);
                Ok(Stored::Written)
            } else if status == KVKEEP_ERR_EXISTS as i32 {
                Ok(Stored::Already)
            } else {
                Err(self.failure(status, &items.message))
            };
            store.answer(result);
        }
    }

    /// Ends the removal of keys. Returns the number of objects that were there, and the first error.
    fn note_removed(&self, keys: &[ObjectKey], items: &Items<'_>) -> (u64, Option<Error>) {
        let (mut count, mut error) = (0, None);
        for (i, key) in keys.iter().enumerate() {
            let status = items.status(i);
            if status == KVKEEP_OK as i32 {
                count += 1;
                self.notify(Change::Vanished, key, 0);
            } else if status != KVKEEP_ERR_NOT_FOUND as i32 {
                error.get_or_insert_with(|| self.failure(status, &items.message));
            }
        }
        self.end_removal(keys);
        (count, error)
    }

    fn removed(&self, keys: &[ObjectKey], after: AfterRemoval, items: &Items<'_>) {
        let (count, error) = self.note_removed(keys, items);
        match (after, error) {
            (AfterRemoval::Reply(reply), error) => reply.send(error.map_or(Ok(count), Err)),
            (AfterRemoval::Sweep(sweep), Some(error)) => sweep.reply.send(Err(error)),
            (AfterRemoval::Sweep(sweep), None) => self.sweep_on(Sweep { removed: sweep.removed + count, ..sweep }),
        }
    }

    /// Removes what was listed, then lists on.
    fn listed(&self, sweep: Sweep, answer: &BackendAnswer) {
        let refused = |why: &str| {
            self.refuse(why);
            Err(Error::new(KVKEEP_ERR_IO, format!("the plug-in {} {why}", self.name)))
        };
        if answer.key_count > KVKEEP_KEYS_MAX {
            return sweep.reply.send(refused(&format!("listed {} keys at once", answer.key_count)));
        }
        let listed: &[BackendKey] = match array(answer.keys, answer.key_count, "answer->keys") {
            Ok(listed) => listed.unwrap_or_default(),
            Err(error) => return sweep.reply.send(refused(&format!("listed nothing readable ({})", error.message))),
        };
        if answer.next_cursor != 0 && answer.next_cursor == sweep.cursor {
            return sweep.reply.send(refused("lists the same objects again and again"));
        }
        let keys: Vec<ObjectKey> = listed.iter().map(own_key).collect();
        if sweep.space.is_some_and(|space| keys.iter().any(|key| key.space != space)) {
            return sweep.reply.send(refused("listed objects of a space that it was not asked for"));
        }
        let sweep = Sweep { cursor: answer.next_cursor, ..sweep };
        if keys.is_empty() {
            return self.sweep_on(sweep);
        }
        self.push(PluginCall::Request(Owed::Remove(keys, AfterRemoval::Sweep(sweep))));
    }

    /// Lists on, unless that was all.
    fn sweep_on(&self, sweep: Sweep) {
        match sweep.cursor {
            0 => sweep.reply.send(Ok(sweep.removed)),
            _ => self.push(PluginCall::Request(Owed::List(sweep))),
        }
    }
}

impl<'a> Items<'a> {
    fn of(answer: &BackendAnswer, count: usize) -> Result<Items<'a>> {
        let given = !answer.statuses.is_null() || !answer.sizes.is_null();
        if answer.status == KVKEEP_OK as i32 && count > 0 && given && answer.count != count {
            return Err(Error::invalid(format!("count is {}, the request has {count}", answer.count)));
        }
        let read = if answer.status == KVKEEP_OK as i32 { count } else { 0 };
        Ok(Items {
            statuses: array(answer.statuses, read, "answer->statuses")?,
            sizes: array(answer.sizes, read, "answer->sizes")?,
            message: text(answer.message, MESSAGE_MAX),
        })
    }

    /// The status of one key or object.
    fn status(&self, index: usize) -> i32 {
        self.statuses.map_or(KVKEEP_OK as i32, |statuses| statuses[index])
    }
}
