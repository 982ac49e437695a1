//! The state of L1, under its one lock, and the questions it answers.
//!
//! Everything that changes it stands in a file of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::alloc::Alloc;
use super::counters::{Counts, InUse};
use super::detached_writes::DetachedWrites;
use super::holders::Holders;
use super::pools::{EvictionPool, Metas};
use super::session::sessions::Sessions;
use super::shapes::{ShapeName, Shapes};
use super::slot::{LISTED, NOBODY, NONE, Ref, USES_MAX};
use super::slots::Slots;
use super::space::{Space, SpaceInfo};
use super::staged_bytes::WriterAccounts;
use super::wakes::Wakes;
use crate::abi::View;
use crate::arena::Arena;
use crate::config::StoreMode;
use crate::error::{Error, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result};
use crate::events::{EventKind, Events};
use crate::fingerprint::{Fingerprint, Fingerprinter};
use crate::key::{Key, ObjectKey};
use crate::misses::{LookupCounts, MissedKeys};
use crate::policy::EvictionPolicy;
use crate::shape::ShapeTag;
use crate::slot_table::SlotTable;

/// Most lines that wait to be logged.
const NOTICES_MAX: usize = 64;

/// How many keys ahead the table is asked for keys that are written.
const AHEAD: usize = 12;

/// The settings of a tier.
pub struct L1Config {
    /// Eviction policy, by name.
    pub policy: String,
    /// Background eviction starts above so many percent …
    pub high_percent: u32,
    /// … and stops at so many.
    pub low_percent: u32,
    /// When committed objects are queued to be written.
    pub store_mode: StoreMode,
    /// Most objects queued to be written.
    pub writes_max: u32,
    /// Most live sessions, at most 2^20 - 1.
    pub sessions_max: u32,
    /// Upper 16 bits of the sessions' numbers.
    pub boot: u16,
}

impl L1Config {
    /// Refuses numbers for which a slot has no bits.
    pub(super) fn check(&self) -> Result<()> {
        if self.sessions_max > NOBODY {
            let most = self.sessions_max;
            return Err(Error::invalid(format!(
                "sessions_max is {most}, more than {NOBODY}: allow fewer live sessions"
            )));
        }
        match self.store_mode {
            StoreMode::AfterUses(uses) if uses > USES_MAX => Err(Error::invalid(format!(
                "store_after_uses is {uses}, more than {USES_MAX}: have objects written after fewer"
            ))),
            _ => Ok(()),
        }
    }
}

/// The objects that a reservation may evict.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MayEvict {
    /// All that are not in use.
    All,
    /// Those that need not be written any more.
    Written,
    /// None: it takes only memory that is free.
    Nothing,
}

/// Where bytes begin in the arena, and how many they are.
pub(super) type ArenaRange = (u64, u64);

pub(super) struct L1State {
    pub arena: Arc<Arena>,
    pub fingerprinter: Fingerprinter,
    pub table: SlotTable,
    pub slots: Slots,
    pub holders: Holders,
    pub alloc: Alloc,
    pub spaces: Vec<Space>,
    /// Indexes of spaces by the numbers that callers know.
    pub by_number: HashMap<u64, u32>,
    /// Indexes of spaces that were closed. Another space may have one once no memory is its any more.
    pub closed_spaces: Vec<u32>,
    pub shapes: Shapes,
    pub pools: Vec<EvictionPool>,
    /// Indexes of pools whose spaces were closed, and which are empty.
    pub spare_pools: Vec<usize>,
    pub sessions: Sessions,
    pub writers: WriterAccounts,
    pub config: L1Config,
    pub has_l2: bool,
    /// Uses of objects that no backend has are noted, too.
    pub notes_all_uses: bool,
    /// Objects that are to be written, in their order, with the time when each was queued.
    pub writes: VecDeque<(Ref, u64)>,
    /// Objects that were taken out of the table since `writes` was looked through, and stood there or were being written.
    pub writes_gone: usize,
    /// Objects that wait in `writes` and are still there.
    pub writes_waiting: u64,
    /// Objects that eviction passed over because they are still to be written.
    pub parked: VecDeque<Ref>,
    /// Uses of stored objects that the backends do not know of yet.
    pub uses: VecDeque<Ref>,
    pub detached_writes: DetachedWrites,
    /// Of the parked objects, bytes of those that are evicted once they are written.
    pub leaving_bytes: u64,
    /// The limit of the call that has the state now.
    pub may_evict: MayEvict,
    pub in_use: InUse,
    /// Committed by the call that has the state now; no policy knows of them yet.
    pub unranked: Vec<u32>,
    /// Objects that lookups find.
    pub ready: u64,
    /// Objects out of the table whose memory is still in use.
    pub detached: u64,
    pub staged: u64,
    pub counts: Counts,
    pub events: Arc<Events>,
    pub misses: Arc<MissedKeys>,
    /// The keys that lookups asked for in spaces that were closed.
    pub closed_lookups: LookupCounts,
    pub now_ms: u64,
    /// No session is due to be ended before.
    pub reclaim_ms: u64,
    /// Sessions ended by their deadlines of which the layers above do not know yet.
    pub reclaimed: Vec<u64>,
    /// Lines that are to be logged, with their kinds: once no lock is held.
    pub notices: Vec<(&'static str, String)>,
    /// For which events the call that has the state now is to wake threads.
    pub wakes: Wakes,
    /// Passes made over sessions' objects.
    pub passes: u32,
}

impl L1State {
    /// The state of an empty tier.
    pub fn new(
        arena: Arc<Arena>,
        config: L1Config,
        fingerprinter: Fingerprinter,
        events: Arc<Events>,
        misses: Arc<MissedKeys>,
    ) -> Result<L1State> {
        Ok(L1State {
            alloc: Alloc::new(arena.bytes() as u64),
            arena,
            fingerprinter,
            table: SlotTable::new(),
            slots: Slots::new(),
            holders: Holders::default(),
            spaces: Vec::new(),
            by_number: HashMap::new(),
            closed_spaces: Vec::new(),
            shapes: Shapes::default(),
            pools: vec![EvictionPool::new(&config.policy)?],
            spare_pools: Vec::new(),
            sessions: Sessions::new(config.sessions_max, config.boot),
            writers: WriterAccounts::default(),
            config,
            has_l2: false,
            notes_all_uses: false,
            writes: VecDeque::new(),
            writes_gone: 0,
            writes_waiting: 0,
            parked: VecDeque::new(),
            uses: VecDeque::new(),
            detached_writes: DetachedWrites::default(),
            leaving_bytes: 0,
            may_evict: MayEvict::All,
            in_use: InUse::default(),
            unranked: Vec::new(),
            ready: 0,
            detached: 0,
            staged: 0,
            counts: Counts::default(),
            events,
            misses,
            closed_lookups: LookupCounts::default(),
            now_ms: 0,
            reclaim_ms: u64::MAX,
            reclaimed: Vec::new(),
            notices: Vec::new(),
            wakes: 0,
            passes: 0,
        })
    }

    /// Records an event of the object in a slot.
    pub fn record(&self, kind: EventKind, id: u32) {
        self.events.record_l1(kind, || {
            let slot = &self.slots[id];
            (self.spaces[self.slots.space(id) as usize].tag, *self.slots.key(id), slot.size())
        });
    }

    /// Counts that the memory of a slot became free to evict, or was taken into use: call after each change, with whether it was
    /// locked before.
    #[inline]
    pub fn relock(&mut self, id: u32, was_locked: bool) {
        let slot = &self.slots[id];
        match (was_locked, slot.locked()) {
            (false, true) => self.in_use.lock(slot.size()),
            (true, false) => self.in_use.unlock(slot.size()),
            _ => {}
        }
    }

    /// Has the core fetch the table's bucket of a key some way ahead, for a caller that goes through these keys and is at number `at`.
    #[inline]
    pub fn look_ahead(&self, fingerprints: &[Fingerprint], at: usize) {
        if let Some(fingerprint) = fingerprints.get(at + AHEAD) {
            self.table.prefetch(fingerprint.hash);
        }
    }

    /// The slot of a key.
    pub fn find(&self, space: u32, key: &Key) -> Option<u32> {
        self.find_fingerprint(self.fingerprinter.fingerprint(key).within(space))
    }

    /// The fingerprint of the key in a slot.
    pub fn fingerprint_of(&self, id: u32) -> Fingerprint {
        self.fingerprinter.fingerprint(self.slots.key(id)).within(self.slots.space(id))
    }

    /// The slot of the key with a fingerprint, or `NONE`: mostly it is `last`, where it was found before.
    #[inline]
    pub fn find_again(&self, last: u32, fingerprint: Fingerprint) -> u32 {
        match self.slots.get(last) {
            Some(slot) if slot.is_of(fingerprint) && slot.is_findable() => last,
            _ => self.find_fingerprint(fingerprint).unwrap_or(NONE),
        }
    }

    /// The slot of the key with a fingerprint.
    #[inline]
    pub fn find_fingerprint(&self, fingerprint: Fingerprint) -> Option<u32> {
        self.table.find(fingerprint.hash, |id| self.slots[id].is_of(fingerprint))
    }

    /// The view of an object that a caller may read, or that its writer may fill.
    pub fn view(&self, id: u32) -> View {
        let slot = &self.slots[id];
        View {
            data: self.arena.at(self.alloc.offset(slot.start)).cast(),
            size: slot.size(),
            status: KVKEEP_OK as i32,
            reserved: 0,
        }
    }

    /// The bytes of an object in the arena.
    pub fn range_of(&self, id: u32) -> ArenaRange {
        let slot = &self.slots[id];
        (self.alloc.offset(slot.start), slot.size())
    }

    /// Shares of an object that a session holds.
    #[inline]
    pub fn shares_of(&self, session: u32, id: u32) -> u32 {
        let word = self.slots[id].word();
        let own = word.held_by(session);
        if word.is(LISTED) { own + self.holders.count(&self.slots, id, session) } else { own }
    }

    /// The full name of the object in a slot.
    pub fn object_key(&self, id: u32) -> ObjectKey {
        ObjectKey { space: self.spaces[self.slots.space(id) as usize].tag, key: *self.slots.key(id) }
    }

    /// Space, rank and group of the object in a slot.
    pub fn shape_name(&self, id: u32) -> ShapeName {
        let key = self.slots.key(id);
        (self.slots.space(id), key.rank, key.group)
    }

    /// The shape of the object in a slot.
    pub fn shape_of(&self, id: u32) -> ShapeTag {
        if self.shapes.is_empty() { ShapeTag::UNKNOWN } else { self.shapes.tag_of(self.shape_name(id)) }
    }

    /// Index of the space that callers know by this number.
    pub fn space_index(&self, number: u64) -> Result<u32> {
        self.by_number.get(&number).copied().ok_or_else(|| {
            Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("space {number} was never opened: use a number that kvkeep_open_space gave"),
            )
        })
    }

    /// Keeps a line until it can be logged.
    pub fn note(&mut self, kind: &'static str, line: impl FnOnce() -> String) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push((kind, line()));
        }
    }

    /// The space at an index, for the layers above.
    pub fn space_info(&self, index: u32) -> SpaceInfo {
        let space = &self.spaces[index as usize];
        SpaceInfo { index, tag: space.tag, layout: space.layout, chunk_tokens: space.spec.chunk_tokens }
    }

    /// Whether more than `percent` of L1 is used, `less` so many bytes; never above 100.
    pub fn above(&self, percent: u32, less: u64) -> bool {
        let used = self.alloc.used_bytes().saturating_sub(less);
        percent < 100 && u128::from(used) * 100 > u128::from(self.alloc.capacity()) * u128::from(percent)
    }

    /// The policy of a pool, and the facts that it may ask for.
    #[inline]
    pub fn policy(&mut self, pool: usize) -> (&mut dyn EvictionPolicy, Metas<'_>) {
        (self.pools[pool].policy.as_mut(), Metas { slots: &self.slots, now_ms: self.now_ms })
    }

    /// Marks objects of a pool as used now, one after another.
    #[inline]
    pub fn touch_all(&mut self, pool: usize, ids: &[u32]) {
        let (policy, metas) = self.policy(pool);
        policy.touch_all(ids, &|id| metas.of(id));
    }

    /// Marks an object of a pool as used now.
    pub fn touch_object(&mut self, pool: usize, id: u32) {
        let (policy, metas) = self.policy(pool);
        policy.touch(id, &|id| metas.of(id));
    }
}
