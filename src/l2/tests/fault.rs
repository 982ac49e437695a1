//! Tests of the `fault:` backend, as a child of its module.

use super::super::memory::MemoryBackend;
use super::*;
use crate::error::KVKEEP_ERR_CORRUPT;
use crate::l2::tests::*;
use crate::l2::{Change, Stored};

const LENGTH: usize = 1000;
const COUNT: u32 = 200;

/// A faulty backend around one that holds `COUNT` objects.
fn fault(pairs: &[(&str, &str)]) -> Arc<FaultBackend> {
    let inner = MemoryBackend::open_url(&[]).unwrap();
    let stores: Vec<_> = (0..COUNT).map(|number| send_store(&*inner, number, LENGTH)).collect();
    stores.iter().for_each(|store| assert_eq!(answer(store).unwrap(), Stored::Written));
    FaultBackend::wrap(inner, FaultOptions::parse(&params(pairs)).unwrap()).unwrap()
}

/// Loads every object and counts the results: intact, spoiled, failed.
fn load_all(fault: &FaultBackend) -> Vec<&'static str> {
    (0..COUNT)
        .map(|number| {
            let (result, buffer) = load(fault, number, LENGTH);
            match result.map(|header| header.verify(&key(number), Some(&LAYOUT), buffer.bytes(), true)) {
                Ok(Ok(())) => "intact",
                Ok(Err(error)) => {
                    assert_eq!(error.status, KVKEEP_ERR_CORRUPT);
                    "spoiled"
                }
                Err(error) => {
                    assert_eq!(error.status, KVKEEP_ERR_IO);
                    "failed"
                }
            }
        })
        .collect()
}

fn count(outcomes: &[&str], outcome: &str) -> usize {
    outcomes.iter().filter(|&&other| other == outcome).count()
}

#[test]
fn without_faults_everything_goes_through() {
    let fault = fault(&[]);
    assert_eq!(count(&load_all(&fault), "intact"), COUNT as usize);
    let mut found = [Found::Unknown; 2];
    fault.lookup_cached(&[key(0), key(COUNT)], &mut found);
    assert_eq!(found, [Found::Present(LENGTH as u64), Found::Absent]);
    let changes = watch(&*fault);
    assert_eq!((fault.usage().objects, delete(&*fault, &[1, 2, COUNT])), (200, 2));
    assert_eq!(changes.try_iter().collect::<Vec<_>>(), [1, 2].map(|number| (Change::Vanished, key(number))));
}

#[test]
fn a_seed_tells_the_same_story_twice_and_another_one_another() {
    let with = |seed| load_all(&fault(&[("fault.seed", seed), ("fault.load_error", "0.2"), ("fault.flip", "0.2")]));
    let story = with("7");
    assert_eq!(story, with("7"));
    assert_ne!(story, with("8"));
    assert!((20..60).contains(&count(&story, "failed")), "{story:?}");
    assert!((15..60).contains(&count(&story, "spoiled")), "{story:?}");
}

#[test]
fn torn_and_flipped_loads_do_not_verify_and_leave_the_stored_object_whole() {
    for what in ["fault.torn", "fault.flip"] {
        let fault = fault(&[(what, "1")]);
        assert_eq!(count(&load_all(&fault), "spoiled"), COUNT as usize, "{what}");
        let (result, buffer) = load(&*fault.shared.inner, 0, LENGTH);
        result.unwrap().verify(&key(0), None, buffer.bytes(), true).unwrap();
    }
}

#[test]
fn a_torn_store_keeps_its_first_half() {
    let fault = fault(&[("fault.torn", "1")]);
    assert_eq!(store(&*fault, COUNT, LENGTH).unwrap(), Stored::Written);
    let (result, buffer) = load(&*fault.shared.inner, COUNT, LENGTH);
    assert!(result.unwrap().verify(&key(COUNT), None, buffer.bytes(), true).is_err());
    let whole = payload(COUNT, LENGTH);
    assert_eq!((&buffer.bytes()[..500], &buffer.bytes()[500..]), (&whole[..500], &[0; 500][..]));
}

#[test]
fn errors_of_every_kind_are_answers() {
    let fault = fault(&[("fault.lookup_error", "1"), ("fault.store_error", "1"), ("fault.load_error", "1")]);
    let mut found = [Found::Absent];
    fault.lookup_cached(&[key(0)], &mut found);
    assert_eq!(found, [Found::Unknown], "cached answers are withheld, so that lookups can fail");
    assert_eq!(lookup(&*fault, &[0], false).unwrap_err().status, KVKEEP_ERR_IO);
    assert_eq!(store(&*fault, COUNT, LENGTH).unwrap_err().status, KVKEEP_ERR_IO);
    assert_eq!(count(&load_all(&fault), "failed"), COUNT as usize);
    assert_eq!(fault.usage().objects, u64::from(COUNT));
}

#[test]
fn a_delayed_batch_is_answered_whole_and_not_before_its_time() {
    let fault = fault(&[("fault.delay", "0.5"), ("fault.delay_ms", "20"), ("fault.load_error", "0.3")]);
    let begun = Instant::now();
    let numbers: Vec<_> = (0..COUNT).collect();
    let receiver = send_loads(&*fault, &numbers, LENGTH);
    let mut answered: Vec<_> = numbers.iter().map(|_| answer(&receiver).0).collect();
    assert!(begun.elapsed() >= Duration::from_millis(20));
    answered.sort_unstable();
    assert_eq!(answered, numbers);
    assert!(receiver.recv().is_err(), "answered twice");
}

#[test]
fn a_hang_holds_the_request_until_it_is_released() {
    let fault = fault(&[("fault.load_hang", "1"), ("fault.store_hang", "1"), ("fault.lookup_hang", "1")]);
    let loads = send_loads(&*fault, &[0, 1], LENGTH);
    let stored = send_store(&*fault, COUNT, LENGTH);
    let looked = send_lookup(&*fault, &[0], false);
    assert_eq!(fault.hung(), 4);
    assert!(loads.try_recv().is_err() && stored.try_recv().is_err() && looked.try_recv().is_err());
    assert_eq!(fault.release_hangs(), 4);
    for _ in 0..2 {
        let (index, buffer, result) = answer(&loads);
        result.unwrap().verify(&key(index), None, buffer.bytes(), true).unwrap();
    }
    assert_eq!(answer(&stored).unwrap(), Stored::Written);
    assert_eq!(answer(&looked).unwrap(), [Found::Present(LENGTH as u64)]);
    assert_eq!((fault.hung(), fault.release_hangs()), (0, 0));
}

#[test]
fn p4_close_answers_what_hangs_and_what_is_delayed() {
    let fault = fault(&[("fault.load_hang", "0.5"), ("fault.delay", "0.5"), ("fault.delay_ms", "30")]);
    let numbers: Vec<_> = (0..COUNT).collect();
    let receiver = send_loads(&*fault, &numbers, LENGTH);
    let hung = fault.hung();
    assert!(hung > 50);
    fault.close();
    let cancelled = numbers
        .iter()
        .map(|_| answer(&receiver))
        .filter(|(.., result)| result.as_ref().is_err_and(|error| error.status == KVKEEP_ERR_CANCELLED))
        .count();
    assert_eq!(cancelled, hung);
    assert!(receiver.recv().is_err(), "answered twice");
    assert_eq!(load(&*fault, 0, LENGTH).0.unwrap_err().status, KVKEEP_ERR_CLOSED);
}

#[test]
fn parameters_are_checked() {
    for (name, value) in [("fault.flip", "1.5"), ("fault.seed", "x"), ("fault.delay_ms", "-1"), ("fault.none", "1")] {
        let error = FaultOptions::parse(&params(&[(name, value)])).map(drop).unwrap_err();
        assert!(error.message.contains(name), "{}", error.message);
    }
}
