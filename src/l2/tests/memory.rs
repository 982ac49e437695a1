//! Tests of the `memory:` backend, as a child of its module.

use super::*;
use crate::error::KVKEEP_ERR_INVALID;
use crate::l2::tests::*;

const LENGTH: usize = 1000;

fn memory(pairs: &[(&str, &str)]) -> Arc<MemoryBackend> {
    MemoryBackend::open_url(&params(pairs)).unwrap()
}

/// A capacity for this many objects of `LENGTH` bytes.
fn room_for(objects: u64) -> String {
    (objects * (LENGTH as u64 + OVERHEAD)).to_string()
}

fn cached(memory: &MemoryBackend, number: u32) -> Found {
    let mut found = [Found::Unknown];
    memory.lookup_cached(&[key(number)], &mut found);
    found[0]
}

fn look(memory: &MemoryBackend, number: u32) -> Found {
    let found = cached(memory, number);
    if matches!(found, Found::Present(_)) {
        memory.unpin(&[key(number)]);
    }
    found
}

const HERE: Found = Found::Present(LENGTH as u64);

#[test]
fn what_was_stored_is_read_back_and_verifies() {
    let memory = memory(&[]);
    assert_eq!(store(&*memory, 1, LENGTH).unwrap(), Stored::Written);
    assert_eq!(store(&*memory, 1, LENGTH).unwrap(), Stored::Already);
    assert_eq!(cached(&memory, 1), HERE);
    let (header, buffer) = load(&*memory, 1, LENGTH);
    header.unwrap().verify(&key(1), Some(&LAYOUT), buffer.bytes(), true).unwrap();
    assert_eq!(memory.list(None), [(key(1), LENGTH as u64)]);
    assert_eq!(memory.list(Some(SpaceTag([2; 16]))), []);
    let bytes = LENGTH as u64 + OVERHEAD;
    assert_eq!(memory.usage(), Usage { objects: 1, bytes, capacity: DEFAULT_CAPACITY, pins: 1, ..Usage::default() });
}

#[test]
fn slow_lookups_are_answered_by_the_thread() {
    let memory = memory(&[("lookup", "slow")]);
    store(&*memory, 1, LENGTH).unwrap();
    store(&*memory, 3, LENGTH).unwrap();
    assert_eq!(cached(&memory, 1), Found::Unknown);
    assert_eq!(lookup(&*memory, &[1, 2, 3], false).unwrap(), [HERE, Found::Absent, HERE]);
    assert_eq!(lookup(&*memory, &[1, 2, 3], true).unwrap(), [HERE, Found::Absent, Found::Absent]);
}

#[test]
fn a_full_backend_evicts_by_its_policy() {
    let memory = memory(&[("capacity", &room_for(2))]);
    store(&*memory, 1, LENGTH).unwrap();
    store(&*memory, 2, LENGTH).unwrap();
    memory.touch(&[key(1)]);
    store(&*memory, 3, LENGTH).unwrap();
    assert_eq!([1, 2, 3].map(|number| look(&memory, number)), [HERE, Found::Absent, HERE]);
    assert_eq!((memory.usage().objects, memory.usage().evicted), (2, 1));
    assert!(memory.usage().bytes <= memory.usage().capacity);
}

#[test]
fn without_eviction_a_full_backend_refuses() {
    let memory = memory(&[("capacity", &room_for(1)), ("policy", "none")]);
    store(&*memory, 1, LENGTH).unwrap();
    assert_eq!(store(&*memory, 2, LENGTH).unwrap_err().status, KVKEEP_ERR_NO_MEMORY);
    assert_eq!(store(&*memory, 3, 2 * LENGTH).unwrap_err().status, KVKEEP_ERR_NO_MEMORY);
    assert_eq!(look(&memory, 1), HERE);
}

#[test]
fn p2_a_pinned_object_is_not_evicted_and_can_be_after_its_last_pin() {
    let memory = memory(&[("capacity", &room_for(1))]);
    store(&*memory, 1, LENGTH).unwrap();
    assert_eq!([cached(&memory, 1), cached(&memory, 1)], [HERE, HERE]);
    assert_eq!(store(&*memory, 2, LENGTH).unwrap_err().status, KVKEEP_ERR_NO_MEMORY);
    memory.unpin(&[key(1)]);
    assert!(store(&*memory, 2, LENGTH).is_err());
    memory.unpin(&[key(1)]);
    assert_eq!(store(&*memory, 2, LENGTH).unwrap(), Stored::Written);
    assert_eq!(look(&memory, 1), Found::Absent);
}

#[test]
fn a_deleted_object_is_gone_though_it_is_pinned() {
    let memory = memory(&[]);
    store(&*memory, 1, LENGTH).unwrap();
    cached(&memory, 1);
    assert_eq!(delete(&*memory, &[1, 2]), 1);
    assert_eq!(delete(&*memory, &[1]), 0);
    assert_eq!((cached(&memory, 1), memory.list(None), memory.usage().objects), (Found::Absent, vec![], 0));
    assert_eq!(load(&*memory, 1, LENGTH).0.unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
    assert_eq!((memory.usage().bytes, memory.usage().pins), (0, 1));
    memory.unpin(&[key(1), key(1), key(2)]);
    assert_eq!(memory.usage().pins, 0);
}

#[test]
fn an_object_deleted_under_a_pin_can_be_stored_anew() {
    let memory = memory(&[]);
    store(&*memory, 1, LENGTH).unwrap();
    cached(&memory, 1);
    memory.quarantine(key(1));
    assert_eq!(store(&*memory, 1, LENGTH).unwrap(), Stored::Written);
    assert_eq!((memory.usage().objects, memory.usage().bytes), (1, LENGTH as u64 + OVERHEAD));
    memory.unpin(&[key(1)]);
    assert_eq!((look(&memory, 1), memory.usage().pins), (HERE, 0));
}

#[test]
fn an_observer_hears_of_every_coming_and_going_in_order() {
    let memory = memory(&[("capacity", &room_for(3))]);
    store(&*memory, 8, LENGTH).unwrap();
    store(&*memory, 9, LENGTH).unwrap();
    let changes = watch(&*memory);
    store(&*memory, 1, LENGTH).unwrap();
    store(&*memory, 1, LENGTH).unwrap();
    store(&*memory, 2, LENGTH).unwrap();
    cached(&memory, 1);
    assert_eq!(delete(&*memory, &[1, 3]), 1);
    // The pin keeps no room.
    store(&*memory, 1, LENGTH).unwrap();
    memory.unpin(&[key(1)]);
    memory.quarantine(key(2));
    memory.quarantine(key(2));
    let appeared = |number| (Change::Appeared, key(number));
    let vanished = |number| (Change::Vanished, key(number));
    let expected = [appeared(1), vanished(8), appeared(2), vanished(1), appeared(1), vanished(2)];
    assert_eq!(changes.try_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_buffer_of_another_size_is_refused() {
    let memory = memory(&[]);
    store(&*memory, 1, LENGTH).unwrap();
    assert_eq!(load(&*memory, 1, LENGTH - 1).0.unwrap_err().status, KVKEEP_ERR_INVALID);
}

#[test]
fn what_comes_after_its_deadline_is_not_done() {
    let memory = memory(&[]);
    let (sender, receiver) = std::sync::mpsc::channel();
    let reply = Reply::new(move |result: Result<Stored>| sender.send(result).unwrap());
    let header = Header::new(&key(1), &LAYOUT, &[1], true).into();
    memory.store(vec![StoreRequest { key: key(1), header, buffer: buffer(&[1]), deadline: Instant::now(), reply }]);
    assert_eq!(answer(&receiver).unwrap_err().status, KVKEEP_ERR_TIMEOUT);
    assert_eq!(memory.usage(), Usage { capacity: DEFAULT_CAPACITY, ..Usage::default() });
}

#[test]
fn p9_a_full_queue_refuses_and_takes_work_again_later() {
    let memory = memory(&[]);
    store(&*memory, 1, LENGTH).unwrap();
    let hold = |receiver: std::sync::mpsc::Receiver<()>| {
        let (sender, begun) = std::sync::mpsc::channel();
        let reply = Reply::new(move |_: Result<Vec<Found>>| {
            sender.send(()).unwrap();
            receiver.recv().unwrap();
        });
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        memory.lookup(LookupRequest { keys: Vec::new(), in_order: false, deadline, reply });
        begun
    };
    // The thread is busy with an answer, so that everything after it waits.
    let (release, held) = std::sync::mpsc::channel();
    answer(&hold(held));
    let numbers = vec![2; QUEUE_MAX - 1];
    let waiting = send_lookup(&*memory, &numbers, false);
    assert_eq!(lookup(&*memory, &[1, 2], false).unwrap_err().status, KVKEEP_ERR_LIMIT);
    let both = send_loads(&*memory, &[1, 1], LENGTH);
    for _ in 0..2 {
        assert_eq!(answer(&both).2.unwrap_err().status, KVKEEP_ERR_LIMIT);
    }
    // One more fits, and then nothing does, not even a deletion, which leaves the object where it is.
    let last = send_store(&*memory, 3, LENGTH);
    let (sender, deleted) = std::sync::mpsc::channel();
    memory.delete(vec![key(1)], Reply::new(move |result: Result<u64>| sender.send(result).unwrap()));
    assert_eq!(answer(&deleted).unwrap_err().status, KVKEEP_ERR_LIMIT);
    assert_eq!(look(&memory, 1), HERE);
    release.send(()).unwrap();
    assert_eq!(answer(&waiting).unwrap().len(), QUEUE_MAX - 1);
    assert_eq!(answer(&last).unwrap(), Stored::Written);
    assert_eq!(delete(&*memory, &[1]), 1);
    // A batch that is larger than the queue is taken when nothing else waits.
    let numbers = vec![2; QUEUE_MAX + 1];
    assert_eq!(lookup(&*memory, &numbers, false).unwrap().len(), QUEUE_MAX + 1);
}

#[test]
fn p4_close_answers_everything_and_what_comes_later_too() {
    let memory = memory(&[]);
    let stores: Vec<_> = (0..100).map(|number| send_store(&*memory, number, LENGTH)).collect();
    memory.close();
    stores.iter().for_each(|store| assert_eq!(answer(store).unwrap(), Stored::Written));
    assert_eq!(store(&*memory, 1, LENGTH).unwrap_err().status, KVKEEP_ERR_CLOSED);
    assert_eq!(load(&*memory, 1, LENGTH).0.unwrap_err().status, KVKEEP_ERR_CLOSED);
    assert_eq!(lookup(&*memory, &[1], false).unwrap_err().status, KVKEEP_ERR_CLOSED);
    assert!(matches!(memory.health(), Health::Bad(_)));
}

#[test]
fn the_last_handle_may_go_in_an_answer() {
    let memory = memory(&[]);
    let (sender, receiver) = std::sync::mpsc::channel();
    let held = memory.clone();
    let reply = Reply::new(move |result: Result<Vec<Found>>| {
        drop(held);
        sender.send(result).unwrap();
    });
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    memory.lookup(LookupRequest { keys: vec![key(1)], in_order: false, deadline, reply });
    drop(memory);
    assert_eq!(answer(&receiver).unwrap(), [Found::Absent]);
}

#[test]
fn parameters_are_checked() {
    for (name, value) in [("policy", "fifo"), ("lookup", "fast"), ("capacity", "much"), ("size", "1")] {
        let error = MemoryBackend::open_url(&params(&[(name, value)])).map(|_| ()).unwrap_err();
        assert!(error.message.contains(name), "{}", error.message);
    }
}
