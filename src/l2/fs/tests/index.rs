//! Tests of the index, as a child of its module.

use std::collections::HashMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::arena::Buffer;
use crate::key::{Key, ObjectKey, SpaceTag};
use crate::l2::fs::recover::FoundObject;
use crate::l2::object_header::{HEADER_BYTES, Header};
use crate::l2::{Found, Reply, StoreRequest, Stored};
use crate::policy;

const BLOCK: u64 = 4096;

fn key(number: u8) -> ObjectKey {
    ObjectKey { space: SpaceTag([1; 16]), key: Key { hash: [number; 32], rank: 0, group: 0 } }
}

fn index(blocks: u64) -> Index {
    Index::new(policy::by_name("lru").unwrap(), blocks * BLOCK)
}

/// A store whose file takes `blocks` blocks.
fn store(number: u8, blocks: u64) -> StoreRequest {
    let buffer = Buffer::heap(((blocks - 1) * BLOCK) as usize).unwrap();
    let reply = Reply::new(|_| ());
    StoreRequest { key: key(number), header: Header([0; HEADER_BYTES]).into(), buffer, deadline: Instant::now(), reply }
}

fn go(index: &mut Index, number: u8, blocks: u64) -> Reservation {
    match index.admit(store(number, blocks)) {
        Admit::Go(_, reservation) => reservation,
        Admit::Already(_) => panic!("{number} is there"),
        Admit::Waits => panic!("{number} waits"),
        Admit::Refused(_, error) => panic!("{number} is refused: {error}"),
    }
}

fn put(index: &mut Index, number: u8, blocks: u64) {
    let reservation = go(index, number, blocks);
    assert!(index.finish(reservation, Some(&Stored::Written)).is_empty());
}

#[test]
fn stores_under_way_together_evict_for_one_need_once() {
    let mut index = index(100);
    (0..5).for_each(|number| put(&mut index, number, 20));
    let mut first = go(&mut index, 10, 2);
    assert_eq!(first.victims, [key(0)]);
    // The others find the room that the first one's victim leaves, but may not write until it is unlinked.
    for number in 11..20 {
        assert!(matches!(index.admit(store(number, 2)), Admit::Waits));
    }
    assert_eq!((index.usage().evicted, index.usage().bytes), (1, 82 * BLOCK));
    let mut again = index.settle(&mut first);
    let mut under_way = vec![first];
    while let Some(store) = again.pop() {
        match index.admit(store) {
            Admit::Go(_, reservation) => under_way.push(reservation),
            _ => panic!("there is room"),
        }
        if again.is_empty() {
            again = index.finish(under_way.remove(0), Some(&Stored::Written));
        }
    }
    under_way.into_iter().for_each(|reservation| drop(index.finish(reservation, Some(&Stored::Written))));
    assert_eq!((index.usage().evicted, index.usage().objects, index.usage().bytes), (1, 14, 100 * BLOCK));
}

#[test]
fn objects_of_one_size_replace_each_other_without_waiting() {
    let mut index = index(100);
    (0..50).for_each(|number| put(&mut index, number, 2));
    let under_way: Vec<_> = (50..90).map(|number| go(&mut index, number, 2)).collect();
    assert!(under_way.iter().all(|reservation| reservation.victims.len() == 1));
    assert_eq!(index.usage().bytes, 100 * BLOCK);
}

#[test]
fn a_store_waits_until_deleted_files_are_away() {
    let mut index = index(10);
    put(&mut index, 1, 10);
    index.begin_delete(&key(1));
    assert!(matches!(index.admit(store(2, 5)), Admit::Waits));
    assert_eq!(index.removed(&key(1)).len(), 1);
    put(&mut index, 2, 5);
    assert_eq!(index.usage().evicted, 0);
}

#[test]
fn a_directory_found_too_full_is_worked_off_and_a_store_evicts_what_it_adds() {
    let mut index = index(10);
    let seen = |number| FoundObject { key: key(number), size: BLOCK, used: u64::from(number), made: u64::from(number) };
    index.restore((0..50).map(seen).collect());
    assert_eq!(index.surplus(), 90 * BLOCK);
    let reservation = go(&mut index, 100, 4);
    assert_eq!(reservation.victims, [key(0), key(1)]);
    index.finish(reservation, Some(&Stored::Written));
    index.check_bounds();
    assert!(index.begin_shrinking() && !index.begin_shrinking());
    let mut evicted = Vec::new();
    while index.surplus() > 0 {
        let victims = index.shrink(7);
        assert!(!victims.is_empty());
        // Stores are not held up by the unlinks of the others.
        put(&mut index, 101 + evicted.len() as u8, 2);
        victims.iter().for_each(|key| drop(index.removed(key)));
        evicted.extend(victims);
    }
    index.shrunk();
    assert!(evicted.windows(2).all(|pair| pair[0].key.hash < pair[1].key.hash), "oldest first");
    assert!(!index.begin_shrinking());
}

#[test]
fn objects_of_another_process_are_admitted_under_the_capacity_when_they_are_found() {
    let mut index = index(10);
    (0..5).for_each(|number| put(&mut index, number, 2));
    for number in 10..15 {
        assert_eq!(index.discovered(key(number), BLOCK, 0), Found::Present(BLOCK));
    }
    assert!(index.begin_shrinking());
    let victims = index.shrink(100);
    assert_eq!(victims, (0..5).map(key).collect::<Vec<_>>());
    victims.iter().for_each(|key| drop(index.removed(key)));
    index.shrunk();
    // Four stores evict four objects, and none of those that are pinned.
    index.unpin(&(10..15).map(key).collect::<Vec<_>>());
    let under_way: Vec<_> = (20..24).map(|number| go(&mut index, number, 2)).collect();
    assert!(under_way.iter().all(|reservation| reservation.victims.len() == 1));
    assert_eq!(index.usage().evicted, 9);
}

#[test]
fn what_the_file_system_has_room_for_bounds_the_directory_as_the_capacity_does() {
    let mut index = index(1000);
    (0..100).for_each(|number| put(&mut index, number, 2));
    index.measured(3 * BLOCK as i64, false);
    assert!(go(&mut index, 100, 3).victims.is_empty() && !index.take_pressed());
    let reservation = go(&mut index, 101, 3);
    assert_eq!((reservation.victims.len(), index.take_pressed()), (2, true));
    index.finish(reservation, Some(&Stored::Written));
    // Others take half of what is there: it is evicted, and one per cent more, while stores evict what they add.
    index.measured(-100 * BLOCK as i64, false);
    assert!(index.begin_shrinking());
    assert_eq!(go(&mut index, 102, 2).victims.len(), 1);
    let before = index.held();
    while index.is_to_shrink() {
        index.shrink(10).iter().for_each(|key| drop(index.removed(key)));
    }
    index.shrunk();
    assert_eq!(before - index.held(), 102 * BLOCK);
    // Where that did not help, it is not done again at once.
    index.measured(-100 * BLOCK as i64, true);
    index.check_bounds();
    assert!(!index.begin_shrinking());
    assert_eq!(go(&mut index, 103, 2).victims.len(), 1);
    // With room again, the capacity alone is the bound.
    index.measured(10_000 * BLOCK as i64, false);
    assert!(go(&mut index, 104, 100).victims.is_empty());
}

#[test]
fn a_store_that_the_file_system_refuses_evicts_what_it_needs() {
    let mut index = index(1000);
    (0..50).for_each(|number| put(&mut index, number, 2));
    let mut reservation = go(&mut index, 100, 3);
    assert!(index.refused(&mut reservation));
    assert_eq!(reservation.victims, [key(0), key(1)]);
    index.settle(&mut reservation);
    index.finish(reservation, Some(&Stored::Written));
    // It is the bound of the next one too.
    let reservation = go(&mut index, 101, 2);
    assert_eq!(reservation.victims, [key(2)]);
    index.finish(reservation, Some(&Stored::Written));
    index.forget_refusals();
    assert!(go(&mut index, 102, 2).victims.is_empty());
    // With nothing to evict it fails alone.
    let mut index = self::index(1000);
    let mut reservation = go(&mut index, 1, 3);
    assert!(!index.refused(&mut reservation));
    assert!(index.finish(reservation, None).is_empty());
    assert_eq!((index.usage().bytes, index.excess, index.unlinking), (0, 0, 0));
    let Admit::Refused(_, error) = index.admit(store(2, 3)) else { panic!("there is no room") };
    assert!(error.message.contains("file system is full") && error.message.contains("min_free="), "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Store(u8, u64),
    Unlinked(usize),
    Finish(usize, bool),
    Delete(u8),
    Left(usize),
    Pin(u8),
    Unpin(usize),
    Discover(u8, u64),
    Shrink(usize),
    Measure(i64),
    Refuse(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = 0..24u8;
    let blocks = prop_oneof![4 => 1..4u64, 1 => 8..16u64];
    let step = prop_oneof![
        8 => (number.clone(), blocks.clone()).prop_map(|(number, blocks)| Step::Store(number, blocks)),
        4 => any::<usize>().prop_map(Step::Unlinked),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(at, whole)| Step::Finish(at, whole)),
        1 => number.clone().prop_map(Step::Delete),
        3 => any::<usize>().prop_map(Step::Left),
        1 => number.clone().prop_map(Step::Pin),
        1 => any::<usize>().prop_map(Step::Unpin),
        1 => (number, blocks).prop_map(|(number, blocks)| Step::Discover(number, blocks)),
        1 => (1..5usize).prop_map(Step::Shrink),
        1 => (-10..20i64).prop_map(Step::Measure),
        1 => any::<usize>().prop_map(Step::Refuse),
    ];
    proptest::collection::vec(step, 1..200)
}

/// The index with a disk beneath it.
struct Model {
    index: Index,
    capacity: u64,
    /// Most bytes as last measured, and as refused.
    measured: u64,
    refused: u64,
    files: HashMap<ObjectKey, u64>,
    /// Stores under way, their blocks, and whether their victims are unlinked.
    writes: Vec<(ObjectKey, Reservation, u64, bool)>,
    leaving: Vec<ObjectKey>,
    pinned: Vec<ObjectKey>,
    waiting: usize,
}

impl Model {
    /// Blocks on the disk.
    fn on_disk(&self) -> u64 {
        let writing = self.writes.iter().filter(|write| write.3).map(|write| write.2);
        self.files.values().sum::<u64>() + writing.sum::<u64>()
    }

    fn target(&self) -> u64 {
        (self.capacity * BLOCK).min(self.measured).min(self.refused)
    }

    fn admit(&mut self, stores: Vec<StoreRequest>) {
        for store in stores {
            let (key, blocks) = (store.key, 1 + store.buffer.len() as u64 / BLOCK);
            let (held, before, target) = (self.index.held(), self.index.on_disk(), self.target());
            let sizes: HashMap<ObjectKey, u64> = self.files.clone();
            let admitted = self.index.admit(store);
            let most = before.max(target + target / 256);
            assert!(self.index.on_disk() <= most, "{before} bytes may grow to {}", self.index.on_disk());
            match admitted {
                Admit::Go(_, reservation) => {
                    let need = (held + blocks * BLOCK).saturating_sub(target.max(held));
                    let freed: Vec<u64> = reservation.victims.iter().map(|victim| sizes[victim] * BLOCK).collect();
                    let (sum, last) = (freed.iter().sum::<u64>(), freed.last().copied().unwrap_or(0));
                    assert!(sum >= need && (need > 0 || sum == 0), "{freed:?} for {need}");
                    assert!(sum - last < need || sum == 0, "{freed:?} is more than {need} needs");
                    let unlinked = reservation.victims.is_empty();
                    self.writes.push((key, reservation, blocks, unlinked));
                }
                Admit::Waits => self.waiting += 1,
                Admit::Already(_) | Admit::Refused(..) => {}
            }
        }
    }

    fn again(&mut self, stores: Vec<StoreRequest>) {
        self.waiting -= stores.len();
        self.admit(stores);
    }

    fn unlinked(&mut self, at: usize) {
        if self.writes[at].3 {
            return;
        }
        let victims = self.writes[at].1.victims.clone();
        self.files.retain(|key, _| !victims.contains(key));
        self.writes[at].3 = true;
        let stores = self.index.settle(&mut self.writes[at].1);
        self.again(stores);
    }

    fn finish(&mut self, at: usize, whole: bool) {
        self.unlinked(at);
        let (key, reservation, blocks, _) = self.writes.remove(at);
        if whole {
            self.files.insert(key, blocks);
        }
        let stores = self.index.finish(reservation, whole.then_some(&Stored::Written));
        self.again(stores);
    }

    fn left(&mut self, at: usize) {
        let key = self.leaving.remove(at);
        self.files.remove(&key);
        let stores = self.index.removed(&key);
        self.again(stores);
    }

    fn step(&mut self, step: Step) {
        let pick = |at: usize, of: usize| (of > 0).then(|| at % of);
        match step {
            Step::Store(number, blocks) => self.admit(vec![store(number, blocks)]),
            Step::Unlinked(at) => drop(pick(at, self.writes.len()).map(|at| self.unlinked(at))),
            Step::Finish(at, whole) => drop(pick(at, self.writes.len()).map(|at| self.finish(at, whole))),
            Step::Left(at) => drop(pick(at, self.leaving.len()).map(|at| self.left(at))),
            Step::Delete(number) => {
                self.index.begin_delete(&key(number));
                self.leaving.push(key(number));
            }
            Step::Pin(number) => {
                let mut found = [Found::Absent];
                self.index.lookup(&[key(number)], &mut found, Found::Absent);
                self.pinned.extend(matches!(found, [Found::Present(_)]).then(|| key(number)));
            }
            Step::Unpin(at) => {
                let Some(at) = pick(at, self.pinned.len()) else { return };
                let stores = self.index.unpin(&[self.pinned.swap_remove(at)]);
                self.again(stores);
            }
            Step::Discover(number, blocks) => {
                let busy =
                    self.writes.iter().any(|write| write.0 == key(number) || write.1.victims.contains(&key(number)));
                if busy || self.leaving.contains(&key(number)) {
                    return;
                }
                let blocks = *self.files.entry(key(number)).or_insert(blocks);
                let found = self.index.discovered(key(number), (blocks - 1) * BLOCK, 0);
                self.pinned.extend(matches!(found, Found::Present(_)).then(|| key(number)));
            }
            Step::Measure(spare) => {
                let spare = spare * BLOCK as i64;
                self.measured = (self.index.held() + self.index.unlinking).saturating_add_signed(spare);
                self.index.measured(spare, false);
            }
            Step::Refuse(at) => {
                let Some(at) = pick(at, self.writes.len()).filter(|&at| self.writes[at].3) else { return };
                let others = self.index.held() - self.writes[at].2 * BLOCK;
                self.refused = self.refused.min(others - self.index.margin());
                self.writes[at].3 = !self.index.refused(&mut self.writes[at].1);
            }
            Step::Shrink(most) => {
                let (surplus, victims) = (self.index.surplus() + self.index.margin(), self.index.shrink(most));
                self.index.shrunk();
                let freed: u64 = victims.iter().rev().skip(1).map(|victim| self.files[victim] * BLOCK).sum();
                assert!(victims.is_empty() || freed < surplus, "{} objects for {surplus} bytes", victims.len());
                self.leaving.extend(victims);
            }
        }
        assert!(self.on_disk() * BLOCK <= self.index.on_disk(), "the disk holds more than the index counts");
    }
}

proptest! {
    #[test]
    fn the_disk_is_never_fuller_than_its_bound_and_no_store_evicts_more_than_it_needs(steps in steps()) {
        let capacity = 20;
        let mut model = Model {
            index: index(capacity), capacity, measured: u64::MAX, refused: u64::MAX, files: HashMap::new(), writes: Vec::new(), leaving: Vec::new(),
            pinned: Vec::new(), waiting: 0,
        };
        for step in steps {
            model.step(step);
        }
        // Everything under way ends, and nothing is left waiting.
        loop {
            if !model.writes.is_empty() {
                model.finish(0, true);
            } else if !model.leaving.is_empty() {
                model.left(0);
            } else if !model.pinned.is_empty() {
                model.step(Step::Unpin(0));
            } else if model.index.surplus() > 0 {
                model.step(Step::Shrink(2));
            } else {
                break;
            }
        }
        prop_assert_eq!(model.waiting, 0);
        prop_assert_eq!((model.index.reserved, model.index.excess, model.index.unlinking), (0, 0, 0));
        prop_assert_eq!(model.index.present, model.files.values().sum::<u64>() * BLOCK);
        prop_assert!(model.index.present <= capacity * BLOCK);
    }
}
