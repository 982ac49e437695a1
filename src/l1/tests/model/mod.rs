//! Random operations against a model of the holders; the counters are compared after each step.
//!
//! The model does not foresee what a policy evicts. It sees what went, and that nothing in use did.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use crate::abi::{KVKEEP_KEY_EVICTABLE, KVKEEP_KEY_STORED, KVKEEP_KEY_STORING, KVKEEP_KEY_TEMPORARY, KeyState, View};
use crate::arena::{Arena, Buffer, MapOptions};
use crate::config::{SpaceSpec, StoreMode};
use crate::error::{
    KVKEEP_ERR_EXISTS, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_LOCKED, KVKEEP_ERR_NO_MEMORY,
    KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD, KVKEEP_ERR_QUOTA, KVKEEP_OK, Status,
};
use crate::key::{Key, ObjectKey};
use crate::l1::slot::{DETACHED, Ref, Slot};
use crate::l1::{L1, L1Config, LoadReader};

mod audit;
mod steps;

const ARENA: usize = 32 << 10;
const QUOTA: u64 = 12 << 10;
const TIMEOUT_MS: u64 = 1000;
const SIZES: [u64; 7] = [64, 65, 1000, 4096, 5000, 8192, 12_289];

#[derive(Clone, Debug)]
enum Op {
    Begin { space: usize },
    End { session: usize, touch: bool },
    Stage { session: usize, keys: Vec<(u8, usize)>, temporary: bool },
    Finish { session: usize, keys: Vec<u8> },
    FinishRead { session: usize, keys: Vec<u8>, extra: u32 },
    AbortWrite { session: usize, keys: Vec<u8> },
    Read { session: usize, keys: Vec<u8>, extra: u32 },
    Found { session: usize, keys: Vec<u8>, extra: u32 },
    Return { session: usize, keys: Vec<u8>, extra: u32, how: u8 },
    Again { session: usize, keys: Vec<u8> },
    Touch { space: usize, keys: Vec<u8> },
    Retain { space: usize, keys: Vec<u8>, priority: u32 },
    Query { space: usize, keys: Vec<u8> },
    Evict { space: usize, keys: Vec<u8> },
    Delete { space: usize, keys: Vec<u8> },
    Clear { space: usize, force: bool },
    Load { space: usize, keys: Vec<(u8, usize)>, temporary: bool },
    Land { load: usize, readers: Vec<(usize, u32, bool)> },
    DropLoad { load: usize },
    DropBuffer { buffer: usize },
    TakeWrites { objects: usize },
    Written { write: usize, stored: bool },
    Lose { space: usize, keys: Vec<u8> },
    Uses,
    EvictSlice,
    Reclaim,
    Advance { ms: u64 },
    Quota { bytes: u64 },
}

fn ops() -> impl Strategy<Value = Op> {
    let keys = || prop::collection::vec(0..12u8, 1..5);
    let sized = || prop::collection::vec((0..12u8, 0..SIZES.len()), 1..5);
    let session = || 0..5usize;
    let space = || 0..2usize;
    let extra = || prop_oneof![3 => Just(0u32), 1 => 1..4u32];
    prop_oneof![
        4 => space().prop_map(|space| Op::Begin { space }),
        2 => (session(), any::<bool>()).prop_map(|(session, touch)| Op::End { session, touch }),
        9 => (session(), sized(), prop::bool::weighted(0.3))
            .prop_map(|(session, keys, temporary)| Op::Stage { session, keys, temporary }),
        8 => (session(), keys()).prop_map(|(session, keys)| Op::Finish { session, keys }),
        4 => (session(), keys(), extra()).prop_map(|(session, keys, extra)| Op::FinishRead { session, keys, extra }),
        2 => (session(), keys()).prop_map(|(session, keys)| Op::AbortWrite { session, keys }),
        9 => (session(), keys(), extra()).prop_map(|(session, keys, extra)| Op::Read { session, keys, extra }),
        2 => (session(), keys(), extra()).prop_map(|(session, keys, extra)| Op::Found { session, keys, extra }),
        9 => (session(), keys(), extra(), 0..3u8)
            .prop_map(|(session, keys, extra, how)| Op::Return { session, keys, extra, how }),
        2 => (session(), keys()).prop_map(|(session, keys)| Op::Again { session, keys }),
        1 => (space(), keys()).prop_map(|(space, keys)| Op::Touch { space, keys }),
        1 => (space(), keys(), 0..101u32).prop_map(|(space, keys, priority)| Op::Retain { space, keys, priority }),
        2 => (space(), keys()).prop_map(|(space, keys)| Op::Query { space, keys }),
        2 => (space(), keys()).prop_map(|(space, keys)| Op::Evict { space, keys }),
        2 => (space(), keys()).prop_map(|(space, keys)| Op::Delete { space, keys }),
        1 => (0..3usize, any::<bool>()).prop_map(|(space, force)| Op::Clear { space, force }),
        3 => (space(), sized(), prop::bool::weighted(0.4))
            .prop_map(|(space, keys, temporary)| Op::Load { space, keys, temporary }),
        4 => (any::<usize>(), prop::collection::vec((session(), extra(), any::<bool>()), 0..3))
            .prop_map(|(load, readers)| Op::Land { load, readers }),
        1 => any::<usize>().prop_map(|load| Op::DropLoad { load }),
        6 => any::<usize>().prop_map(|buffer| Op::DropBuffer { buffer }),
        2 => (1..4usize).prop_map(|objects| Op::TakeWrites { objects }),
        3 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(write, stored)| Op::Written { write, stored }),
        1 => (space(), keys()).prop_map(|(space, keys)| Op::Lose { space, keys }),
        1 => Just(Op::Uses),
        1 => Just(Op::EvictSlice),
        1 => Just(Op::Reclaim),
        2 => prop_oneof![Just(100), Just(600), Just(1500)].prop_map(|ms| Op::Advance { ms }),
        1 => prop_oneof![Just(0), Just(QUOTA)].prop_map(|bytes| Op::Quota { bytes }),
    ]
}

/// One commit of a key, for as long as its memory may be looked at.
struct Inc {
    name: Ref,
    stamp: u64,
    temporary: bool,
    /// Whether it was loaded, so that a backend has it.
    loaded: bool,
    /// Whether shares were returned of it since it was committed, other than by a lookup.
    read: bool,
}

struct Staged {
    data: *mut u8,
    size: u64,
    stamp: u64,
    temporary: bool,
}

struct Load {
    name: Ref,
    at: (usize, u8),
    stamp: u64,
    temporary: bool,
}

struct Holder {
    space: usize,
    deadline: u64,
    staged: HashMap<u8, Staged>,
    /// Shares by incarnation.
    held: BTreeMap<usize, u32>,
    revoked: HashMap<u8, u32>,
    /// Shares returned of keys of which several copies are held.
    owed: HashMap<u8, u32>,
}

struct World {
    l1: Arc<L1>,
    spaces: [u64; 2],
    sessions: BTreeMap<u64, Holder>,
    incs: Vec<(u8, Inc)>,
    ready: HashMap<(usize, u8), usize>,
    loads: Vec<Load>,
    /// Buffers of loads and writes, with the stamp their bytes bear.
    buffers: Vec<(Ref, Buffer, u64)>,
    writes: Vec<Ref>,
    stamps: u64,
    now: u64,
    revoked: u64,
}

fn key(number: u8) -> Key {
    Key { hash: [number; 32], rank: 0, group: 0 }
}

fn keys_of(numbers: &[u8]) -> Vec<Key> {
    numbers.iter().map(|&number| key(number)).collect()
}

/// Words of an object that bear its stamp: the first, one in the middle, the last whole one.
fn places(size: u64) -> [usize; 3] {
    [0, size / 2, size - 8].map(|at| at as usize & !7)
}

fn views(count: usize) -> Vec<View> {
    vec![View::none(KVKEEP_OK); count]
}

fn index_of(session: u64) -> u32 {
    (session & 0xf_ffff) as u32
}

impl World {
    fn new(policy: &str, store_mode: StoreMode) -> World {
        let config = L1Config {
            policy: policy.to_owned(),
            high_percent: 80,
            low_percent: 60,
            store_mode,
            writes_max: 8,
            sessions_max: 5,
            boot: 0,
        };
        let l1 = L1::new(Arc::new(Arena::map(ARENA, MapOptions::default()).unwrap()), config).unwrap();
        l1.set_has_l2(true);
        l1.events().keep().unwrap();
        let spaces = [("a", 0), ("b", QUOTA)].map(|(model, quota_bytes)| {
            let (layout, tenant) = (String::new(), String::new());
            l1.open_space(&SpaceSpec {
                generation: 0,
                model: model.to_owned(),
                layout,
                tenant,
                chunk_tokens: 16,
                quota_bytes,
            })
            .unwrap()
        });
        let mut world = World {
            l1,
            spaces,
            sessions: BTreeMap::new(),
            incs: Vec::new(),
            ready: HashMap::new(),
            loads: Vec::new(),
            buffers: Vec::new(),
            writes: Vec::new(),
            stamps: 0,
            now: 0,
            revoked: 0,
        };
        world.advance(1);
        world
    }

    fn stamp_on(&self, data: *mut u8, size: u64, stamp: u64) {
        let put = |at| self.l1.arena().copy_in(data.wrapping_add(at), &stamp.to_ne_bytes());
        assert!(places(size).into_iter().all(put));
    }

    fn bears(&self, data: *const u8, size: u64, stamp: u64) -> bool {
        let mut word = [0; 8];
        places(size)
            .into_iter()
            .all(|at| self.l1.arena().copy_out(data.wrapping_add(at), &mut word) && word == stamp.to_ne_bytes())
    }

    fn advance(&mut self, ms: u64) {
        self.now += ms;
        self.l1.set_ms.store(self.now, Ordering::Relaxed);
    }

    fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    /// A session picked by number, used now.
    fn using(&mut self, pick: usize) -> Option<(u64, usize)> {
        let session = *self.sessions.keys().nth(pick)?;
        let holder = self.sessions.get_mut(&session).unwrap();
        holder.deadline = self.now + TIMEOUT_MS;
        Some((session, holder.space))
    }

    fn shares(&self, inc: usize) -> u32 {
        self.sessions.values().filter_map(|holder| holder.held.get(&inc)).sum()
    }

    fn under_io(&self, inc: usize) -> bool {
        let name = self.incs[inc].1.name;
        self.buffers.iter().any(|(other, ..)| *other == name)
    }

    fn in_use(&self, inc: usize) -> bool {
        self.shares(inc) > 0 || self.under_io(inc)
    }

    fn hold(&mut self, session: u64, inc: usize, count: u32) {
        *self.sessions.get_mut(&session).unwrap().held.entry(inc).or_insert(0) += count;
    }

    /// Takes shares back, of a lookup or of a reader; a temporary object goes with its last one. One that no session has read and no
    /// backend has outlives a lookup.
    fn give(&mut self, session: u64, inc: usize, count: u32, lookup: bool) {
        let held = &mut self.sessions.get_mut(&session).unwrap().held;
        let left = held[&inc] - count;
        if left == 0 {
            held.remove(&inc);
        } else {
            held.insert(inc, left);
        }
        let of = &mut self.incs[inc].1;
        if lookup && !of.read && !of.loaded {
            return;
        }
        of.read = true;
        if of.temporary && self.shares(inc) == 0 {
            self.ready.retain(|_, other| *other != inc);
        }
    }

    /// What was committed now stands in the table, unless it came second.
    fn committed(&mut self, at: (usize, u8), stamp: u64, temporary: bool, loaded: bool) -> usize {
        if let Some(&first) = self.ready.get(&at) {
            self.incs[first].1.temporary &= temporary;
            return first;
        }
        let name = self.l1.with(|state| state.slots.name(state.find(at.0 as u32, &key(at.1)).unwrap()));
        self.incs.push((at.1, Inc { name, stamp, temporary, loaded, read: false }));
        self.ready.insert(at, self.incs.len() - 1);
        self.incs.len() - 1
    }

    fn view_is(&self, view: &View, inc: usize) {
        let inc = &self.incs[inc].1;
        let (offset, size) = self.l1.with(|state| {
            let slot = state.slots.find(inc.name).unwrap();
            (state.alloc.offset(slot.start), slot.size())
        });
        assert_eq!((view.status, view.data.cast(), view.size), (0, self.l1.arena().at(offset), size));
        assert!(self.bears(view.data.cast(), size, inc.stamp), "P1: other bytes than were committed");
    }

    /// What a return of `count` shares does, which are of one copy: nothing goes while it is open of which of several.
    fn returned(&mut self, session: u64, name: u8, count: u32, lookup: bool) -> Status {
        let holder = self.sessions.get_mut(&session).unwrap();
        let copies: Vec<(usize, u32)> =
            holder.held.iter().filter(|(inc, _)| self.incs[**inc].0 == name).map(|(&inc, &held)| (inc, held)).collect();
        let large_enough: Vec<usize> = copies.iter().filter(|(_, held)| *held >= count).map(|(inc, _)| *inc).collect();
        let taken: u32 = copies.iter().map(|(_, held)| held).sum();
        let before = holder.owed.get(&name).copied().unwrap_or(0);
        match (copies.len(), &large_enough[..]) {
            (0 | 1, []) => return self.not_held(session, name, count),
            (_, []) => return KVKEEP_ERR_NOT_HELD,
            (_, [inc]) if before == 0 => self.give(session, *inc, count, lookup),
            _ if before + count > taken => return KVKEEP_ERR_NOT_HELD,
            _ if before + count < taken => drop(holder.owed.insert(name, before + count)),
            _ => {
                holder.owed.remove(&name);
                copies.into_iter().for_each(|(inc, held)| self.give(session, inc, held, lookup));
            }
        }
        KVKEEP_OK
    }

    fn real_shares(&self, session: u64, inc: usize) -> u32 {
        let name = self.incs[inc].1.name;
        self.l1.with(|state| state.slots.find(name).map_or(0, |_| state.shares_of(index_of(session), name.slot)))
    }

    fn not_held(&mut self, session: u64, number: u8, count: u32) -> Status {
        let revoked = &mut self.sessions.get_mut(&session).unwrap().revoked;
        let Some(left) = revoked.get_mut(&number) else { return KVKEEP_ERR_NOT_HELD };
        *left = left.saturating_sub(count);
        if *left == 0 {
            revoked.remove(&number);
        }
        KVKEEP_ERR_EXPIRED
    }

    /// After anything that may have evicted: what went was not in use, and only what had expired was revoked.
    fn see_what_went(&mut self) {
        let revoked = self.l1.gauges().0.shares_revoked;
        if revoked > self.revoked {
            let expired: Vec<u64> =
                self.sessions.iter().filter(|(_, holder)| holder.deadline < self.now).map(|(id, _)| *id).collect();
            for session in expired {
                let left = self.l1.with(|state| state.sessions.at(index_of(session)).shares);
                if left > 0 {
                    continue;
                }
                for (inc, count) in self.sessions[&session].held.clone() {
                    self.give(session, inc, count, false);
                    let revoked = &mut self.sessions.get_mut(&session).unwrap().revoked;
                    *revoked.entry(self.incs[inc].0).or_insert(0) += count;
                    self.revoked += u64::from(count);
                }
                for (name, owed) in std::mem::take(&mut self.sessions.get_mut(&session).unwrap().owed) {
                    self.not_held(session, name, owed);
                }
            }
            assert_eq!(revoked, self.revoked, "P3: shares of a session that had not expired were taken");
        }
        let gone: Vec<(usize, u8)> = self
            .ready
            .iter()
            .filter(|(_, inc)| {
                let name = self.incs[**inc].1.name;
                self.l1.with(|state| state.slots.find(name).is_none_or(|slot| slot.is(DETACHED)))
            })
            .map(|(at, _)| *at)
            .collect();
        for at in gone {
            let inc = self.ready.remove(&at).unwrap();
            assert!(!self.in_use(inc), "P2: an object in use was evicted");
        }
    }

    /// A refusal is honest: nothing that could have gone is left.
    fn refused(&self, space: usize, size: u64, status: i32, policy: &str) {
        let left = self.l1.with(|state| {
            let quota = state.spaces[space].quota;
            let fits = match status {
                status if status == KVKEEP_ERR_QUOTA as i32 => quota > 0 && size <= quota,
                status => {
                    assert_eq!(status, KVKEEP_ERR_NO_MEMORY as i32);
                    size <= state.alloc.capacity() - state.in_use.locked_bytes
                }
            };
            let pool = (status == KVKEEP_ERR_QUOTA as i32).then_some(state.spaces[space].pool);
            let evictable = |(id, slot): (u32, &Slot)| {
                let of_pool = pool.is_none_or(|pool| state.spaces[state.slots.space(id) as usize].pool == pool);
                slot.is_findable() && !slot.locked() && of_pool
            };
            fits && policy != "none" && state.slots.live().any(evictable)
        });
        assert!(!left, "refused {size} bytes though something could be evicted");
    }
}

fn check(policy: &str, store_mode: StoreMode, ops: Vec<Op>) {
    let mut world = World::new(policy, store_mode);
    for op in ops {
        world.step(op, policy);
        world.see_what_went();
        world.audit();
    }
    world.finish();
}

fn any_mode() -> impl Strategy<Value = StoreMode> {
    prop_oneof![
        Just(StoreMode::WriteThrough),
        Just(StoreMode::WriteBack),
        Just(StoreMode::AfterUses(2)),
        Just(StoreMode::Never)
    ]
}

/// A few seconds' worth; PROPTEST_CASES raises it.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 128 };
    ProptestConfig { cases, ..default }
}

macro_rules! against_the_model {
    ($($name:ident: $policy:literal)*) => {
        proptest! {
            #![proptest_config(config())]
            $(#[test]
            fn $name(mode in any_mode(), ops in prop::collection::vec(ops(), 1..150)) {
                check($policy, mode, ops);
            })*
        }
    };
}

against_the_model! {
    lru_agrees_with_the_model: "lru"
    s3fifo_agrees_with_the_model: "s3fifo"
    mq_agrees_with_the_model: "mq"
    none_agrees_with_the_model: "none"
}
