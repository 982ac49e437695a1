//! Accepting a transfer: the call checks its arguments and takes the memory before it returns; the device's threads copy.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};

use super::cpu_copy::Way;
use super::large_store::StoreRemainder;
use super::page_pool::PagePool;
use super::transfer_job::{PrefetchFollower, StopReason, Transfer, TransferPlan};
use super::transfers::Transfers;
use crate::abi::{KVKEEP_KEYS_MAX, View};
use crate::config::{Mode, Notify, Policy, PrefetchRequest};
use crate::control::completion::WAITING_MAX;
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_QUOTA, KVKEEP_OK, Result, Status};
use crate::key::Key;
use crate::l1::memory_wait::is_refused;
use crate::memory_bounds::ask_for;

/// Bytes that a transfer needs for each key, about.
const KEY_BYTES: usize = 300;
/// Objects that are loaded together at first, so that their copying begins when they are there and not when all are.
const TOGETHER: usize = 8;

/// How a store or a load is done.
#[derive(Default)]
pub struct TransferRequest {
    /// The caller's stream that it follows.
    pub stream: u64,
    /// Of a load: tokens from the first key on whose pages are left alone.
    pub skip_first_tokens: u32,
    /// Of a load: give back the session's own share of each key at the end.
    pub return_shares: bool,
    /// Objects that it stores, or brings into L1, are dropped with their last share.
    pub temporary: bool,
    /// Of a load: its prefetches come before those of lower priority.
    pub priority: i32,
    /// How the end is reported.
    pub notify: Notify,
}

fn check_keys(pool: &PagePool, keys: &[Key], blocks: &[i32]) -> Result<()> {
    ask_for(keys.len() * KEY_BYTES + size_of_val(blocks) * 2, "the keys of a transfer")?;
    let per_chunk = pool.layout.blocks_per_chunk as usize;
    if keys.len() * per_chunk != blocks.len() {
        return Err(Error::invalid(format!(
            "block_count is {}, but {} keys of {per_chunk} blocks each have {}: pass blocks_per_chunk block numbers for each \
             key, KVKEEP_BLOCK_NONE where there is none",
            blocks.len(),
            keys.len(),
            keys.len() * per_chunk
        )));
    }
    if blocks.len() > KVKEEP_KEYS_MAX {
        return Err(Error::invalid(format!(
            "block_count is {}, more than {KVKEEP_KEYS_MAX}: split the batch",
            blocks.len()
        )));
    }
    let mut named = HashSet::with_capacity(keys.len());
    for (i, key) in keys.iter().enumerate() {
        if key.rank != pool.rank {
            return Err(Error::invalid(format!(
                "keys[{i}] is of rank {}, the pool of rank {}: use the pool of the key's rank",
                key.rank, pool.rank
            )));
        }
        if !pool.layout.groups.contains_key(&key.group) {
            return Err(Error::invalid(format!(
                "keys[{i}] is of group {}, of which the pool has no segment: use a pool that has",
                key.group
            )));
        }
        if !named.insert(key) {
            return Err(Error::invalid(format!("keys[{i}] is there twice: name each key once")));
        }
    }
    for (i, &id) in blocks.iter().enumerate() {
        if id < -1 || i64::from(id) >= i64::from(pool.layout.blocks) {
            return Err(Error::invalid(format!(
                "block_ids[{i}] is {id}, the pool has blocks 0 to {}: pass a block of the pool, or KVKEEP_BLOCK_NONE",
                pool.layout.blocks - 1
            )));
        }
    }
    Ok(())
}

/// Each key of a store has its blocks in front, at least one.
fn check_stored(pool: &PagePool, blocks: &[i32]) -> Result<()> {
    for (key, blocks) in blocks.chunks(pool.layout.blocks_per_chunk as usize).enumerate() {
        let there = blocks.iter().take_while(|&&id| id >= 0).count();
        if there == 0 || blocks[there..].iter().any(|&id| id >= 0) {
            return Err(Error::invalid(format!(
                "the blocks of keys[{key}] begin with KVKEEP_BLOCK_NONE or have it between two blocks: only the last ones of a \
                 chunk may be missing from a store"
            )));
        }
    }
    Ok(())
}

/// No page of a load is written twice: in each group, a block is named once.
fn check_loaded(pool: &PagePool, keys: &[Key], blocks: &[i32]) -> Result<()> {
    let mut written = HashSet::with_capacity(blocks.len());
    let per_chunk = pool.layout.blocks_per_chunk as usize;
    for (i, &id) in blocks.iter().enumerate().filter(|(_, id)| **id >= 0) {
        if !written.insert((keys[i / per_chunk].group, id)) {
            return Err(Error::invalid(format!(
                "block_ids[{i}] is {id}, which is there twice in its group: load each block once"
            )));
        }
    }
    Ok(())
}

/// Passes over the blocks that are not to be loaded.
fn skip(pool: &PagePool, keys: &[Key], blocks: &mut [i32], tokens: u32) -> Result<()> {
    if !tokens.is_multiple_of(pool.block_tokens) {
        return Err(Error::invalid(format!(
            "skip_first_tokens is {tokens}, the pool's blocks have {} tokens: pass a multiple, since blocks are loaded whole",
            pool.block_tokens
        )));
    }
    let mut left: HashMap<u32, u32> = HashMap::new();
    for (key, blocks) in keys.iter().zip(blocks.chunks_mut(pool.layout.blocks_per_chunk as usize)) {
        let left = left.entry(key.group).or_insert(tokens / pool.block_tokens);
        for id in blocks {
            if *left == 0 {
                break;
            }
            *left -= 1;
            *id = -1;
        }
    }
    Ok(())
}

/// The keys that are loaded together: each group twice the one before it, since each costs a call, but at most half of what is left, so that
/// no large one is still to be copied when all is there.
fn groups(keys: &[usize]) -> impl Iterator<Item = &[usize]> {
    let (mut left, mut next) = (keys, TOGETHER);
    std::iter::from_fn(move || {
        let count = next.min((left.len() / 2).max(TOGETHER)).min(left.len());
        let (group, rest) = left.split_at(count);
        (left, next) = (rest, count * 2);
        (!group.is_empty()).then_some(group)
    })
}

/// The arguments of a store or a load.
pub struct AskedTransfer<'a> {
    /// The number of the pool.
    pub pool: u64,
    /// The session it is for.
    pub session: u64,
    /// The keys of the objects.
    pub keys: &'a [Key],
    /// The blocks, so many for each key as a chunk has.
    pub blocks: &'a [i32],
}

/// The checked arguments of a transfer.
pub(super) struct CheckedRequest {
    pub(super) pool: Arc<PagePool>,
    pub(super) way: Way,
    /// As asked, less what is passed over.
    pub(super) blocks: Vec<i32>,
}

/// A transfer that is being submitted and that other calls can name already. It does not end before this is dropped.
pub(super) struct Submitting(Arc<Transfer>);

impl Deref for Submitting {
    type Target = Arc<Transfer>;

    fn deref(&self) -> &Arc<Transfer> {
        &self.0
    }
}

impl Drop for Submitting {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(KVKEEP_ERR_INTERNAL, "a bug in kvkeep was caught while it was submitted");
        }
        self.0.submitted();
    }
}

impl Transfers {
    /// Gathers blocks into objects and commits them.
    pub fn submit_store(&self, asked: AskedTransfer<'_>, request: TransferRequest, job: &mut u64) -> Result<()> {
        let pool = self.pool(asked.pool)?;
        check_keys(&pool, asked.keys, asked.blocks)?;
        check_stored(&pool, asked.blocks)?;
        let per_chunk = pool.layout.blocks_per_chunk as usize;
        let sizes: Vec<u64> = asked
            .keys
            .iter()
            .zip(asked.blocks.chunks(per_chunk))
            .map(|(key, blocks)| {
                let there = blocks.iter().filter(|&&id| id >= 0).count();
                pool.layout.groups.get(&key.group).map_or(0, |group| group.block_bytes * there as u64)
            })
            .collect();
        let temporary = request.temporary;
        let waits = !temporary && !self.cache().store_wait().is_zero();
        let reserve = |copy, views: &mut [View]| {
            if waits {
                // Keys for which there is no memory unless writes are dropped wait in the background.
                self.cache().reserve_waiting(copy, asked.keys, &sizes, Duration::ZERO, views).map(drop)
            } else {
                self.cache().reserve_write(copy, asked.keys, &sizes, temporary, views).map(drop)
            }
        };
        let blocks = asked.blocks.to_vec();
        let checked = CheckedRequest { pool, way: Way::Gather, blocks };
        let (transfer, views) = self.accept(&asked, checked, request, reserve, job)?;
        let (mut there, mut there_views, mut rest) = (Vec::new(), Vec::new(), VecDeque::new());
        for (key, view) in views.iter().enumerate() {
            if is_refused(view) && !temporary {
                rest.push_back((key, asked.keys[key], sizes[key]));
            } else {
                there.push(key);
                there_views.push(*view);
            }
        }
        // What is temporary does not wait for memory.
        let refused = views.iter().find(|view| temporary && is_refused(view));
        let why = refused.and_then(|view| self.why_refused(transfer.copy, view));
        {
            let mut progress = transfer.progress.lock();
            if let Some(why) = why {
                progress.refused(why);
            }
            if !rest.is_empty() {
                progress.expect_memory();
            }
            progress.take_stored(&transfer.targets, self.cache(), &there, &there_views);
        }
        if !rest.is_empty() {
            self.large_stores.push(StoreRemainder { transfer: transfer.clone(), keys: rest, fed: Instant::now() });
        }
        Ok(())
    }

    /// Why a session was refused the memory of a view.
    fn why_refused(&self, session: u64, view: &View) -> Option<StopReason> {
        let status = Status::from_number(view.status)?;
        let why = self.cache().explain_refusal(session, status == KVKEEP_ERR_QUOTA);
        Some((status, why.unwrap_or_else(|error| error.message)))
    }

    /// Scatters objects into blocks, those on their way as they come.
    pub fn submit_load(&self, asked: AskedTransfer<'_>, request: TransferRequest, job: &mut u64) -> Result<()> {
        let pool = self.pool(asked.pool)?;
        check_keys(&pool, asked.keys, asked.blocks)?;
        let mut blocks = asked.blocks.to_vec();
        skip(&pool, asked.keys, &mut blocks, request.skip_first_tokens)?;
        check_loaded(&pool, asked.keys, &blocks)?;
        let per_chunk = pool.layout.blocks_per_chunk as usize;
        let wanted: Vec<usize> = (0..asked.keys.len())
            .filter(|&key| blocks[key * per_chunk..][..per_chunk].iter().any(|&id| id >= 0))
            .collect();
        let wanted_keys: Vec<Key> = wanted.iter().map(|&key| asked.keys[key]).collect();
        let fetch = PrefetchRequest {
            mode: Mode::Any,
            policy: Policy::Wait,
            temporary: request.temporary,
            priority: request.priority,
            ..PrefetchRequest::default()
        };
        let reserve = |copy, views: &mut [View]| {
            if wanted_keys.is_empty() {
                return Ok(());
            }
            self.cache().reserve_read(copy, &wanted_keys, 0, &mut views[..wanted_keys.len()]).map(drop)
        };
        let checked = CheckedRequest { pool, way: Way::Scatter, blocks };
        let (transfer, views) = self.accept(&asked, checked, request, reserve, job)?;
        let mut absent = Vec::new();
        {
            let mut progress = transfer.progress.lock();
            let mut next = wanted.iter().copied().peekable();
            for key in (0..asked.keys.len()).filter(|&key| next.next_if_eq(&key).is_none()) {
                progress.fail(&transfer.targets, key, KVKEEP_OK);
            }
            let (mut there, mut there_views) = (Vec::new(), Vec::new());
            for (&key, view) in wanted.iter().zip(&views) {
                if view.status == KVKEEP_ERR_NOT_FOUND as i32 {
                    absent.push(key);
                } else {
                    there.push(key);
                    there_views.push(*view);
                }
            }
            progress.take_in(&transfer.targets, self.cache(), &there, &there_views);
            progress.expect_prefetches(groups(&absent).count());
        }
        for keys in groups(&absent) {
            self.fetch(&transfer, keys, asked.keys, &fetch);
        }
        Ok(())
    }

    /// Has some keys of a load brought into L1, or follows the load that brings them already.
    fn fetch(&self, transfer: &Arc<Transfer>, keys: &[usize], all: &[Key], like: &PrefetchRequest) {
        let names: Vec<Key> = keys.iter().map(|&key| all[key]).collect();
        let follower = PrefetchFollower { transfer: transfer.clone(), keys: keys.to_vec() };
        let request = PrefetchRequest {
            mode: like.mode,
            policy: like.policy,
            temporary: like.temporary,
            priority: like.priority,
            notify: Notify::Observer(Arc::new(follower)),
            ..PrefetchRequest::default()
        };
        if let Err(error) = self.cache().submit_prefetch(transfer.copy, &names, request, &mut 0) {
            transfer.progress.lock().prefetch_refused(&transfer.targets, keys, error.status);
        }
    }

    /// Takes the memory of a transfer and makes it known; from here on it completes, but not before the returned guard is dropped.
    pub(super) fn accept(
        &self,
        asked: &AskedTransfer<'_>,
        checked: CheckedRequest,
        request: TransferRequest,
        reserve: impl FnOnce(u64, &mut [View]) -> Result<()>,
        job: &mut u64,
    ) -> Result<(Submitting, Vec<View>)> {
        let submitted = Instant::now();
        let CheckedRequest { pool, way, blocks } = checked;
        self.cache().completions().check_capacity(&request.notify, WAITING_MAX)?;
        self.check_room(pool.number)?;
        let point = pool.device.point(request.stream, way)?;
        let copy = self.cache().begin_copy(asked.session, pool.space, &pool.shapes)?;
        let mut views = vec![View::none(Status::KVKEEP_PENDING); asked.keys.len()];
        let accepted = reserve(copy, &mut views).and_then(|()| {
            self.enter(pool.number, |id| {
                *job = id;
                let plan = TransferPlan {
                    id,
                    pool,
                    session: asked.session,
                    copy,
                    way,
                    keys: asked.keys.to_vec(),
                    blocks,
                    return_shares: request.return_shares,
                    point,
                    notify: request.notify,
                    submitted,
                };
                Transfer::new(plan, self.me.clone())
            })
        });
        match accepted {
            Ok(transfer) => Ok((Submitting(transfer), views)),
            Err(error) => {
                // The session's end returns what it had taken.
                let _ = self.cache().abort_session(copy);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loads_groups_begin_and_end_small_and_are_few() {
        for count in [0, 1, 7, 8, 9, 15, 16, 17, 100, 1023, 1024, 65_536] {
            let keys: Vec<usize> = (0..count).map(|i| 3 * i).collect();
            let sizes: Vec<usize> = groups(&keys).map(<[usize]>::len).collect();
            assert!(groups(&keys).flatten().eq(&keys));
            assert!(sizes.first().is_none_or(|&first| first <= TOGETHER), "{sizes:?}");
            assert!(sizes.last().is_none_or(|&last| last <= TOGETHER), "{sizes:?}");
            assert!(sizes.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{sizes:?}");
            let most = 2 * (1 + count / TOGETHER).next_power_of_two().ilog2() as usize;
            assert!(sizes.len() <= most.max(1), "{count}: {sizes:?}");
        }
    }
}
