//! One request as an engine would run it: look up, load, read, compute what is missing, store it, end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvkeep::abi::{JobResult, KVKEEP_TIERS_MAX, Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, NodeConfig, Policy, PrefetchRequest, SpaceSpec};
use kvkeep::error::{Error, KVKEEP_ERR_EXISTS, KVKEEP_ERR_NO_MEMORY, KVKEEP_OK, Result};
use kvkeep::key::Key;
use kvkeep::node::Node;

use super::content;

/// No request of a replay takes so long; one that does is an error, not a hang.
const PATIENCE: Duration = Duration::from_secs(600);
/// Tokens of a block, as the traces have it.
pub const BLOCK_TOKENS: u32 = 512;

/// The counters of a replay.
#[derive(Clone, Copy, Default)]
pub struct ReplayCounts {
    pub requests: u64,
    pub asked: u64,
    /// Blocks found, by tier.
    pub hits: [u64; KVKEEP_TIERS_MAX],
    /// Blocks found before the first missing one of their request: an engine can use no others.
    pub prefix_hits: u64,
    pub wrong_bytes: u64,
    pub wrong_blocks: u64,
    pub read_bytes: u64,
    pub read_time: Duration,
    pub written: u64,
    pub written_bytes: u64,
    pub write_time: Duration,
    /// Blocks that were there beyond the first missing one.
    pub beyond: u64,
    /// Blocks refused because L1 was full of blocks in use.
    pub refused: u64,
    pub failed: u64,
    /// Time in prefetches that loaded something.
    pub load_time: Duration,
}

impl ReplayCounts {
    /// Blocks found in any tier.
    pub fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }
}

/// A cache and the one engine that uses it.
pub struct ReplayEngine {
    node: Arc<Node>,
    space: u64,
    any: bool,
    block: Vec<u8>,
    /// Wait for L2 when so many objects wait to be written to it.
    backlog: Option<u64>,
    pub counts: ReplayCounts,
}

impl ReplayEngine {
    /// Opens a cache of its own for blocks of `block_bytes`.
    pub fn open(config: NodeConfig, block_bytes: usize, any: bool, wait_for_l2: bool) -> Result<ReplayEngine> {
        let backlog = (config.l1_bytes / 8 / block_bytes as u64).clamp(1, u64::from(config.writes_pending_max) / 2);
        let wait_for_l2 = wait_for_l2 && !config.backend_urls.is_empty();
        let node = Node::open(config)?;
        // The block's size is part of the layout, so that two replays with different ones may share a directory.
        let space = node.open_space(SpaceSpec {
            generation: 0,
            model: "kvkeep replay".to_owned(),
            layout: format!("{block_bytes} bytes"),
            tenant: String::new(),
            chunk_tokens: BLOCK_TOKENS,
            quota_bytes: 0,
        })?;
        let (block, backlog) = (vec![0; block_bytes], wait_for_l2.then_some(backlog));
        Ok(ReplayEngine { node, space, any, block, backlog, counts: ReplayCounts::default() })
    }

    /// Serves the request with these blocks, as one session.
    pub fn serve(&mut self, ids: &[u64]) -> Result<()> {
        self.counts.requests += 1;
        self.counts.asked += ids.len() as u64;
        if ids.is_empty() {
            return Ok(());
        }
        let keys: Vec<Key> = ids.iter().map(|&id| content::key(id)).collect();
        let session = self.node.begin_session(self.space, "replay", Some(PATIENCE))?;
        let held = self.prefetch(session, &keys)?;
        self.counts.prefix_hits += held.iter().take_while(|&&held| held).count() as u64;
        let (held, missing): (Vec<usize>, Vec<usize>) = (0..ids.len()).partition(|&i| held[i]);
        let of =
            |chosen: &[usize]| (chosen.iter().map(|&i| ids[i]).collect(), chosen.iter().map(|&i| keys[i]).collect());
        let (held_ids, held_keys): (Vec<u64>, Vec<Key>) = of(&held);
        let (new_ids, new_keys): (Vec<u64>, Vec<Key>) = of(&missing);
        self.read(session, &held_ids, &held_keys)?;
        // Shares go back once the blocks are read, before the missing ones are computed, as an engine would do it. Held until
        // the end they give the same hit rates to a few hundredths of a point.
        self.node.finish_read(session, &held_keys, 0, None)?;
        self.write(session, &new_ids, &new_keys)?;
        self.node.end_session(session)?;
        self.wait_for_l2()
    }

    /// Looks up and loads. Says which keys the session holds now.
    fn prefetch(&mut self, session: u64, keys: &[Key]) -> Result<Vec<bool>> {
        let mode = if self.any { Mode::Any } else { Mode::Prefix };
        let mut job = 0;
        let began = Instant::now();
        let request = PrefetchRequest { mode, policy: Policy::Wait, ..Default::default() };
        self.node.submit_prefetch(session, keys, request, &mut job)?;
        self.node.wait(job, PATIENCE.as_millis() as u32)?;
        let mut answer = JobResult::default();
        let status = self.node.query_job(job, &mut answer)?;
        if status != KVKEEP_OK || answer.status != KVKEEP_OK as i32 {
            return Err(Error::new(status, format!("a prefetch ended with status {}", answer.status)));
        }
        if answer.loaded_bytes > 0 {
            self.counts.load_time += began.elapsed();
        }
        self.counts.failed += u64::from(answer.failed_keys);
        self.counts.hits.iter_mut().zip(answer.tier_keys).for_each(|(sum, keys)| *sum += u64::from(keys));
        let mut bitmap = vec![0; keys.len().div_ceil(8)];
        self.node.query_bitmap(job, &mut bitmap)?;
        Ok((0..keys.len()).map(|i| bitmap[i / 8] >> (i % 8) & 1 == 1).collect())
    }

    /// Reads held blocks and checks every byte.
    fn read(&mut self, session: u64, ids: &[u64], keys: &[Key]) -> Result<()> {
        let began = Instant::now();
        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
        self.node.get_views(session, keys, &mut views)?;
        for (&id, view) in ids.iter().zip(&views) {
            let length = self.block.len() as u64;
            let wrong = if view.size == length && view.status == KVKEEP_OK as i32 {
                self.node.copy_out(view, &mut self.block)?;
                content::wrong(id, &self.block)
            } else {
                length
            };
            self.counts.wrong_bytes += wrong;
            self.counts.wrong_blocks += u64::from(wrong > 0);
            self.counts.read_bytes += length;
        }
        self.counts.read_time += began.elapsed();
        Ok(())
    }

    /// Stores blocks in their order.
    fn write(&mut self, session: u64, ids: &[u64], keys: &[Key]) -> Result<()> {
        let began = Instant::now();
        let mut views = vec![View::none(KVKEEP_OK); keys.len()];
        self.node.reserve_write(session, keys, &vec![self.block.len() as u64; keys.len()], false, &mut views)?;
        let mut staged = Vec::with_capacity(keys.len());
        for ((&id, key), view) in ids.iter().zip(keys).zip(&views) {
            if view.status == KVKEEP_OK as i32 {
                content::fill(id, &mut self.block);
                self.node.copy_in(view, &self.block)?;
                staged.push(*key);
            } else if view.status == KVKEEP_ERR_NO_MEMORY as i32 {
                self.counts.refused += 1;
            } else if view.status == KVKEEP_ERR_EXISTS as i32 {
                self.counts.beyond += 1;
            } else {
                return Err(Error::invalid(format!("a block was refused with status {}", view.status)));
            }
        }
        self.node.finish_write(session, &staged, None)?;
        self.counts.written += staged.len() as u64;
        self.counts.written_bytes += staged.len() as u64 * self.block.len() as u64;
        self.counts.write_time += began.elapsed();
        Ok(())
    }

    /// At full speed hours of requests pass in seconds: without this most of them would be evicted before L2 has them.
    fn wait_for_l2(&self) -> Result<()> {
        let Some(backlog) = self.backlog else { return Ok(()) };
        if self.stats().writes_pending <= backlog {
            return Ok(());
        }
        self.node.flush(PATIENCE.as_millis() as u32)
    }

    /// What the cache counted.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.node.stats(&mut stats);
        stats
    }

    /// Has everything written to L2 and returns what the cache counted.
    pub fn finish(&self) -> Result<Stats> {
        self.node.flush(PATIENCE.as_millis() as u32)?;
        Ok(self.stats())
    }
}

impl Drop for ReplayEngine {
    fn drop(&mut self) {
        self.node.close();
    }
}
