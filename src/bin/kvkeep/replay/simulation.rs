//! A cache of one or two tiers by keys alone, used by engines as the real one is.
//!
//! A request looks its blocks up, loads those that only L2 has, reads them, stores the missing ones in their order, and ends. Writes to L2
//! and eviction in the background take no time here.

use hashbrown::HashSet;
use kvkeep::error::{Error, Result};
use kvkeep::policy;

use super::simulated_tier::{ObjectName, SimulatedTier};

/// The size of a cache that never evicts.
pub const ENDLESS: u64 = u64::MAX / 2;

/// L1 gives objects whole units of so many bytes, at least up to 256 GiB.
const UNIT: u64 = 64;
/// A directory keeps a header of so many bytes before each object, and whole blocks of as many.
const DISK_BLOCK: u64 = 4096;

/// The bytes of L1 that an object takes.
pub fn l1_room(bytes: u64) -> u64 {
    bytes.next_multiple_of(UNIT)
}

/// The bytes of a directory that an object takes.
pub fn l2_room(bytes: u64) -> u64 {
    (DISK_BLOCK + bytes).next_multiple_of(DISK_BLOCK)
}

/// The cache to simulate.
#[derive(Clone)]
pub struct SimulatedConfig {
    /// The eviction policy of both tiers.
    pub policy: String,
    pub l1_bytes: u64,
    pub l2_bytes: Option<u64>,
    /// Background eviction from L1 begins above the first percentage and ends at the second.
    pub watermarks: (u32, u32),
}

/// The counters of a simulation: hits in chunks, the others in blocks. A chunk of a public trace is one block.
#[derive(Clone, Copy, Default)]
pub struct SimulatedCounts {
    pub asked: u64,
    /// Blocks found in L1, and in L2 alone.
    pub l1_hits: u64,
    pub l2_hits: u64,
    /// Blocks found before the first missing one of their request.
    pub prefix_hits: u64,
    /// Chunks found when the trace was recorded.
    pub recorded_hits: u64,
    pub loaded_bytes: u64,
    pub commits: u64,
    /// Blocks that were in L1 beyond the first missing one.
    pub beyond: u64,
    /// Blocks refused because L1 was full of blocks in use, or may evict none.
    pub refused: u64,
    pub l2_stores: u64,
    pub l2_stored_bytes: u64,
}

impl SimulatedCounts {
    /// Blocks found in any tier.
    pub fn hits(&self) -> u64 {
        self.l1_hits + self.l2_hits
    }
}

/// A block that a request asks for or stores.
#[derive(Clone, Copy)]
pub struct AskedBlock {
    pub id: u64,
    pub bytes: u64,
}

/// A lookup.
pub struct SimulatedLookup<'a> {
    /// The blocks asked for, chunk by chunk.
    pub blocks: &'a [AskedBlock],
    /// Blocks of one chunk, of which a part is of no use.
    pub per_chunk: usize,
    /// Each chunk counts for itself. Otherwise those before the first missing one count.
    pub any: bool,
    /// L2 is not asked.
    pub l1_only: bool,
}

/// A request's hold on the cache.
#[derive(Default)]
pub struct SimulatedSession {
    used: Vec<ObjectName>,
    /// Blocks that this request had stored in L2.
    fresh: HashSet<u64>,
    next_depth: u32,
    landed: bool,
}

/// A simulated cache.
pub struct Simulation {
    l1: SimulatedTier,
    l2: Option<SimulatedTier>,
    watermarks: (u32, u32),
    pub counts: SimulatedCounts,
}

impl Simulation {
    /// An empty cache.
    pub fn new(config: &SimulatedConfig) -> Result<Simulation> {
        let policy = || policy::by_name(&config.policy);
        let l2 = config.l2_bytes.map(|bytes| Ok::<_, Error>(SimulatedTier::new(policy()?, bytes, l2_room))).transpose();
        Ok(Simulation {
            l1: SimulatedTier::new(policy()?, config.l1_bytes, l1_room),
            l2: l2?,
            watermarks: config.watermarks,
            counts: SimulatedCounts::default(),
        })
    }

    /// Serves a request from its lookup to its end: it stores what it misses.
    pub fn serve(&mut self, lookup: &SimulatedLookup) {
        let mut session = SimulatedSession::default();
        let held = self.look_up(&mut session, lookup, |_| true);
        let missing = lookup.blocks.iter().zip(&held).filter(|(_, held)| !**held);
        let missing: Vec<AskedBlock> = missing.map(|(block, _)| *block).collect();
        self.store(&mut session, &missing);
        self.end(session);
    }

    /// Looks blocks up, loads what L1 has not, and reads them. Says which the request read. Chunks that are `counted` count.
    pub fn look_up(
        &mut self,
        session: &mut SimulatedSession,
        lookup: &SimulatedLookup,
        counted: impl Fn(usize) -> bool,
    ) -> Vec<bool> {
        let SimulatedLookup { blocks, per_chunk, any, l1_only } = *lookup;
        let mut in_l1: Vec<Option<ObjectName>> = blocks.iter().map(|block| self.l1.find(block.id)).collect();
        for &name in in_l1.iter().flatten() {
            self.l1.lock(name);
            self.note(session, name);
        }
        let l2 = self.l2.as_ref().filter(|_| !l1_only);
        let in_l2 = |i: usize| l2.and_then(|l2| l2.find(blocks[i].id));
        let there = |i: usize| in_l1[i].is_some() || in_l2(i).is_some();
        let whole_chunks = |end: usize| end / per_chunk * per_chunk;
        let run = (0..blocks.len()).position(|i| !there(i)).unwrap_or(blocks.len());
        let mut wanted = if any { blocks.len() } else { whole_chunks(run) };
        let to_load: Vec<(usize, ObjectName)> =
            (0..wanted).filter(|&i| in_l1[i].is_none()).filter_map(|i| Some((i, in_l2(i)?))).collect();
        let from_l1: Vec<bool> = in_l1.iter().map(Option::is_some).collect();
        if let Some(failed) = self.load(session, blocks, &to_load, &mut in_l1)
            && !any
        {
            wanted = whole_chunks(failed);
        }
        let mut before_gap = true;
        for chunk in 0..blocks.len() / per_chunk {
            let objects = chunk * per_chunk..(chunk + 1) * per_chunk;
            let is_hit = objects.end <= wanted && in_l1[objects.clone()].iter().all(Option::is_some);
            before_gap &= is_hit;
            if counted(chunk) {
                let of_l1 = is_hit && from_l1[objects].iter().all(|of_l1| *of_l1);
                self.counts.asked += 1;
                self.counts.l1_hits += u64::from(of_l1);
                self.counts.l2_hits += u64::from(is_hit && !of_l1);
                self.counts.prefix_hits += u64::from(before_gap);
            }
        }

        // What the request cannot use keeps its place. What it reads counts as used, the last block first.
        let (read, unread) = in_l1.split_at(wanted);
        unread.iter().flatten().for_each(|&name| self.l1.unlock(name));
        read.iter().flatten().for_each(|&name| self.l1.count_use(name));
        for &name in read.iter().flatten().rev() {
            self.l1.unlock(name);
            self.l1.touch(name);
        }
        (0..blocks.len()).map(|i| i < wanted && in_l1[i].is_some()).collect()
    }

    /// Loads blocks from L2 and locks them in L1. Gives the first one for which L1 has no memory.
    fn load(
        &mut self,
        session: &mut SimulatedSession,
        blocks: &[AskedBlock],
        to_load: &[(usize, ObjectName)],
        in_l1: &mut [Option<ObjectName>],
    ) -> Option<usize> {
        let mut failed = None;
        for &(i, below) in to_load {
            // A request may name a block twice.
            let AskedBlock { id, bytes } = blocks[i];
            in_l1[i] = self.l1.find(id);
            if in_l1[i].is_none() {
                in_l1[i] = self.l1.stage(id, bytes, i as u32);
                if in_l1[i].is_none() {
                    failed = Some(i);
                    break;
                }
                self.counts.loaded_bytes += bytes;
            }
            if let Some(l2) = &mut self.l2 {
                l2.count_use(below);
                l2.touch(below);
            }
        }
        for &(i, _) in to_load {
            if let Some(name) = in_l1[i] {
                self.l1.commit(name);
                self.l1.lock(name);
                self.note(session, name);
                session.landed = true;
            }
        }
        self.l1.trim(self.watermarks.0, self.watermarks.1);
        failed
    }

    /// Stores blocks in their order. From the first one that L1 has no memory for, new ones are refused.
    pub fn store(&mut self, session: &mut SimulatedSession, blocks: &[AskedBlock]) {
        let (mut staged, mut full) = (Vec::new(), false);
        for &block in blocks {
            if self.l1.find(block.id).is_some() {
                self.counts.beyond += 1;
                continue;
            }
            let name = if full { None } else { self.l1.stage(block.id, block.bytes, session.next_depth) };
            full |= name.is_none();
            match name {
                Some(name) => {
                    session.next_depth += 1;
                    staged.push((block, name));
                }
                None => self.counts.refused += 1,
            }
        }
        self.counts.commits += staged.len() as u64;
        for &(_, name) in staged.iter().rev() {
            self.l1.commit(name);
        }
        for &(block, name) in &staged {
            self.note(session, name);
            self.write(session, block);
        }
        self.l1.trim(self.watermarks.0, self.watermarks.1);
    }

    /// Writes a block to L2.
    fn write(&mut self, session: &mut SimulatedSession, AskedBlock { id, bytes }: AskedBlock) {
        let Some(l2) = &mut self.l2 else { return };
        if let Some(name) = l2.find(id) {
            l2.count_use(name);
            l2.touch(name);
        } else if let Some(name) = l2.stage(id, bytes, 0) {
            l2.commit(name);
            self.counts.l2_stores += 1;
            self.counts.l2_stored_bytes += bytes;
            session.fresh.insert(id);
        }
    }

    fn note(&self, session: &mut SimulatedSession, name: ObjectName) {
        session.next_depth = session.next_depth.max(self.l1.depth(name).map_or(0, |depth| depth + 1));
        session.used.push(name);
    }

    /// Ends a request: what it used counts as used now, the last block first, also in L2.
    pub fn end(&mut self, mut session: SimulatedSession) {
        if session.landed {
            session.used.sort_by_key(|&name| self.l1.depth(name).unwrap_or(u32::MAX));
        }
        for &name in session.used.iter().rev() {
            if !self.l1.touch(name) {
                continue;
            }
            let (Some(l2), Some(id)) = (&mut self.l2, self.l1.id(name)) else { continue };
            // One that this request stored is not stored yet, in the real cache.
            if let Some(below) = l2.find(id).filter(|_| !session.fresh.contains(&id)) {
                l2.count_use(below);
                l2.touch(below);
            }
        }
    }

    /// Both tiers, for the report.
    pub fn tiers(&self) -> (&SimulatedTier, Option<&SimulatedTier>) {
        (&self.l1, self.l2.as_ref())
    }
}
