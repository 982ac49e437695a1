//! Token chains: the hashes of a session's tokens, chunk by chunk.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::abi::KVKEEP_KEYS_MAX;
use crate::error::{Error, KVKEEP_ERR_LIMIT, Result};
use crate::hash::{chain_next, chain_seed};
use crate::key::Key;
use crate::l1::SpaceInfo;

/// Most tokens of one session.
const TOKENS_MAX: u64 = 1 << 26;
/// Most bytes of all chains together: hashes of 34 thousand million tokens in chunks of 256.
const BYTES_MAX: u64 = 4 << 30;

struct Chain {
    hashes: Vec<[u8; 32]>,
    /// Tokens of the chunk that is not full yet.
    rest: Vec<u32>,
    /// Its part of the bytes of all.
    bytes: u64,
    bytes_of_all: Arc<AtomicU64>,
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.bytes_of_all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Chain {
    /// Counts the bytes that it will have, if all may have as many.
    fn resize(&mut self, bytes: u64, most: u64) -> Result<()> {
        let (before, all) = (self.bytes, &self.bytes_of_all);
        let resized = all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
            let all = all - before + bytes;
            (all <= most || bytes <= before).then_some(all)
        });
        resized.map_err(|_| {
            Error::new(
                KVKEEP_ERR_LIMIT,
                format!("the tokens of all sessions would take more than {most} bytes: end some sessions, or open spaces with larger chunks"),
            )
        })?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Ranks and groups that a chunk's keys are made for: first rank, ranks, groups.
pub type Ranks = (u32, u32, u32);

/// The chains of all sessions, each behind its own lock: hashing a long prompt keeps no other session waiting.
pub struct Chains {
    chains: Mutex<HashMap<u64, Arc<Mutex<Chain>>>>,
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
}

impl Default for Chains {
    fn default() -> Chains {
        Chains::new(BYTES_MAX)
    }
}

impl Chains {
    /// None yet, which may take so many bytes.
    fn new(bytes_max: u64) -> Chains {
        Chains { chains: Mutex::default(), bytes: Arc::default(), bytes_max }
    }

    /// Appends tokens. Returns how many chunks are full.
    pub fn append(&self, session: u64, space: &SpaceInfo, tokens: &[u32]) -> Result<u64> {
        let chain = self.chains.lock().entry(session).or_insert_with(|| self.empty()).clone();
        let mut chain = chain.lock();
        let chain = &mut *chain;
        let size = space.chunk_tokens as usize;
        let had = (chain.hashes.len() * size + chain.rest.len()) as u64;
        if had + tokens.len() as u64 > TOKENS_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("session {session} would have more than {TOKENS_MAX} tokens: begin a new session"),
            ));
        }
        let (full, rest) = ((had as usize + tokens.len()) / size, (had as usize + tokens.len()) % size);
        let more = full - chain.hashes.len();
        let refused = |_| Error::no_memory(more * size_of::<[u8; 32]>(), "the hashes of a session's tokens");
        chain.hashes.try_reserve(more).map_err(refused)?;
        chain.resize((full * size_of::<[u8; 32]>() + rest * size_of::<u32>()) as u64, self.bytes_max)?;
        let mut last = chain.hashes.last().copied().unwrap_or_else(|| chain_seed(space.tag));
        let mut left = tokens;
        if !chain.rest.is_empty() {
            let missing = (size - chain.rest.len()).min(left.len());
            chain.rest.extend_from_slice(&left[..missing]);
            left = &left[missing..];
            if chain.rest.len() == size {
                last = chain_next(&last, &chain.rest);
                chain.hashes.push(last);
                chain.rest.clear();
            }
        }
        let chunks = left.chunks_exact(size);
        let rest = chunks.remainder();
        for chunk in chunks {
            last = chain_next(&last, chunk);
            chain.hashes.push(last);
        }
        chain.rest.extend_from_slice(rest);
        Ok(chain.hashes.len() as u64)
    }

    /// Writes the keys of full chunks, chunk-major.
    pub fn keys(&self, session: u64, first_chunk: u64, ranks: Ranks, keys: &mut [Key]) -> Result<()> {
        let per_chunk = keys_per_chunk(ranks)?;
        let chain = self.of(session);
        let hashes = &chain.lock().hashes;
        let chunks = keys.len() / per_chunk;
        let range = usize::try_from(first_chunk).ok().and_then(|first| hashes.get(first..first.checked_add(chunks)?));
        let Some(range) = range else {
            return Err(Error::invalid(format!(
                "chunks {first_chunk} to {} are wanted, but session {session} has {} full ones: append more tokens first",
                first_chunk.saturating_add(chunks as u64),
                hashes.len()
            )));
        };
        for (hash, keys) in range.iter().zip(keys.chunks_mut(per_chunk)) {
            fill_in(keys, *hash, ranks);
        }
        Ok(())
    }

    /// Writes the keys of the chunk that is not full, as far as its first `tail_tokens` tokens.
    pub fn tail_keys(
        &self,
        session: u64,
        space: &SpaceInfo,
        tail_tokens: u32,
        ranks: Ranks,
        keys: &mut [Key],
    ) -> Result<()> {
        if keys_per_chunk(ranks)? != keys.len() {
            return Err(Error::invalid("there is not one key for each rank and group: pass room for as many"));
        }
        let chain = self.of(session);
        let chain = chain.lock();
        let tail = chain.rest.get(..tail_tokens as usize).filter(|tail| !tail.is_empty());
        let Some(tail) = tail else {
            return Err(Error::invalid(format!(
                "tail_tokens is {tail_tokens}, but the last chunk of session {session} has {} tokens: pass 1 to as many",
                chain.rest.len()
            )));
        };
        let before = chain.hashes.last().copied().unwrap_or_else(|| chain_seed(space.tag));
        fill_in(keys, chain_next(&before, tail), ranks);
        Ok(())
    }

    /// The keys of the chunks that lie wholly within a range of tokens.
    pub fn keys_of_tokens(
        &self,
        session: u64,
        space: &SpaceInfo,
        tokens: Range<u64>,
        ranks: Ranks,
    ) -> Result<Vec<Key>> {
        let size = u64::from(space.chunk_tokens);
        let full = self.of(session).lock().hashes.len() as u64;
        let (first, end) = (tokens.start.div_ceil(size), (tokens.end / size).min(full));
        if tokens.start >= tokens.end || first >= full {
            return Err(Error::invalid(format!(
                "tokens {} to {} hold no full chunk of session {session}, which has {full} of {size} tokens each: pass a range it appended",
                tokens.start, tokens.end
            )));
        }
        let chunks = end.saturating_sub(first) as usize;
        let per_chunk = ranks.1 as usize * ranks.2 as usize;
        let Some(count) = chunks.checked_mul(per_chunk).filter(|&count| count <= KVKEEP_KEYS_MAX) else {
            return Err(Error::invalid(format!(
                "{chunks} chunks of {} ranks and {} groups are more than {KVKEEP_KEYS_MAX} keys: pass a shorter range",
                ranks.1, ranks.2
            )));
        };
        let empty = Key { hash: [0; 32], rank: 0, group: 0 };
        let mut keys = vec![empty; count];
        self.keys(session, first, ranks, &mut keys)?;
        Ok(keys)
    }

    fn empty(&self) -> Arc<Mutex<Chain>> {
        let bytes_of_all = self.bytes.clone();
        Arc::new(Mutex::new(Chain { hashes: Vec::new(), rest: Vec::new(), bytes: 0, bytes_of_all }))
    }

    /// A session's chain, empty if it has appended nothing.
    fn of(&self, session: u64) -> Arc<Mutex<Chain>> {
        self.chains.lock().get(&session).cloned().unwrap_or_else(|| self.empty())
    }

    /// Forgets a session's chain.
    pub fn forget(&self, session: u64) {
        self.chains.lock().remove(&session);
    }
}

/// Keys of one chunk.
fn keys_per_chunk(ranks: Ranks) -> Result<usize> {
    let (first_rank, rank_count, groups) = ranks;
    let per_chunk = rank_count as usize * groups as usize;
    if per_chunk == 0 || first_rank.checked_add(rank_count).is_none() {
        return Err(Error::invalid("rank_count or group_count is 0, or the ranks overflow: pass at least one of each"));
    }
    Ok(per_chunk)
}

/// Writes the keys of one chunk.
fn fill_in(keys: &mut [Key], hash: [u8; 32], (first_rank, _, groups): Ranks) {
    for (i, key) in keys.iter_mut().enumerate() {
        *key = Key { hash, rank: first_rank + i as u32 / groups, group: i as u32 % groups };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SpaceTag;

    #[test]
    fn a_tail_has_a_key_for_each_length_that_goes_with_the_tokens_that_fill_it() {
        let space = SpaceInfo { index: 0, tag: SpaceTag([5; 16]), layout: [0; 16], chunk_tokens: 16 };
        let chains = Chains::default();
        let mut key = [Key { hash: [0; 32], rank: 0, group: 0 }];
        let mut tail =
            |session, tokens| chains.tail_keys(session, &space, tokens, (3, 1, 1), &mut key).map(|()| key[0]);
        assert!(tail(1, 1).is_err());
        chains.append(1, &space, &[7; 5]).unwrap();
        let seed = chain_seed(space.tag);
        assert_eq!(tail(1, 5).unwrap(), Key { hash: chain_next(&seed, &[7; 5]), rank: 3, group: 0 });
        assert_eq!(tail(1, 2).unwrap().hash, chain_next(&seed, &[7; 2]));
        assert!(tail(1, 6).is_err() && tail(1, 0).is_err());
        chains.append(1, &space, &[7; 15]).unwrap();
        assert_eq!(tail(1, 4).unwrap().hash, chain_next(&chain_next(&seed, &[7; 16]), &[7; 4]));
        chains.append(1, &space, &[7; 12]).unwrap();
        assert!(tail(1, 1).is_err());
    }

    #[test]
    fn all_sessions_together_are_bounded_and_what_one_had_is_free_with_it() {
        let space = SpaceInfo { index: 0, tag: SpaceTag([5; 16]), layout: [0; 16], chunk_tokens: 16 };
        let chains = Chains::new(3 * 32 + 4);
        assert_eq!(chains.append(1, &space, &[7; 33]).unwrap(), 2);
        assert_eq!(chains.append(2, &space, &[7; 16]).unwrap(), 1);
        let refused = chains.append(2, &space, &[7]).unwrap_err();
        assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
        // Nothing was appended, and the first session may append where that takes less.
        assert_eq!(chains.append(1, &space, &[]).unwrap(), 2);
        chains.forget(1);
        assert_eq!(chains.bytes.load(Ordering::Relaxed), 32);
        assert_eq!(chains.append(2, &space, &[7; 33]).unwrap(), 3);
        chains.forget(2);
        assert_eq!(chains.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn tokens_in_any_pieces_give_the_same_chain() {
        let space = SpaceInfo { index: 0, tag: SpaceTag([5; 16]), layout: [0; 16], chunk_tokens: 16 };
        let tokens: Vec<u32> = (0..100).collect();
        let chains = Chains::default();
        assert_eq!(chains.append(1, &space, &tokens).unwrap(), 6);
        for (i, token) in tokens.iter().enumerate() {
            assert_eq!(chains.append(2, &space, &[*token]).unwrap(), (i as u64 + 1) / 16);
        }
        let empty = Key { hash: [0; 32], rank: 0, group: 0 };
        let (mut one, mut two) = (vec![empty; 6 * 4], vec![empty; 6 * 4]);
        chains.keys(1, 0, (0, 2, 2), &mut one).unwrap();
        chains.keys(2, 0, (0, 2, 2), &mut two).unwrap();
        assert_eq!(one, two);
        assert_eq!((one[5].rank, one[5].group), (0, 1));
        assert_eq!((one[6].rank, one[6].group), (1, 0));
        assert!(chains.keys(1, 1, (0, 2, 2), &mut one).is_err());
        assert_eq!(chains.keys_of_tokens(1, &space, 1..48, (0, 1, 1)).unwrap().len(), 2);
    }
}
