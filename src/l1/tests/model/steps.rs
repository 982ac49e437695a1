//! Each operation: done to L1, foretold by the model, compared.

use std::time::Duration;

use super::*;
use crate::l1::tier_notes::Uses;
use crate::shape::ShapeTag;

impl World {
    pub(in crate::l1::tests::model) fn step(&mut self, op: Op, policy: &str) {
        match op {
            Op::Begin { space } => {
                let begun = self.l1.begin_session(self.spaces[space], 7, "r", Duration::from_millis(TIMEOUT_MS));
                if self.sessions.len() == 5 {
                    let free = |holder: &Holder| holder.deadline < self.now && holder.staged.is_empty();
                    let expired = self.sessions.iter().filter(|(_, holder)| free(holder));
                    let Some(earliest) = expired.map(|(_, holder)| holder.deadline).min() else {
                        assert_eq!(begun.unwrap_err().status, KVKEEP_ERR_LIMIT);
                        return;
                    };
                    let lives = |session: &u64| self.l1.session_lives(*session).is_ok();
                    let gone: Vec<u64> = self.sessions.keys().copied().filter(|session| !lives(session)).collect();
                    assert_eq!((gone.len(), self.sessions[&gone[0]].deadline), (1, earliest));
                    for (inc, count) in self.sessions[&gone[0]].held.clone() {
                        self.give(gone[0], inc, count, false);
                        self.revoked += u64::from(count);
                    }
                    self.sessions.remove(&gone[0]);
                }
                let (staged, held, revoked) = (HashMap::new(), BTreeMap::new(), HashMap::new());
                let deadline = self.now + TIMEOUT_MS;
                self.sessions
                    .insert(begun.unwrap(), Holder { space, deadline, staged, held, revoked, owed: HashMap::new() });
            }
            Op::End { session, touch } => {
                let Some((session, _)) = self.using(session) else { return };
                self.l1.end_session(session, touch).unwrap();
                assert_eq!(self.l1.end_session(session, touch).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
                for (inc, count) in self.sessions[&session].held.clone() {
                    self.give(session, inc, count, false);
                }
                self.sessions.remove(&session);
            }
            Op::Stage { session, keys, temporary } => {
                let Some((session, space)) = self.using(session) else { return };
                let (names, sizes): (Vec<u8>, Vec<u64>) = keys.iter().map(|&(k, s)| (k, SIZES[s])).unzip();
                let mut out = views(names.len());
                self.l1.reserve_write(session, &keys_of(&names), &sizes, temporary, &mut out).unwrap();
                let mut full = false;
                for ((&name, &size), view) in names.iter().zip(&sizes).zip(&out) {
                    let known = self.ready.contains_key(&(space, name));
                    let mine = self.sessions[&session].staged.contains_key(&name);
                    if view.status == KVKEEP_ERR_EXISTS as i32 {
                        assert!(known || mine);
                    } else if view.status != 0 {
                        if !full {
                            self.refused(space, size, view.status, policy);
                        }
                        full = true;
                    } else {
                        assert!(!mine && !full);
                        let stamp = self.stamp();
                        self.stamp_on(view.data.cast(), size, stamp);
                        let data = view.data.cast();
                        let staged = Staged { data, size, stamp, temporary };
                        self.sessions.get_mut(&session).unwrap().staged.insert(name, staged);
                    }
                }
            }
            Op::Finish { session, keys } => {
                let Some((session, space)) = self.using(session) else { return };
                let mut statuses = vec![9; keys.len()];
                self.l1.finish_write(session, &keys_of(&keys), Some(&mut statuses)).unwrap();
                for (&name, status) in keys.iter().zip(statuses) {
                    match self.sessions.get_mut(&session).unwrap().staged.remove(&name) {
                        Some(staged) => {
                            assert_eq!(status, 0);
                            self.committed((space, name), staged.stamp, staged.temporary, false);
                        }
                        None => assert_eq!(status, KVKEEP_ERR_NOT_FOUND as i32),
                    }
                }
            }
            Op::FinishRead { session, keys, extra } => {
                let Some((session, space)) = self.using(session) else { return };
                let mut out = views(keys.len());
                self.l1.finish_write_and_reserve_read(session, &keys_of(&keys), extra + 1, &mut out).unwrap();
                for (&name, view) in keys.iter().zip(&out) {
                    match self.sessions.get_mut(&session).unwrap().staged.remove(&name) {
                        Some(staged) => {
                            let inc = self.committed((space, name), staged.stamp, staged.temporary, false);
                            self.hold(session, inc, extra + 1);
                            self.view_is(view, inc);
                        }
                        None => assert_eq!(view.status, KVKEEP_ERR_NOT_FOUND as i32),
                    }
                }
            }
            Op::AbortWrite { session, keys } => {
                let Some((session, _)) = self.using(session) else { return };
                let mut statuses = vec![9; keys.len()];
                self.l1.abort_write(session, &keys_of(&keys), Some(&mut statuses)).unwrap();
                for (name, status) in keys.iter().zip(statuses) {
                    let staged = self.sessions.get_mut(&session).unwrap().staged.remove(name);
                    assert_eq!(status == 0, staged.is_some());
                }
            }
            Op::Read { session, keys, extra } => {
                let Some((session, space)) = self.using(session) else { return };
                let mut out = views(keys.len());
                self.l1.reserve_read(session, &keys_of(&keys), extra + 1, &mut out).unwrap();
                for (&name, view) in keys.iter().zip(&out) {
                    match self.ready.get(&(space, name)).copied() {
                        Some(inc) => {
                            self.hold(session, inc, extra + 1);
                            self.view_is(view, inc);
                        }
                        None => assert_eq!(view.status, KVKEEP_ERR_NOT_FOUND as i32),
                    }
                }
            }
            Op::Found { session, keys, extra } => {
                let Some((session, space)) = self.using(session) else { return };
                let mut held: Vec<bool> = (0..keys.len()).map(|i| i % 3 == 2).collect();
                let before = held.clone();
                self.l1.reserve_found(session, &keys_of(&keys), extra + 1, &mut held, None).unwrap();
                for ((&name, held), before) in keys.iter().zip(held).zip(before) {
                    let inc = self.ready.get(&(space, name)).copied().filter(|_| !before);
                    assert_eq!(held, before || inc.is_some());
                    if let Some(inc) = inc {
                        self.hold(session, inc, extra + 1);
                    }
                }
            }
            Op::Return { session, keys, extra, how } => self.give_some_back(session, &keys, extra + 1, how),
            Op::Again { session, keys } => {
                let Some((session, space)) = self.using(session) else { return };
                let mut out = views(keys.len());
                self.l1.get_views(session, &keys_of(&keys), &mut out).unwrap();
                for (&name, view) in keys.iter().zip(&out) {
                    let current = self.ready.get(&(space, name)).copied();
                    let holder = &self.sessions[&session];
                    let held: Vec<usize> =
                        holder.held.keys().copied().filter(|&inc| self.incs[inc].0 == name).collect();
                    match current.filter(|inc| held.contains(inc)) {
                        Some(inc) => self.view_is(view, inc),
                        None if !held.is_empty() => {
                            let known = |&inc: &usize| self.bears(view.data.cast(), view.size, self.incs[inc].1.stamp);
                            assert!(view.status == 0 && held.iter().any(known));
                        }
                        None if holder.revoked.contains_key(&name) => {
                            assert_eq!(view.status, KVKEEP_ERR_EXPIRED as i32);
                        }
                        None => assert_eq!(view.status, KVKEEP_ERR_NOT_HELD as i32),
                    }
                }
            }
            Op::Touch { space, keys } => {
                let mut statuses = vec![9; keys.len()];
                self.l1.touch(self.spaces[space], &keys_of(&keys), Some(&mut statuses)).unwrap();
                for (&name, status) in keys.iter().zip(statuses) {
                    assert_eq!(status == 0, self.ready.contains_key(&(space, name)));
                }
            }
            Op::Retain { space, keys, priority } => {
                self.l1.retain(self.spaces[space], &keys_of(&keys), priority, 500, None).unwrap();
            }
            Op::Query { space, keys } => self.states_are(space, &keys),
            Op::Evict { space, keys } => {
                let (before, evicted) = (self.ready.len(), self.l1.gauges().0.evictions);
                let mut statuses = vec![9; keys.len()];
                self.l1.evict(self.spaces[space], &keys_of(&keys), Some(&mut statuses)).unwrap();
                self.removed(space, &keys, &statuses);
                assert_eq!(self.l1.gauges().0.evictions - evicted, (before - self.ready.len()) as u64);
            }
            Op::Delete { space, keys } => {
                let written = |name: &u8| self.l1.with(|state| state.detached_writes.has(space as u32, &key(*name)));
                let (locked, keys): (Vec<u8>, Vec<u8>) = keys.into_iter().partition(written);
                let said = self.l1.delete(self.spaces[space], &keys_of(&locked)).unwrap();
                assert!(said.into_iter().all(|status| status == KVKEEP_ERR_LOCKED));
                let said = self.l1.delete(self.spaces[space], &keys_of(&keys)).unwrap();
                let statuses: Vec<i32> = said.into_iter().map(|status| status as i32).collect();
                self.removed(space, &keys, &statuses);
            }
            Op::Clear { space, force } => {
                let (gone, all) = self.l1.clear(self.spaces.get(space).copied(), force).unwrap();
                let before = self.ready.len();
                let stays: Vec<(usize, u8)> = self
                    .ready
                    .iter()
                    .filter(|(at, inc)| space < 2 && at.0 != space || !force && self.in_use(**inc))
                    .map(|(at, _)| *at)
                    .collect();
                let stayed_in_use = stays.iter().any(|at| space >= 2 || at.0 == space);
                self.ready.retain(|at, _| stays.contains(at));
                assert_eq!((gone, all), ((before - self.ready.len()) as u64, !stayed_in_use));
            }
            Op::Load { space, keys, temporary } => {
                let names: Vec<Key> = keys.iter().map(|&(name, _)| key(name)).collect();
                let wanted = names.iter().zip(&keys).map(|(key, &(_, size))| (key, SIZES[size], 0));
                let staged = self.l1.stage_loads(space as u32, wanted, temporary);
                let mut full = false;
                for (&(name, size), staged) in keys.iter().zip(staged) {
                    match staged {
                        Ok((slot, buffer)) => {
                            assert!(!full);
                            let stamp = self.stamp();
                            self.stamp_on(buffer.as_ptr(), SIZES[size], stamp);
                            self.loads.push(Load { name: slot, at: (space, name), stamp, temporary });
                            self.buffers.push((slot, buffer, stamp));
                        }
                        Err(status) => {
                            if !full {
                                self.refused(space, SIZES[size], status as i32, policy);
                            }
                            full = true;
                        }
                    }
                }
            }
            Op::Land { load, readers } => {
                if self.loads.is_empty() {
                    return;
                }
                let load = self.loads.swap_remove(load % self.loads.len());
                let readers: Vec<LoadReader> = readers
                    .into_iter()
                    .map(|(pick, extra, keep)| {
                        let of_space = |(id, holder): (&u64, &Holder)| (holder.space == load.at.0).then_some(*id);
                        let session = self.sessions.iter().filter_map(of_space).nth(pick).unwrap_or(77);
                        LoadReader { session, count: extra + 1, keep }
                    })
                    .collect();
                let given = self.l1.commit_load(load.name, ShapeTag::UNKNOWN, &readers, false).unwrap();
                let temporary = load.temporary && readers.iter().all(|reader| !reader.keep);
                let live: Vec<bool> =
                    readers.iter().map(|reader| self.sessions.contains_key(&reader.session)).collect();
                assert_eq!(given, live);
                let second = self.ready.contains_key(&load.at);
                if temporary && !second && !live.contains(&true) {
                    assert!(self.l1.with(|state| state.find(load.at.0 as u32, &key(load.at.1)).is_none()));
                    return;
                }
                let inc = self.committed(load.at, load.stamp, temporary, true);
                for reader in readers
                    .iter()
                    .filter(|reader| self.sessions.contains_key(&reader.session))
                    .copied()
                    .collect::<Vec<_>>()
                {
                    self.sessions.get_mut(&reader.session).unwrap().deadline = self.now + TIMEOUT_MS;
                    self.hold(reader.session, inc, reader.count);
                }
            }
            Op::DropLoad { load } => {
                if !self.loads.is_empty() {
                    let load = self.loads.swap_remove(load % self.loads.len());
                    self.l1.drop_load(load.name);
                    self.l1.drop_load(load.name);
                    assert_eq!(self.l1.commit_load(load.name, ShapeTag::UNKNOWN, &[], false), Some(Vec::new()));
                }
            }
            Op::DropBuffer { buffer } => {
                // A load is landed or dropped before its buffer goes.
                let free: Vec<usize> = (0..self.buffers.len())
                    .filter(|&i| self.loads.iter().all(|load| load.name != self.buffers[i].0))
                    .collect();
                if !free.is_empty() {
                    self.buffers.swap_remove(free[buffer % free.len()]);
                }
            }
            Op::TakeWrites { objects } => {
                for write in self.l1.take_writes(objects, 1 << 20) {
                    let (_, inc) = self.incs.iter().find(|(_, inc)| inc.name == write.name).unwrap();
                    assert!(self.bears(write.buffer.as_ptr(), write.buffer.len() as u64, inc.stamp));
                    let stamp = inc.stamp;
                    self.buffers.push((write.name, write.buffer, stamp));
                    if let Some(second) = self.l1.buffer(write.name) {
                        self.buffers.push((write.name, second, stamp));
                    }
                    self.writes.push(write.name);
                }
            }
            Op::Written { write, stored } => {
                if !self.writes.is_empty() {
                    let name = self.writes.swap_remove(write % self.writes.len());
                    self.l1.written(name, stored);
                }
            }
            Op::Lose { space, keys } => {
                let tag = self.l1.space(self.spaces[space]).unwrap().tag;
                let objects: Vec<_> = keys.iter().map(|&name| ObjectKey { space: tag, key: key(name) }).collect();
                self.l1.lose(&objects);
                for &name in &keys {
                    let mut state = [KeyState::default()];
                    self.l1.query_keys(self.spaces[space], &[key(name)], &mut state).unwrap();
                    assert_eq!(state[0].flags & KVKEEP_KEY_STORED, 0);
                }
            }
            Op::Uses => {
                let mut uses = Uses::new();
                self.l1.take_uses(&mut uses);
                let uses: Vec<Ref> = uses.into();
                for object in self.l1.stored_names(&uses) {
                    let space = (0..2).find(|&space| self.l1.space(self.spaces[space]).unwrap().tag == object.space);
                    assert!(self.ready.contains_key(&(space.unwrap(), object.key.hash[0])));
                }
            }
            Op::EvictSlice => drop(self.l1.evict_slice(true)),
            Op::Reclaim => {
                for session in self.l1.reclaim_sessions().0 {
                    // Told of now, though it may have made place for another before.
                    let Some(holder) = self.sessions.remove(&session) else { continue };
                    assert!(holder.deadline < self.now && holder.held.is_empty() && holder.staged.is_empty());
                    assert_eq!(self.l1.session_lives(session).unwrap_err().status, KVKEEP_ERR_EXPIRED);
                }
            }
            Op::Advance { ms } => self.advance(ms),
            Op::Quota { bytes } => {
                let (layout, tenant) = (String::new(), String::new());
                let spec = SpaceSpec {
                    generation: 0,
                    model: "b".to_owned(),
                    layout,
                    tenant,
                    chunk_tokens: 16,
                    quota_bytes: bytes,
                };
                assert_eq!(self.l1.open_space(&spec).unwrap(), self.spaces[1]);
            }
        }
    }

    fn give_some_back(&mut self, session: usize, keys: &[u8], count: u32, how: u8) {
        let Some(session) = self.sessions.keys().nth(session).copied() else { return };
        for &name in keys {
            let mut status = [0];
            let real = match how {
                0 => {
                    self.l1.finish_read(session, &[key(name)], count, Some(&mut status)).unwrap();
                    Some(status[0])
                }
                1 => Some(match self.l1.release(session, &[key(name)], count).unwrap() {
                    1 => 0,
                    _ => 1,
                }),
                _ => {
                    self.l1.return_unread(session, std::iter::once(key(name)), count);
                    None
                }
            };
            if how < 2 {
                self.sessions.get_mut(&session).unwrap().deadline = self.now + TIMEOUT_MS;
            }
            let expected = self.returned(session, name, count, how == 2);
            match (how, real) {
                (0, Some(real)) => assert_eq!(real, expected as i32),
                (1, Some(real)) => assert_eq!(real == 0, expected == KVKEEP_OK),
                _ => {}
            }
        }
    }

    /// The state of keys is that of the model, and that of the reports.
    fn states_are(&self, space: usize, keys: &[u8]) {
        let mut states = vec![KeyState::default(); keys.len()];
        self.l1.query_keys(self.spaces[space], &keys_of(keys), &mut states).unwrap();
        for (&name, said) in keys.iter().zip(states) {
            let Some(&inc) = self.ready.get(&(space, name)) else {
                assert_eq!(said, KeyState::default());
                continue;
            };
            let told = self.l1.explain_key(self.spaces[space], &key(name)).unwrap().remove(0);
            let is = |flag| said.flags & flag != 0;
            assert_eq!((said.state, said.size, said.shares), (1, told.bytes, self.shares(inc)));
            assert_eq!(is(KVKEEP_KEY_TEMPORARY), self.incs[inc].1.temporary);
            assert_eq!((is(KVKEEP_KEY_STORED), is(KVKEEP_KEY_STORING)), (told.written, told.write_pending));
            assert_eq!(is(KVKEEP_KEY_EVICTABLE), told.unevictable_because.is_empty());
            let holds = |holder: &&Holder| holder.held.contains_key(&inc);
            let kept = self.sessions.values().filter(holds).any(|holder| holder.deadline >= self.now);
            assert_eq!(is(KVKEEP_KEY_EVICTABLE), !kept && !self.under_io(inc));
        }
    }

    /// Keys were taken out of L1, but for those in use: each said so.
    fn removed(&mut self, space: usize, keys: &[u8], statuses: &[i32]) {
        for (&name, &status) in keys.iter().zip(statuses) {
            let expected = match self.ready.get(&(space, name)) {
                None => KVKEEP_ERR_NOT_FOUND,
                Some(&inc) if self.in_use(inc) => KVKEEP_ERR_LOCKED,
                Some(_) => KVKEEP_OK,
            };
            assert_eq!(status, expected as i32);
            if expected == KVKEEP_OK {
                self.ready.remove(&(space, name));
            }
        }
    }
}
