//! Reservations that wait for the backends before L1 drops unwritten objects.

use std::time::{Duration, Instant};

use crate::abi::View;
use crate::cache::Cache;
use crate::error::{KVKEEP_OK, KVKEEP_PARTIAL, Result};
use crate::key::Key;
use crate::l1::memory_wait::is_refused;

/// Stages keys. Takes memory that is free or of written objects, and waits for more up to `wait`; for keys that are left then,
/// or if no write is under way, evicts unwritten objects. Returns whether all keys were staged.
pub fn reserve(
    cache: &dyn Cache,
    wait: Duration,
    session: u64,
    keys: &[Key],
    sizes: &[u64],
    views: &mut [View],
) -> Result<bool> {
    let until = Instant::now() + wait;
    let mut left: Vec<usize> = (0..keys.len()).collect();
    let mut all = true;
    loop {
        let some_keys: Vec<Key> = left.iter().map(|&i| keys[i]).collect();
        let some_sizes: Vec<u64> = left.iter().map(|&i| sizes[i]).collect();
        let mut some_views = vec![View::none(KVKEEP_OK); left.len()];
        let now = Instant::now();
        let status = cache.reserve_waiting(
            session,
            &some_keys,
            &some_sizes,
            until.saturating_duration_since(now),
            &mut some_views,
        )?;
        let last = status == KVKEEP_PARTIAL || now >= until;
        if last && some_views.iter().any(is_refused) {
            // The keys that it has given are staged by now, and are not asked for again.
            let refused: Vec<usize> = (0..left.len()).filter(|&i| is_refused(&some_views[i])).collect();
            let of = |i: &usize| (some_keys[*i], some_sizes[*i]);
            let (keys, sizes): (Vec<Key>, Vec<u64>) = refused.iter().map(of).unzip();
            let mut forced = vec![View::none(KVKEEP_OK); refused.len()];
            cache.reserve_write(session, &keys, &sizes, false, &mut forced)?;
            refused.iter().zip(forced).for_each(|(&i, view)| some_views[i] = view);
        }
        let mut still = Vec::new();
        for (&i, view) in left.iter().zip(&some_views) {
            views[i] = *view;
            if is_refused(view) && !last {
                still.push(i);
            } else {
                all &= view.status == KVKEEP_OK as i32;
            }
        }
        if still.is_empty() {
            return Ok(all);
        }
        left = still;
    }
}
