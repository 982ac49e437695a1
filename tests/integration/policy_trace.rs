//! The eviction policies over a real request trace, as tables of hit rates: of blocks, and of prefixes.
//!
//! Runs over the slice that ships with the examples; `KVKEEP_TRACE` names a file to use in its place, and the whole
//! trace has numbers to meet.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use kvkeep::policy::{EvictionPolicy, Meta, NAMES, Removal, by_name};

const PERCENTS: [usize; 5] = [1, 5, 10, 20, 50];
/// Unique blocks of the slice.
const SLICE: usize = 21_514;
/// Unique blocks of the whole trace.
const WHOLE: usize = 182_790;

/// In which calls a request arrives.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Each block is touched or inserted once, last to first.
    Once,
    /// As a session does it: reads are locked and touched, new blocks are inserted first to last, and at the end all
    /// are touched again, last to first.
    Session,
}

fn trace() -> Vec<Vec<u64>> {
    let path = std::env::var("KVKEEP_TRACE")
        .unwrap_or_else(|_| format!("{}/examples/data/conversation_slice.jsonl", env!("CARGO_MANIFEST_DIR")));
    let text = std::fs::read_to_string(&path).unwrap();
    let ids = |line| {
        let request: serde_json::Value = serde_json::from_str(line).unwrap();
        request["hash_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    text.lines().map(ids).collect()
}

/// A cache of `capacity` blocks of one size.
struct Cache {
    policy: Box<dyn EvictionPolicy>,
    slots: HashMap<u64, u32>,
    blocks: Vec<(u64, u32)>,
    locked: Vec<bool>,
    capacity: usize,
}

impl Cache {
    fn new(name: &str, capacity: usize) -> Cache {
        let policy = by_name(name).unwrap();
        Cache { policy, slots: HashMap::new(), blocks: Vec::new(), locked: Vec::new(), capacity }
    }

    fn meta(&self, slot: u32) -> Meta {
        let (block, uses) = self.blocks[slot as usize];
        let tag = BuildHasherDefault::<DefaultHasher>::default().hash_one(block);
        Meta { tag, size: 1, uses, ..Meta::default() }
    }

    fn touch(&mut self, block: u64, read: bool) -> bool {
        let Some(&slot) = self.slots.get(&block) else { return false };
        self.blocks[slot as usize].1 += u32::from(read);
        let meta = self.meta(slot);
        self.policy.touch(slot, &|_| meta);
        true
    }

    fn insert(&mut self, block: u64) {
        let slot = if self.blocks.len() < self.capacity {
            self.blocks.push((block, 0));
            self.locked.push(false);
            self.blocks.len() as u32 - 1
        } else {
            let Some(slot) = self.policy.victim(&mut |slot| !self.locked[slot as usize]) else { return };
            self.policy.remove(slot, Removal::Evicted);
            self.slots.remove(&self.blocks[slot as usize].0);
            self.blocks[slot as usize] = (block, 0);
            slot
        };
        self.slots.insert(block, slot);
        let meta = self.meta(slot);
        self.policy.insert(slot, &|_| meta);
    }

    fn lock(&mut self, ids: &[u64], locked: bool) {
        for id in ids {
            if let Some(&slot) = self.slots.get(id) {
                self.locked[slot as usize] = locked;
            }
        }
    }

    /// Serves a request and says how many of its blocks were there, and how many of them before the first that was not.
    fn request(&mut self, ids: &[u64], order: Order) -> [usize; 2] {
        let there = |id: &&u64| self.slots.contains_key(id);
        let hits = [ids.iter().filter(there).count(), ids.iter().take_while(there).count()];
        if order == Order::Once {
            for &id in ids.iter().rev() {
                if !self.touch(id, true) {
                    self.insert(id);
                }
            }
            return hits;
        }
        self.lock(ids, true);
        for &id in ids {
            if !self.slots.contains_key(&id) {
                self.insert(id);
            } else {
                self.touch(id, true);
            }
        }
        self.lock(ids, false);
        for &id in ids.iter().rev() {
            self.touch(id, false);
        }
        hits
    }
}

/// Block hits and prefix hits in percent, by size of the cache.
fn rates(requests: &[Vec<u64>], unique: usize, name: &str, order: Order) -> [[f64; 5]; 2] {
    let asked: usize = requests.iter().map(Vec::len).sum();
    let both = PERCENTS.map(|percent| {
        let mut cache = Cache::new(name, (unique * percent + 50) / 100);
        let hits = requests
            .iter()
            .map(|ids| cache.request(ids, order))
            .fold([0, 0], |[blocks, prefix], hits| [blocks + hits[0], prefix + hits[1]]);
        hits.map(|hits: usize| hits as f64 * 100.0 / asked as f64)
    });
    [both.map(|rates| rates[0]), both.map(|rates| rates[1])]
}

#[test]
fn hit_rates_over_the_trace() {
    let requests = trace();
    let mut unique: Vec<u64> = requests.concat();
    unique.sort_unstable();
    unique.dedup();
    let unique = unique.len();
    println!("{} requests, {unique} unique blocks; hit rate in % at {PERCENTS:?} % of them", requests.len());
    for (order, title) in [(Order::Once, "once"), (Order::Session, "session")] {
        let (mut table, mut prefixes) = (HashMap::new(), HashMap::new());
        for name in NAMES {
            let [blocks, prefix] = rates(&requests, unique, name, order);
            let shown = |rates: [f64; 5]| rates.map(|rate| format!("{rate:6.2}")).join(" ");
            println!("{title:8} {name:7} blocks {}  prefix {}", shown(blocks), shown(prefix));
            table.insert(name, blocks);
            prefixes.insert(name, prefix);
        }
        // Floors are for prefix hits, which are all that an engine can use. What is in the cache behind a gap is wasted.
        let at_least = |name: &str, floor: [f64; 5]| {
            for (rate, floor) in prefixes[name].iter().zip(floor) {
                assert!(*rate >= floor, "{name} ({title}): {:?} is below {floor}", prefixes[name]);
            }
            for (prefix, block) in prefixes[name].iter().zip(table[name]) {
                assert!(
                    block - prefix <= 0.2,
                    "{name} ({title}): {block} % are there, {prefix} % without a gap before them"
                );
            }
        };
        // LRU holds in a larger cache what it holds in a smaller one, and no policy hits what was never asked before.
        assert!(table["lru"].is_sorted(), "lru: {:?}", table["lru"]);
        let asked = requests.iter().map(Vec::len).sum::<usize>() as f64;
        let limit = 100.0 - unique as f64 * 100.0 / asked;
        assert!(table.values().flatten().all(|&rate| rate <= limit), "above {limit}: {table:?}");
        if unique == SLICE {
            at_least("mq", [3.6, 5.5, 7.4, 9.6, 18.0]);
            at_least("s3fifo", [3.6, 4.2, 5.1, 9.1, 16.8]);
            for (rate, known) in table["lru"].iter().zip([3.66, 3.85, 4.28, 8.20, 17.43]) {
                assert!((rate - known).abs() < 0.01, "lru ({title}): {rate} is not {known}");
            }
        }
        if unique == WHOLE {
            at_least("mq", [10.5, 21.8, 29.3, 34.3, 36.2]);
            at_least("s3fifo", [7.4, 18.5, 24.3, 32.7, 36.1]);
            for (rate, known) in table["lru"].iter().zip([5.25, 19.58, 27.89, 34.53, 36.31]) {
                assert!(order == Order::Session || (rate - known).abs() < 0.1, "lru: {rate} is not {known}");
            }
        }
    }
}
