//! Counting the keys that lookups asked for, space by space: hits by tier, misses by reason.

use super::lookup;
use super::space::SpaceInfo;
use super::state::L1State;
use super::tier::L1;
use crate::abi::KVKEEP_TIERS_MAX;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::misses::{LookupCounts, MissContext};

/// Counts keys that a read has missed. Their fingerprints are of no space.
#[cold]
pub(super) fn count_misses(state: &mut L1State, space: u32, missed: &[Fingerprint], context: MissContext) {
    let L1State { misses, table, slots, spaces, .. } = state;
    let is_elsewhere = |fingerprint: Fingerprint| {
        // In its own space it may be by now: stored since the lookup.
        let is_of = |id: u32| slots.space(id) != space && slots[id].is_of(fingerprint.within(slots.space(id)));
        table.find(fingerprint.hash, is_of).is_some()
    };
    let space = &mut spaces[space as usize];
    misses.count_misses(&space.tag, missed, context, is_elsewhere, &mut space.lookups);
}

/// Counts the keys of a lookup that asked the backends, too: `hits` by the place of the tier, and those `missed` in its order.
pub(super) fn count_lookup(
    l1: &L1,
    space: SpaceInfo,
    hits: &[u64; KVKEEP_TIERS_MAX],
    missed: &[Key],
    context: MissContext,
) {
    let count = |state: &mut L1State, missed: &[Fingerprint]| {
        let its = &mut state.spaces[space.index as usize];
        // Its space may have been closed, and the index given to another.
        if its.tag == space.tag {
            its.lookups.hits.iter_mut().zip(hits).for_each(|(sum, hits)| *sum += hits);
            if !missed.is_empty() {
                count_misses(state, space.index, missed, context);
            }
        }
    };
    if missed.is_empty() {
        l1.with(|state| count(state, &[]));
    } else {
        // Those of the keys that this thread looked up last are made, if all are missing.
        lookup::with_fingerprints(l1, missed, |state, fingerprints, _| count(state, fingerprints));
    }
}

/// The counts of a space, or of all that are or were open.
pub(super) fn lookup_counts(l1: &L1, space: Option<u64>) -> Result<LookupCounts> {
    l1.with(|state| match space {
        Some(space) => Ok(state.spaces[state.space_index(space)? as usize].lookups),
        None => {
            let mut all = state.closed_lookups;
            state.by_number.values().for_each(|&index| all.add(&state.spaces[index as usize].lookups));
            Ok(all)
        }
    })
}
