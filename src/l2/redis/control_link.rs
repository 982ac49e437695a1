//! The thread of the connection that no value goes over: lookups, deletions, uses, and what the server says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::active::ask_head;
use super::back_off::BackOff;
use super::object_name::{Manifest, StoredHead, name_pattern, object_name, parse_name, part_name};
use super::outbox::Outbox;
use super::redis_connection::RedisConnection;
use super::redis_node::{ControlTurn, LinkKind, RedisNode};
use super::redis_state::closed;
use super::requests::{KeySweep, NodeDelete};
use super::resp::RespValue;
use super::server_error::{Consequence, server_error};
use super::server_usage::ask_usage;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{Change, Found};

/// How often the server is asked how full it is, which also shows whether it is there.
const USAGE_EVERY: Duration = Duration::from_secs(5);

/// The thread's connection and its notes.
struct ControlLink<'a> {
    node: &'a Arc<RedisNode>,
    connection: RedisConnection,
    usage_due: Instant,
}

/// The body of the control thread, which begins with a connection. Returns once the node is closed and nothing waits.
pub fn run_control_link(node: &Arc<RedisNode>, first: RedisConnection) {
    let mut back_off = BackOff::default();
    let mut next = Some(first);
    // A turn whose connection broke is taken again once.
    let mut unfinished = ControlTurn::default();
    loop {
        let opened = next.take().map_or_else(|| RedisConnection::open(&node.state.options, &node.address), Ok);
        match opened {
            Ok(connection) => {
                node.connected(LinkKind::Control);
                let mut thread = ControlLink { node, connection, usage_due: Instant::now() };
                let Err(error) = thread.run(&mut unfinished, &mut back_off) else { return };
                node.disconnected(LinkKind::Control, &error);
            }
            Err(error) => {
                node.connect_failed(LinkKind::Control, &error);
                node.fail_turn(std::mem::take(&mut unfinished), &error);
            }
        }
        let pause = back_off.pause();
        if pause > 0 && node.closing().is_none() {
            node.bell(0).sleep(pause);
        }
        if node.closing().is_some() {
            node.fail_turn(std::mem::take(&mut unfinished), &closed());
            return node.refuse_waiting(LinkKind::Control, &closed());
        }
    }
}

impl ControlLink<'_> {
    /// Takes turns until the node is closed. After an error the connection is of no use; `unfinished` has the turn that it broke in,
    /// unless that was the second time.
    fn run(&mut self, unfinished: &mut ControlTurn, back_off: &mut BackOff) -> Result<()> {
        let again = std::mem::take(unfinished);
        if !again.is_empty() {
            let mut turn = again;
            if let Err(error) = self.take_turn(&mut turn) {
                self.node.fail_turn(turn, &error);
                return Err(error);
            }
        }
        loop {
            let mut turn = self.node.next_turn();
            refuse_late(&mut turn);
            if !turn.is_empty() {
                if let Err(error) = self.take_turn(&mut turn) {
                    *unfinished = turn;
                    return Err(error);
                }
                back_off.worked();
                continue;
            }
            if Instant::now() >= self.usage_due {
                self.usage_due = Instant::now() + USAGE_EVERY;
                let until = self.until();
                let usage = ask_usage(&mut self.connection, until)?;
                self.node.note_usage(&usage);
                continue;
            }
            if self.node.closing().is_some() {
                return Ok(());
            }
            self.connection.wait(Some(self.node.bell(0).fd()), self.usage_due)?;
            self.node.bell(0).clear();
            self.connection.check_quiet()?;
        }
    }

    /// When the server's silence is too long.
    fn until(&self) -> Instant {
        Instant::now() + self.node.state.options.timeout
    }

    /// Carries a turn out and empties it. After an error it holds what is not answered.
    fn take_turn(&mut self, turn: &mut ControlTurn) -> Result<()> {
        let options = &self.node.state.options;
        let outbox = &mut self.connection.outbox;
        let looked_up = turn.lookups.iter().flat_map(|lookup| lookup.keys.iter().map(|(_, key)| *key));
        let names: Vec<(ObjectKey, String)> = looked_up.map(|key| (key, object_name(&options.prefix, &key))).collect();
        names.iter().for_each(|(_, name)| ask_head(outbox, name));
        let doomed: Vec<String> = turn.deletes.iter().map(|delete| object_name(&options.prefix, &delete.key)).collect();
        for name in &doomed {
            ask_head(outbox, name);
            outbox.command(&[b"UNLINK", name.as_bytes()]);
        }
        let touches = add_touches(outbox, &turn.touches, &options.prefix, options.ttl);
        if let Some(sweep) = &turn.sweep {
            let pattern = name_pattern(&options.prefix, sweep.space);
            outbox.command(&[b"SCAN", sweep.cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"]);
        }
        let count = names.len() + 2 * doomed.len() + touches + usize::from(turn.sweep.is_some());
        let until = self.until();
        let mut replies = self.connection.call(count, until)?.into_iter();

        let mut heads: Vec<Result<StoredHead>> = Vec::with_capacity(names.len());
        for (key, _) in &names {
            heads.push(self.head(replies.next(), key)?);
        }
        let mut removed: Vec<Result<(i64, StoredHead)>> = Vec::with_capacity(doomed.len());
        for delete in &turn.deletes {
            let head = self.head(replies.next(), &delete.key)?;
            let count = self.number(replies.next(), "UNLINK")?;
            removed.push(count.map(|count| (count, head.unwrap_or(StoredHead::Absent))));
        }
        (0..touches).for_each(|_| drop(replies.next()));
        let scanned = match (turn.sweep.is_some(), replies.next()) {
            (true, Some(reply)) => Some(self.scanned(reply)?),
            _ => None,
        };

        let whole = self.check_parts(&names, &heads)?;
        let orphans = doomed.iter().zip(&removed).filter_map(|(name, removed)| match removed {
            Ok((_, StoredHead::Parts(manifest))) => Some((name.as_str(), *manifest)),
            _ => None,
        });
        self.unlink_parts(orphans.collect())?;
        let mut found = heads.into_iter().zip(whole).map(|(head, whole)| head.map(|head| found(head, whole)));
        for lookup in turn.lookups.drain(..) {
            let answers: Result<Vec<Found>> = found.by_ref().take(lookup.keys.len()).collect();
            match answers {
                Ok(answers) => lookup.answer(answers.into_iter()),
                Err(error) => lookup.fail(error),
            }
        }
        for (NodeDelete { key, batch }, removed) in turn.deletes.drain(..).zip(removed) {
            match removed {
                Ok((count, head)) => {
                    batch.removed.fetch_add(u64::from(count > 0), Ordering::Relaxed);
                    if count > 0 {
                        self.node.state.notify(Change::Vanished, &key, length(&head));
                    }
                }
                Err(error) => batch.fail(error),
            }
            drop(batch);
            self.node.change_ended(&key);
        }
        turn.touches.clear();
        if let (Some(sweep), Some(scanned)) = (turn.sweep.take(), scanned) {
            self.go_on_sweeping(sweep, scanned)?;
        }
        Ok(())
    }

    /// Sorts a server's error: one that is about a request, and one after which the connection is of no use.
    fn refused(&self, text: &str, command: &str) -> Result<Error> {
        let (error, consequence) = server_error(text, command);
        match consequence {
            Consequence::Nothing => Ok(error),
            Consequence::Pause => {
                self.node.pause(&error);
                Ok(error)
            }
            Consequence::Reconnect => Err(error),
        }
    }

    fn head(&self, reply: Option<RespValue>, key: &ObjectKey) -> Result<Result<StoredHead>> {
        let head = match reply {
            Some(RespValue::Bulk(bytes)) => StoredHead::parse(&bytes, key),
            Some(RespValue::Failure(text)) if text.starts_with("WRONGTYPE") => StoredHead::Foreign,
            Some(RespValue::Failure(text)) => return Ok(Err(self.refused(&text, "GETRANGE")?)),
            _ => StoredHead::Absent,
        };
        if head == StoredHead::Foreign {
            self.node.state.found_foreign(key);
        }
        Ok(Ok(head))
    }

    fn number(&self, reply: Option<RespValue>, command: &str) -> Result<Result<i64>> {
        match reply {
            Some(RespValue::Failure(text)) => Ok(Err(self.refused(&text, command)?)),
            reply => Ok(Ok(reply.and_then(|reply| reply.as_number()).unwrap_or(0))),
        }
    }

    /// Whether each object is there with all of its parts.
    fn check_parts(&mut self, names: &[(ObjectKey, String)], heads: &[Result<StoredHead>]) -> Result<Vec<bool>> {
        let mut whole = vec![true; names.len()];
        let mut asked: Vec<(usize, i64)> = Vec::new();
        for (place, ((_, name), head)) in names.iter().zip(heads).enumerate() {
            let Ok(StoredHead::Parts(manifest)) = head else { continue };
            for number in 0..manifest.parts() {
                let part = part_name(name, manifest.nonce, number);
                self.connection.outbox.command(&[b"STRLEN", part.as_bytes()]);
                asked.push((place, manifest.range(number).len() as i64));
            }
        }
        let until = self.until();
        let replies = self.connection.call(asked.len(), until)?;
        for ((place, length), reply) in asked.into_iter().zip(replies) {
            whole[place] &= reply == RespValue::Integer(length);
        }
        Ok(whole)
    }

    fn unlink_parts(&mut self, objects: Vec<(&str, Manifest)>) -> Result<()> {
        let mut count = 0;
        for (name, manifest) in objects {
            for number in 0..manifest.parts() {
                let part = part_name(name, manifest.nonce, number);
                self.connection.outbox.command(&[b"UNLINK", part.as_bytes()]);
                count += 1;
            }
        }
        let until = self.until();
        self.connection.call(count, until).map(drop)
    }

    /// The cursor and the keys that a SCAN gave.
    fn scanned(&self, reply: RespValue) -> Result<Result<(String, Vec<Vec<u8>>)>> {
        if let RespValue::Failure(text) = &reply {
            return Ok(Err(self.refused(text, "SCAN")?));
        }
        let mut keys = Vec::new();
        let mut cursor = "0".to_owned();
        if let Some([next, found]) = reply.as_list() {
            next.as_text().unwrap_or("0").clone_into(&mut cursor);
            for key in found.as_list().unwrap_or_default() {
                if let RespValue::Bulk(key) = key {
                    keys.push(key.clone());
                }
            }
        }
        Ok(Ok((cursor, keys)))
    }

    /// Deletes what a SCAN found, and queues the rest of the walk.
    fn go_on_sweeping(&mut self, sweep: KeySweep, scanned: Result<(String, Vec<Vec<u8>>)>) -> Result<()> {
        let (cursor, keys) = match scanned {
            Ok(scanned) => scanned,
            Err(error) => {
                sweep.batch.fail(error);
                return Ok(());
            }
        };
        let prefix = &self.node.state.options.prefix;
        let ours: Vec<(ObjectKey, bool, Vec<u8>)> = keys
            .into_iter()
            .filter_map(|name| parse_name(prefix, &name).map(|(key, is_part)| (key, is_part, name)))
            .filter(|(key, ..)| sweep.space.is_none_or(|space| space == key.space))
            .collect();
        ours.iter().for_each(|(.., name)| self.connection.outbox.command(&[b"UNLINK", name]));
        let until = self.until();
        let replies = match self.connection.call(ours.len(), until) {
            Ok(replies) => replies,
            Err(error) => {
                sweep.batch.fail(error.clone());
                return Err(error);
            }
        };
        for ((key, is_part, _), reply) in ours.into_iter().zip(replies) {
            match self.number(Some(reply), "UNLINK")? {
                Ok(count) if count > 0 && !is_part => {
                    sweep.batch.removed.fetch_add(1, Ordering::Relaxed);
                    self.node.state.notify(Change::Vanished, &key, 0);
                }
                Ok(_) => {}
                Err(error) => sweep.batch.fail(error),
            }
        }
        if cursor != "0" {
            self.node.sweep(KeySweep { cursor, ..sweep });
        }
        Ok(())
    }
}

/// Fails the lookups of a turn whose deadline has passed.
fn refuse_late(turn: &mut ControlTurn) {
    let now = Instant::now();
    let (late, rest): (Vec<_>, Vec<_>) = turn.lookups.drain(..).partition(|lookup| now >= lookup.deadline);
    turn.lookups = rest;
    for lookup in late {
        lookup.fail(Error::new(KVKEEP_ERR_TIMEOUT, "the deadline passed before the redis backend came to the lookup"));
    }
}

/// Adds the commands that count as a use of keys. Returns how many they are.
fn add_touches(outbox: &mut Outbox, keys: &[ObjectKey], prefix: &str, ttl: u64) -> usize {
    let names: Vec<String> = keys.iter().map(|key| object_name(prefix, key)).collect();
    let seconds = ttl.to_string();
    match ttl {
        _ if names.is_empty() => 0,
        0 => {
            let command: Vec<&[u8]> =
                std::iter::once(&b"TOUCH"[..]).chain(names.iter().map(|name| name.as_bytes())).collect();
            outbox.command(&command);
            1
        }
        _ => {
            names.iter().for_each(|name| outbox.command(&[b"EXPIRE", name.as_bytes(), seconds.as_bytes()]));
            names.len()
        }
    }
}

fn found(head: StoredHead, whole: bool) -> Found {
    match head {
        StoredHead::Whole(length) => Found::Present(length),
        StoredHead::Parts(manifest) if whole => Found::Present(manifest.length as u64),
        _ => Found::Absent,
    }
}

fn length(head: &StoredHead) -> u64 {
    match head {
        StoredHead::Whole(length) => *length,
        StoredHead::Parts(manifest) => manifest.length as u64,
        StoredHead::Absent | StoredHead::Foreign => 0,
    }
}
