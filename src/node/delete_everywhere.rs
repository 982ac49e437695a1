//! Deleting keys in L1 and in every backend at once.

use std::collections::HashSet;

use super::parts::Node;
use crate::error::{KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result};
use crate::key::{Key, ObjectKey};
use crate::l1::Outcome;

/// Deletes keys of a space. A key that is in use, or that a job loads, stays and is LOCKED.
pub(super) fn delete(node: &Node, space: u64, keys: &[Key], statuses: Option<&mut [i32]>) -> Result<bool> {
    let objects = node.objects(space, keys)?;
    let committed = node.prefetcher.loads_committed();
    // Looked at before and after, so that a load that ends or begins meanwhile is seen.
    let before = node.prefetcher.loading(&objects);
    let still: Vec<Key> = keys.iter().zip(&before).filter(|(_, loading)| !**loading).map(|(key, _)| *key).collect();
    let mut of_l1 = node.l1.delete(space, &still)?.into_iter();
    let after = node.prefetcher.loading(&objects);
    let mut results = Vec::with_capacity(keys.len());
    for (before, after) in before.into_iter().zip(after) {
        let status = if before { None } else { of_l1.next() };
        results.push(status.filter(|_| !after).unwrap_or(KVKEEP_ERR_LOCKED));
    }
    let free: Vec<usize> = (0..keys.len()).filter(|&i| results[i] != KVKEEP_ERR_LOCKED).collect();
    let objects: Vec<ObjectKey> = free.iter().map(|&i| objects[i]).collect();
    if !objects.is_empty() {
        let misses = node.l1.misses();
        // Before the backends, which may delete at once.
        free.iter().zip(&objects).for_each(|(&i, object)| misses.deleted(object, results[i] == KVKEEP_OK));
        for ((&i, object), known) in free.iter().zip(&objects).zip(node.writer.delete(&objects)) {
            if known && results[i] == KVKEEP_ERR_NOT_FOUND {
                results[i] = KVKEEP_OK;
                misses.deleted(object, true);
            }
        }
        // A job may have found an object after it was looked for in L1, and before it was gone below.
        node.prefetcher.drop_deleted(&objects);
        if node.prefetcher.loads_committed() != committed {
            let gone: Vec<Key> = free.iter().map(|&i| keys[i]).collect();
            node.l1.detach_keys(space, &gone)?;
        }
    }
    // A key is deleted once: where it stands again, nothing is left to delete, whichever tier had it.
    let mut seen = HashSet::with_capacity(if keys.len() > 1 { keys.len() } else { 0 });
    for (key, status) in keys.iter().zip(&mut results).filter(|_| keys.len() > 1) {
        if !seen.insert(key) && *status == KVKEEP_OK {
            *status = KVKEEP_ERR_NOT_FOUND;
        }
    }
    let mut outcome = Outcome::new(statuses);
    results.into_iter().enumerate().for_each(|(i, status)| outcome.set(i, status));
    Ok(outcome.all_ok())
}
