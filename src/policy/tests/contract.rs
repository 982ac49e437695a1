//! The contract of every policy with its tier, as lists of steps.

use crate::policy::{EvictionPolicy, Meta, NAMES, Removal, by_name};
use Step::*;

/// One call and, for a victim, its expected answer.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) enum Step {
    /// A new object whose tag is its number.
    Insert(u32),
    /// A use that is no read.
    Touch(u32),
    /// A use by a read: this many until now.
    Read(u32, u32),
    Evict(u32),
    Delete(u32),
    /// The next victim is this one.
    Victim(u32),
    /// The next victim is the second, and the first is met and refused.
    Refuse(u32, u32),
    Release(u32),
    /// There is no victim.
    Dry,
}

fn meta(id: u32, uses: u32) -> Meta {
    Meta { tag: u64::from(id), size: 1, uses, ..Meta::default() }
}

pub(in crate::policy) fn run(policy: &mut dyn EvictionPolicy, steps: &[Step]) {
    for (at, step) in steps.iter().enumerate() {
        match *step {
            Insert(id) => policy.insert(id, &|id| meta(id, 0)),
            Touch(id) => policy.touch(id, &|id| meta(id, 0)),
            Read(id, uses) => policy.touch(id, &|id| meta(id, uses)),
            Evict(id) => policy.remove(id, Removal::Evicted),
            Delete(id) => policy.remove(id, Removal::Deleted),
            Victim(id) => assert_eq!(policy.victim(&mut |_| true), Some(id), "step {at}, {step:?}"),
            Refuse(no, id) => assert_eq!(policy.victim(&mut |id| id != no), Some(id), "step {at}, {step:?}"),
            Release(id) => policy.release(id),
            Dry => assert_eq!(policy.victim(&mut |_| true), None, "step {at}, {step:?}"),
        }
    }
}

fn all(steps: &[Step]) {
    for name in NAMES.into_iter().filter(|&name| name != "none") {
        run(by_name(name).unwrap().as_mut(), steps);
    }
}

#[test]
fn every_name_is_known_and_no_other() {
    NAMES.iter().for_each(|name| assert_eq!(by_name(name).unwrap().name(), *name));
    let unknown = by_name("fifo").map(drop).unwrap_err().message;
    assert_eq!(unknown, "there is no eviction policy \"fifo\"; known are lru, s3fifo, mq, none");
}

#[test]
fn an_empty_policy_has_no_victim() {
    all(&[Dry, Insert(0), Delete(0), Dry, Insert(0), Evict(0), Dry]);
}

#[test]
fn a_victim_is_not_offered_twice_before_it_is_decided() {
    all(&[Insert(0), Insert(1), Victim(0), Victim(1), Dry, Release(0), Victim(0), Dry]);
}

#[test]
fn a_refused_object_waits_for_a_touch_or_a_release() {
    all(&[Insert(0), Insert(1), Insert(2), Refuse(0, 1), Evict(1), Victim(2), Dry, Touch(0), Victim(0), Dry]);
    all(&[Insert(0), Insert(1), Insert(2), Refuse(0, 1), Evict(1), Release(0), Victim(0), Victim(2), Dry]);
}

#[test]
fn what_is_set_aside_can_be_removed_and_its_number_used_again() {
    all(&[Insert(0), Insert(1), Victim(0), Delete(0), Insert(0), Release(0), Victim(1), Victim(0), Dry]);
}

#[test]
fn a_release_of_what_was_not_set_aside_changes_nothing() {
    all(&[Insert(0), Insert(1), Release(1), Release(7), Victim(0), Victim(1), Dry]);
}

/// Random calls against a set: victims are known, each is offered once, and none is lost.
#[test]
fn no_object_is_lost_or_offered_twice() {
    for name in NAMES.into_iter().filter(|&name| name != "none") {
        let mut policy = by_name(name).unwrap();
        let mut standing = std::collections::BTreeSet::new();
        let mut aside = Vec::new();
        let mut uses = [0u32; 64];
        let mut seed = 42u64;
        for round in 0..200_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = (seed >> 40) as u32 % 64;
            let known = standing.contains(&id) || aside.contains(&id);
            match (seed >> 33) % 8 {
                0..3 if !known => {
                    uses[id as usize] = 0;
                    policy.insert(id, &|id| meta(id, 0));
                    standing.insert(id);
                }
                0..3 if known => {
                    uses[id as usize] += ((seed >> 36) % 2) as u32;
                    policy.touch(id, &|id| meta(id, uses[id as usize]));
                    aside.retain(|&other| other != id);
                    standing.insert(id);
                }
                3 if known => {
                    policy.remove(id, if seed >> 63 == 0 { Removal::Deleted } else { Removal::Evicted });
                    aside.retain(|&other| other != id);
                    standing.remove(&id);
                }
                4 if aside.contains(&id) => {
                    policy.release(id);
                    aside.retain(|&other| other != id);
                    standing.insert(id);
                }
                5 => {
                    let mut refused = Vec::new();
                    let victim = policy.victim(&mut |id| {
                        if id % 3 == 0 {
                            refused.push(id);
                        }
                        id % 3 != 0
                    });
                    for id in refused.into_iter().chain(victim) {
                        assert!(standing.remove(&id), "{name}, round {round}: {id} was not to be offered");
                        aside.push(id);
                    }
                    assert!(victim.is_some() || standing.is_empty(), "{name}, round {round}: {standing:?} were lost");
                }
                _ => {}
            }
        }
    }
}
