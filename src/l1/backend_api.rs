//! The methods of L1 for the threads that move objects between it and the backends, evict, and watch it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::counters::{Counts, Gauges};
use super::evict::Eviction;
use super::session::lifecycle;
use super::slot::Ref;
use super::space::SpaceInfo;
use super::tier::L1;
use super::tier_io::{LoadReader, QueuedWrite};
use super::tier_notes::Uses;
use super::{count_lookups, evict, inspect, tier_io, tier_notes};
use crate::abi::KVKEEP_TIERS_MAX;
use crate::arena::Buffer;
use crate::error::Status;
use crate::key::{Key, ObjectKey};
use crate::misses::MissContext;
use crate::shape::ShapeTag;

impl L1 {
    /// Stages memory of `space` for loads, in order; after the first key that does not fit, none does. A loaded object is
    /// not written to L2 again.
    pub fn stage_loads<'a>(
        &self,
        space: u32,
        wanted: impl Iterator<Item = (&'a Key, u64, u32)>,
        temporary: bool,
    ) -> Vec<std::result::Result<(Ref, Buffer), Status>> {
        tier_io::stage_loads(self, space, wanted, temporary)
    }

    /// Commits a loaded object and gives its readers their shares. Gives for each whether it has them (its session lives).
    /// False for all if the load was dropped meanwhile. None if the object has another shape than those of its rank and group: it
    /// is dropped. `lost`: no backend has it any more.
    pub fn commit_load(&self, name: Ref, shape: ShapeTag, readers: &[LoadReader], lost: bool) -> Option<Vec<bool>> {
        tier_io::commit_load(self, name, shape, readers, lost)
    }

    /// Counts the keys of a lookup that asked the backends, too: `hits` by the place of the tier, and those `missed` in its order.
    pub fn count_lookup(&self, space: SpaceInfo, hits: &[u64; KVKEEP_TIERS_MAX], missed: &[Key], context: MissContext) {
        count_lookups::count_lookup(self, space, hits, missed, context);
    }

    /// Gives up a load; its memory is freed when the transfer is over.
    pub fn drop_load(&self, name: Ref) {
        tier_io::drop_load(self, name)
    }

    /// Takes queued objects to write, up to `objects` and about `bytes`, at least one.
    pub fn take_writes(&self, objects: usize, bytes: u64) -> Vec<QueuedWrite> {
        tier_io::take_writes(self, objects, bytes)
    }

    /// Gives up all objects that wait to be written, and gives their number.
    pub fn drop_writes(&self) -> u64 {
        tier_io::drop_writes(self)
    }

    /// Another buffer over an object, unless it was evicted, deleted or forgotten meanwhile.
    pub fn buffer(&self, name: Ref) -> Option<Buffer> {
        tier_io::buffer(self, name)
    }

    /// A write ended: a backend has the object, or writing it was given up and is not tried again. From now on the object may be
    /// evicted like any other. One that was to leave once written leaves now.
    pub fn written(&self, name: Ref, stored: bool) {
        tier_io::written(self, name, stored)
    }

    /// Objects waiting to be written to L2.
    pub fn writes_queued(&self) -> u64 {
        self.state.lock().writes_waiting
    }

    /// Whether there are uses that the backends do not know of.
    pub fn has_uses(&self) -> bool {
        self.uses_noted.load(Ordering::Acquire)
    }

    /// Takes the uses that the backends do not know of, in exchange for an empty list.
    pub fn take_uses(&self, empty: &mut Uses) {
        tier_notes::take_uses(self, empty)
    }

    /// The names of those objects that are still there and stored below, in order.
    pub fn stored_names(&self, objects: &[Ref]) -> Vec<ObjectKey> {
        tier_notes::stored_names(self, objects)
    }

    /// The names of those objects that are still there, in order.
    pub fn names(&self, objects: &[Ref]) -> Vec<ObjectKey> {
        tier_notes::names(self, objects)
    }

    /// An object to be written to one more backend; none if it is not there any more.
    pub fn begin_backend_copy(&self, object: &ObjectKey) -> Option<QueuedWrite> {
        tier_io::begin_backend_copy(self, object)
    }

    /// A backend has a copy of an object: it is stored, unless it waits to be written anyway.
    pub fn copied(&self, name: Ref) {
        tier_io::copied(self, name)
    }

    /// Keeps those objects that L1 takes for stored, that are being written, or that are marked in `wanted`.
    pub fn retain_stored(&self, objects: &mut Vec<ObjectKey>, wanted: &[bool]) {
        tier_notes::retain_stored(self, objects, wanted)
    }

    /// No backend has these objects any more: they are not stored, and are written again before they are evicted.
    pub fn lose(&self, objects: &[ObjectKey]) {
        tier_notes::lose(self, objects)
    }

    /// The stored objects among a range of slots that begins with `first`, and where the next range begins. `None`: there is none.
    pub fn stored_from(&self, first: u32) -> Option<(Vec<ObjectKey>, u32)> {
        tier_notes::stored_from(self, first)
    }

    /// Evicts a slice of objects if L1 is above its low watermark. `insists`: even if L1 is busy.
    pub fn evict_slice(&self, insists: bool) -> Eviction {
        evict::evict_slice(self, insists)
    }

    /// Ends sessions that passed their deadline holding nothing. Gives the numbers of all that were ended by their deadlines since the last
    /// call, and when to look again.
    pub fn reclaim_sessions(&self) -> (Vec<u64>, Option<Duration>) {
        self.with(lifecycle::end_idle)
    }

    /// Lines for the log since the last call, with their kinds.
    pub fn take_notices(&self) -> Vec<(&'static str, String)> {
        self.with(|state| std::mem::take(&mut state.notices))
    }

    /// The numbers that it counted.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// The numbers that it counted, and how full it is.
    pub fn gauges(&self) -> (Counts, Gauges) {
        self.with(|state| (state.counts, inspect::gauges(state)))
    }
}
