use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The naive truth: which intervals are taken.
struct Model {
    taken: BTreeMap<u64, (u64, u32)>,
    capacity: u64,
    unit: u64,
}

impl Model {
    fn free_runs(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        let mut at = 0;
        for (&start, &(size, _)) in &self.taken {
            if start > at {
                runs.push((at, start));
            }
            at = start + size;
        }
        if at < self.capacity {
            runs.push((at, self.capacity));
        }
        runs
    }

    fn could_hold(&self, size: u64) -> bool {
        let align = if size.is_multiple_of(PAGE) { PAGE } else { 1 };
        let size = size.max(1).next_multiple_of(self.unit);
        self.free_runs().iter().any(|&(start, end)| start.next_multiple_of(align) + size <= end)
    }

    fn check(&self, alloc: &Alloc) {
        assert_eq!(alloc.used_bytes(), self.taken.values().map(|&(size, _)| size).sum::<u64>());
        let runs = self.free_runs();
        assert_eq!(alloc.largest_free(), runs.iter().map(|(start, end)| end - start).max().unwrap_or(0));
        assert_eq!(free_blocks(alloc), runs.len(), "neighbouring free blocks were not joined");
    }
}

fn free_blocks(alloc: &Alloc) -> usize {
    let mut count = 0;
    for bin in &alloc.bins {
        let mut node = bin.head;
        while node != NIL {
            count += 1;
            node = alloc.nodes[node].next_free;
        }
    }
    count
}

#[derive(Clone, Debug)]
enum Op {
    Take(u64),
    Give(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1u64..20_000).prop_map(Op::Take),
        2 => (1u64..12).prop_map(|pages| Op::Take(pages * PAGE)),
        1 => (1u64..200_000).prop_map(Op::Take),
        5 => any::<usize>().prop_map(Op::Give),
    ]
}

proptest! {
    #[test]
    fn it_agrees_with_a_list_of_intervals(ops in proptest::collection::vec(op(), 1..300), pages in 1u64..200) {
        let mut alloc = Alloc::new(pages * PAGE);
        let mut model = Model { taken: BTreeMap::new(), capacity: pages * PAGE, unit: UNIT };
        for op in ops {
            match op {
                Op::Take(size) => match alloc.alloc(size) {
                    Some(block) => {
                        let rounded = alloc.size_of(block.node);
                        prop_assert_eq!(rounded, size.next_multiple_of(UNIT));
                        prop_assert_eq!(alloc.offset(block.start) % if size.is_multiple_of(PAGE) { PAGE } else { UNIT }, 0);
                        prop_assert!(alloc.offset(block.start) + rounded <= model.capacity);
                        let before = model.taken.range(..alloc.offset(block.start) + rounded).next_back();
                        prop_assert!(before.is_none_or(|(start, (size, _))| start + size <= alloc.offset(block.start)));
                        model.taken.insert(alloc.offset(block.start), (rounded, block.node));
                    }
                    None => prop_assert!(!model.could_hold(size), "{} bytes would have fitted", size),
                },
                Op::Give(which) if !model.taken.is_empty() => {
                    let offset = *model.taken.keys().nth(which % model.taken.len()).unwrap();
                    let (_, node) = model.taken.remove(&offset).unwrap();
                    alloc.free(node);
                }
                Op::Give(_) => {}
            }
            model.check(&alloc);
        }
        for (_, (_, node)) in std::mem::take(&mut model.taken) {
            alloc.free(node);
        }
        model.check(&alloc);
        prop_assert_eq!(alloc.largest_free(), alloc.capacity());
    }
}

proptest! {
    /// An allocator that looks in its bins each time has everything at the same places.
    #[test]
    fn what_it_remembers_changes_nothing(
        ops in proptest::collection::vec((op(), 1usize..6), 1..200),
        pages in 1u64..200,
    ) {
        let mut allocs = [Alloc::new(pages * PAGE), Alloc::new(pages * PAGE)];
        let mut taken = Vec::new();
        for (op, times) in ops {
            for _ in 0..times {
                allocs[1].last_request.node = NIL;
                match op {
                    Op::Take(size) => {
                        let [one, other] = allocs.each_mut().map(|alloc| alloc.alloc(size));
                        prop_assert_eq!(one, other);
                        taken.extend(one);
                    }
                    Op::Give(which) if !taken.is_empty() => {
                        let block = taken.swap_remove(which % taken.len());
                        allocs.iter_mut().for_each(|alloc| alloc.free(block.node));
                    }
                    Op::Give(_) => {}
                }
            }
        }
    }
}

/// A small generator of its own, so that a failing fill repeats.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn uniform_sizes_fill_the_arena_and_fill_it_again() {
    for size in [2048, 2049, 3000, 4096, 5000, 65_536, 100_001, 1 << 20] {
        let mut alloc = Alloc::new(256 << 20);
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let mut blocks = Vec::new();
        for round in 0..4 {
            while let Some(block) = alloc.alloc(size) {
                blocks.push(block);
            }
            let held = blocks.len() as u64 * size;
            assert!(held * 100 >= alloc.capacity() * 96, "round {round}: {held} of {} in {size}s", alloc.capacity());
            for at in (0..blocks.len()).rev() {
                if next(&mut seed).is_multiple_of(2) {
                    alloc.free(blocks.swap_remove(at).node);
                }
            }
        }
        blocks.drain(..).for_each(|block| alloc.free(block.node));
        assert_eq!((alloc.used_bytes(), alloc.largest_free(), free_blocks(&alloc)), (0, alloc.capacity(), 1));
    }
}

#[test]
fn the_whole_arena_is_one_request() {
    for bytes in [4096, 1 << 20, (256 << 30) - 4096, 256 << 30, 300 << 30, 8 << 40] {
        let mut alloc = Alloc::new(bytes);
        let block = alloc.alloc(alloc.capacity()).unwrap();
        assert_eq!((alloc.offset(block.start), alloc.used_bytes()), (0, alloc.capacity()));
        assert_eq!(alloc.alloc(1), None);
        alloc.free(block.node);
        assert_eq!(alloc.largest_free(), bytes);
        let pair = [alloc.alloc(bytes / 2).unwrap(), alloc.alloc(bytes / 2).unwrap()];
        assert_eq!(alloc.offset(pair[1].start), bytes / 2);
    }
}

#[test]
fn nothing_fits_an_empty_arena() {
    let mut alloc = Alloc::new(0);
    assert_eq!((alloc.alloc(1), alloc.largest_free(), alloc.capacity()), (None, 0, 0));
}

#[test]
fn zero_bytes_take_one_unit() {
    let mut alloc = Alloc::new(4096);
    let block = alloc.alloc(0).unwrap();
    assert_eq!(alloc.size_of(block.node), 64);
}

#[test]
fn a_block_taken_whole_by_another_size_is_not_cut_again() {
    let mut alloc = Alloc::new(64 * 4000);
    let first = alloc.alloc(64 * 1020).unwrap();
    alloc.alloc(64).unwrap();
    alloc.free(first.node);
    let mut taken = [4, 1016, 4].map(|units| alloc.alloc(64 * units).unwrap());
    taken.sort_by_key(|block| block.start);
    let end = |block: &Block| alloc.offset(block.start) + alloc.size_of(block.node);
    assert!(taken.windows(2).all(|pair| end(&pair[0]) <= alloc.offset(pair[1].start)), "{taken:?}");
}

#[test]
fn books_grow_with_blocks_and_not_with_the_arena() {
    let small = Alloc::new(1 << 20).memory_bytes();
    assert_eq!(Alloc::new(1 << 40).memory_bytes(), small);
    let mut alloc = Alloc::new(1 << 40);
    for _ in 0..100_000 {
        alloc.alloc(65_536).unwrap();
    }
    assert!(alloc.memory_bytes() - small <= 100_000 * 24 + 200_000);
}
