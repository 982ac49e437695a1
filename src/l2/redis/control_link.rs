//! The thread of the connection that no value goes over: lookups, deletions, uses, and what the server says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::active::ask_head;
use super::back_off::BackOff;
use super::node_queue::{ControlTurn, LinkKind};
use super::object_name::{Manifest, StoredHead, name_pattern, object_name, parse_name, part_name};
use super::outbox::Outbox;
use super::redis_connection::RedisConnection;
use super::redis_node::{NodeRole, RedisNode};
use super::redis_state::closed;
use super::replica_set::parse_role;
use super::requests::{DeletionBatch, KeySweep, NodeDelete, NodeLookup, Rerouted, Route};
use super::resp::RespValue;
use super::server_error::{Consequence, server_error};
use super::server_usage::ask_usage;
use super::slot_map::{Redirect, parse_redirect};
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{Change, Found};

/// How often the server is asked how full it is, which also shows whether it is there.
const USAGE_EVERY: Duration = Duration::from_secs(5);
/// Longest time for which replicas are waited for when a space is forgotten. Lookups wait, too.
const REPLICAS_WAIT: Duration = Duration::from_secs(1);
/// How often a server of a cluster is asked who has which slots while that is changing.
const SLOTS_EVERY: Duration = Duration::from_millis(100);

/// The thread's connection and its notes.
struct ControlLink<'a> {
    node: &'a Arc<RedisNode>,
    connection: RedisConnection,
    usage_due: Instant,
    /// When a cluster may be asked again who has which slots.
    slots_due: Instant,
}

/// The body of the control thread, which begins with a connection if there is one. Returns once the node is closed and nothing waits.
pub fn run_control_link(node: &Arc<RedisNode>, first: Option<RedisConnection>) {
    let mut back_off = BackOff::default();
    let mut next = first;
    // A turn whose connection broke is taken again once.
    let mut unfinished = ControlTurn::default();
    loop {
        let opened = next.take().map_or_else(|| node.connect(), Ok);
        match opened {
            Ok(connection) => {
                node.connected(LinkKind::Control);
                let mut thread = ControlLink { node, connection, usage_due: Instant::now(), slots_due: Instant::now() };
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
                self.node.fail_turn(turn, &self.node.named(&error));
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
                self.ask_servers()?;
                continue;
            }
            let changing = self.node.cluster().is_some_and(|cluster| cluster.wants_slots());
            if changing && Instant::now() >= self.slots_due {
                self.slots_due = Instant::now() + SLOTS_EVERY;
                self.ask_servers()?;
                continue;
            }
            if self.node.closing().is_some() {
                return Ok(());
            }
            let due = if changing { self.slots_due.min(self.usage_due) } else { self.usage_due };
            self.connection.wait(Some(self.node.bell(0).fd()), due)?;
            self.node.bell(0).clear();
            self.connection.check_quiet()?;
        }
    }

    /// Asks a master for what it knows of the other servers: of a cluster who has which slots, else for its replicas, if values
    /// are read from those.
    fn ask_servers(&mut self) -> Result<()> {
        let Some(router) = self.node.router() else { return Ok(()) };
        let command: &[&[u8]] = match self.node.role {
            NodeRole::Member => &[b"CLUSTER", b"SLOTS"],
            NodeRole::Single if self.node.state.options.read_from_replica => &[b"ROLE"],
            NodeRole::Single | NodeRole::Replica => return Ok(()),
        };
        self.connection.outbox.command(command);
        let until = self.until();
        for reply in self.connection.call(1, until)? {
            match self.node.role {
                NodeRole::Member => router.learn(&reply, &self.node.address),
                NodeRole::Single | NodeRole::Replica => router.learn_replicas(&reply, &self.node.address),
            }
        }
        Ok(())
    }

    /// When the server's silence is too long.
    fn until(&self) -> Instant {
        Instant::now() + self.node.state.options.timeout
    }

    /// Carries a turn out and empties it. After an error it holds what is not answered.
    fn take_turn(&mut self, turn: &mut ControlTurn) -> Result<()> {
        let options = &self.node.state.options;
        let outbox = &mut self.connection.outbox;
        // Of a command after ASKING, the reply comes after that of ASKING.
        let mut askings = 0;
        let mut names: Vec<(ObjectKey, String, Route)> = Vec::new();
        for lookup in &turn.lookups {
            outbox.asking = lookup.route.asking;
            for (_, key) in &lookup.keys {
                let name = object_name(&options.prefix, key);
                ask_head(outbox, &name);
                names.push((*key, name, lookup.route));
            }
            askings += if outbox.asking { lookup.keys.len() } else { 0 };
        }
        let doomed: Vec<String> = turn.deletes.iter().map(|delete| object_name(&options.prefix, &delete.key)).collect();
        for (delete, name) in turn.deletes.iter().zip(&doomed) {
            outbox.asking = delete.route.asking;
            ask_head(outbox, name);
            outbox.command(&[b"UNLINK", name.as_bytes()]);
            askings += if outbox.asking { 2 } else { 0 };
        }
        outbox.asking = false;
        let touches = add_touches(outbox, &turn.touches, &options.prefix, options.ttl);
        if let Some(sweep) = &turn.sweep {
            let pattern = name_pattern(&options.prefix, sweep.space);
            outbox.command(&[b"SCAN", sweep.cursor.as_bytes(), b"MATCH", pattern.as_bytes(), b"COUNT", b"1000"]);
        }
        let count = askings + names.len() + 2 * doomed.len() + touches + usize::from(turn.sweep.is_some());
        let until = self.until();
        let mut replies = self.connection.call(count, until)?.into_iter();

        let mut next = |route: Route| {
            if route.asking {
                replies.next();
            }
            replies.next()
        };
        let mut redirects: Vec<Option<Redirect>> = Vec::with_capacity(names.len());
        let mut heads: Vec<Result<StoredHead>> = Vec::with_capacity(names.len());
        for (key, _, route) in &names {
            let reply = next(*route);
            redirects.push(self.redirected(&reply));
            let moved = redirects.last().is_some_and(Option::is_some);
            heads.push(if moved { Ok(StoredHead::Absent) } else { self.head(reply, key)? });
        }
        let mut removed: Vec<Result<(i64, StoredHead)>> = Vec::with_capacity(doomed.len());
        let mut sent_on: Vec<Option<Redirect>> = Vec::with_capacity(doomed.len());
        for delete in &turn.deletes {
            let (head, count) = (next(delete.route), next(delete.route));
            sent_on.push(self.redirected(&count));
            let head = if sent_on.last().is_some_and(Option::is_some) { None } else { head };
            let head = self.head(head, &delete.key)?;
            let count = self.number(count, "UNLINK")?;
            removed.push(count.map(|count| (count, head.unwrap_or(StoredHead::Absent))));
        }
        (0..touches).for_each(|_| drop(replies.next()));
        let scanned = match (turn.sweep.is_some(), replies.next()) {
            (true, Some(reply)) => Some(self.scanned(reply)?),
            _ => None,
        };

        let whole = self.check_parts(&names, &heads)?;
        let orphans =
            turn.deletes.iter().zip(&doomed).zip(&removed).filter_map(|((delete, name), removed)| match removed {
                Ok((_, StoredHead::Parts(manifest))) => Some((name.as_str(), *manifest, delete.route)),
                _ => None,
            });
        self.unlink_parts(orphans.collect())?;
        let mut found = heads.into_iter().zip(whole).map(|(head, whole)| head.map(|head| found(head, whole)));
        let mut redirects = redirects.into_iter();
        for lookup in turn.lookups.drain(..) {
            self.redirect(&lookup, redirects.by_ref().take(lookup.keys.len()));
            let answers: Result<Vec<Found>> = found.by_ref().take(lookup.keys.len()).collect();
            match answers {
                Ok(answers) => lookup.answer(answers.into_iter()),
                Err(error) => lookup.fail(error),
            }
        }
        for ((delete, removed), redirect) in turn.deletes.drain(..).zip(removed).zip(sent_on) {
            if let Some((redirect, cluster)) = redirect.zip(self.node.cluster()) {
                cluster.redirect(redirect, Rerouted::Delete(delete));
                continue;
            }
            let NodeDelete { key, batch, .. } = delete;
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

    /// The other server of the cluster that a reply names.
    fn redirected(&self, reply: &Option<RespValue>) -> Option<Redirect> {
        match reply {
            Some(RespValue::Failure(text)) if self.node.cluster().is_some() => parse_redirect(text, &self.node.address),
            _ => None,
        }
    }

    /// Sends on those keys of a lookup that other servers have.
    fn redirect(&self, lookup: &NodeLookup, redirects: impl Iterator<Item = Option<Redirect>>) {
        let mut moved: Vec<(Redirect, Vec<(u32, ObjectKey)>)> = Vec::new();
        for (key, redirect) in lookup.keys.iter().zip(redirects) {
            let Some(redirect) = redirect else { continue };
            match moved.iter_mut().find(|(other, _)| other.server == redirect.server && other.ask == redirect.ask) {
                Some((_, keys)) => keys.push(*key),
                None => moved.push((redirect, vec![*key])),
            }
        }
        for (redirect, keys) in moved {
            let rest = NodeLookup { batch: lookup.batch.clone(), keys, deadline: lookup.deadline, route: lookup.route };
            if let Some(cluster) = self.node.cluster() {
                cluster.redirect(redirect, Rerouted::Lookup(rest));
            }
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
    fn check_parts(&mut self, names: &[(ObjectKey, String, Route)], heads: &[Result<StoredHead>]) -> Result<Vec<bool>> {
        let mut whole = vec![true; names.len()];
        let mut asked: Vec<Option<(usize, i64)>> = Vec::new();
        for (place, ((_, name, route), head)) in names.iter().zip(heads).enumerate() {
            let Ok(StoredHead::Parts(manifest)) = head else { continue };
            self.connection.outbox.asking = route.asking;
            for number in 0..manifest.parts() {
                let part = part_name(name, manifest.nonce, number);
                self.connection.outbox.command(&[b"STRLEN", part.as_bytes()]);
                asked.extend(route.asking.then_some(None));
                asked.push(Some((place, manifest.range(number).len() as i64)));
            }
        }
        self.connection.outbox.asking = false;
        let until = self.until();
        let replies = self.connection.call(asked.len(), until)?;
        for (asked, reply) in asked.into_iter().zip(replies) {
            if let Some((place, length)) = asked {
                whole[place] &= reply == RespValue::Integer(length);
            }
        }
        Ok(whole)
    }

    fn unlink_parts(&mut self, objects: Vec<(&str, Manifest, Route)>) -> Result<()> {
        let mut count = 0;
        for (name, manifest, route) in objects {
            self.connection.outbox.asking = route.asking;
            for number in 0..manifest.parts() {
                let part = part_name(name, manifest.nonce, number);
                self.connection.outbox.command(&[b"UNLINK", part.as_bytes()]);
                count += 1 + usize::from(route.asking);
            }
        }
        self.connection.outbox.asking = false;
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
        match cursor.as_str() {
            "0" => self.await_replicas(&sweep.batch),
            _ => {
                self.node.sweep(KeySweep { cursor, ..sweep });
                Ok(())
            }
        }
    }

    /// Waits until the replicas that values are read from have deleted, too. If they do not, the deletion fails.
    fn await_replicas(&mut self, batch: &DeletionBatch) -> Result<()> {
        if !self.node.state.options.read_from_replica {
            return Ok(());
        }
        // One that has connected since the servers were last asked may be read from next.
        self.connection.outbox.command(&[b"ROLE"]);
        let until = self.until();
        let role = self.connection.call(1, until).inspect_err(|error| batch.fail(error.clone()))?.pop();
        let connected = role.as_ref().and_then(parse_role).map_or(0, |replicas| replicas.len());
        let known = self.node.router().map_or(0, |router| router.replica_count(&self.node.address));
        let count = connected.max(known);
        if count == 0 {
            return Ok(());
        }
        let wait = REPLICAS_WAIT.min(self.node.state.options.timeout / 2);
        let words = [count.to_string(), wait.as_millis().max(1).to_string()];
        self.connection.outbox.command(&[b"WAIT", words[0].as_bytes(), words[1].as_bytes()]);
        let until = self.until();
        let reply = self.connection.call(1, until).inspect_err(|error| batch.fail(error.clone()))?.pop();
        match self.number(reply, "WAIT")? {
            Ok(done) if done >= count as i64 => {}
            Ok(done) => batch.fail(Error::new(
                KVKEEP_ERR_TIMEOUT,
                format!(
                    "{done} of {count} replicas of {} have deleted what it deleted: it waits for all",
                    self.node.address
                ),
            )),
            Err(error) => batch.fail(error),
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
