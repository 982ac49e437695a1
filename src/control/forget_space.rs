//! Forgetting a space in every backend: what each has of it is deleted in the background. Until that is done the backend is not looked
//! up for the space, and what is stored anew waits to be written, so that nothing old is found and nothing new is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::backends::Tier;
use super::writeback::{Errand, Journey, OPEN_MAX, RETRIES, Writer};
use crate::error::{Error, KVKEEP_ERR_CLOSED, Result};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::Reply;
use crate::log::LogLevel;

#[cfg(test)]
mod tests;

/// Objects deleted by one request to a backend.
const BATCH: usize = 4096;
/// Most writes that wait until what was there before is deleted; those beyond are dropped and counted.
pub(super) const WAITING_MAX: usize = OPEN_MAX / 2;

/// Which spaces are being forgotten; `None` stands for all.
type Which = Option<SpaceTag>;

#[derive(Default)]
struct Bar {
    /// Cleanings that are not done.
    cleanings: u32,
    /// The last one was given up.
    failed: bool,
}

/// The spaces that a backend is not looked up for.
#[derive(Default)]
pub struct Bars {
    count: AtomicUsize,
    spaces: Mutex<HashMap<Which, Bar>>,
}

impl Bars {
    /// Whether a space is being forgotten, or could not be.
    pub fn stop(&self, space: &SpaceTag) -> bool {
        self.any(space, |_| true)
    }

    /// Whether a space could not be forgotten.
    fn failed(&self, space: &SpaceTag) -> bool {
        self.any(space, |bar| bar.failed && bar.cleanings == 0)
    }

    fn any(&self, space: &SpaceTag, is: impl Fn(&Bar) -> bool) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let spaces = self.spaces.lock();
        [None, Some(*space)].iter().any(|which| spaces.get(which).is_some_and(&is))
    }

    /// Why it is not looked up for some space, where that will not pass by itself.
    pub fn trouble(&self) -> Option<String> {
        let failed = self.count.load(Ordering::Acquire) > 0
            && self.spaces.lock().values().any(|bar| bar.failed && bar.cleanings == 0);
        failed.then(|| {
            "it could not forget a space, of which nothing is looked up in it: forget the space again".to_owned()
        })
    }

    /// A space is to be forgotten.
    pub fn raise(&self, which: Which) {
        let mut spaces = self.spaces.lock();
        spaces.entry(which).or_default().cleanings += 1;
        self.count.store(spaces.len(), Ordering::Release);
    }

    /// A cleaning has ended.
    fn lower(&self, which: Which, failed: bool) {
        let mut spaces = self.spaces.lock();
        if let Some(bar) = spaces.get_mut(&which) {
            bar.cleanings -= 1;
            bar.failed = failed;
            if bar.cleanings == 0 && !failed {
                spaces.remove(&which);
            }
        }
        self.count.store(spaces.len(), Ordering::Release);
    }
}

/// What is left to do until a backend has forgotten a space.
pub(super) struct Cleaning {
    tier: Arc<Tier>,
    which: Which,
    /// What is still to be deleted; `None` before that is known.
    keys: Option<Vec<ObjectKey>>,
    attempt: u32,
}

impl Cleaning {
    fn is_of(&self, space: &SpaceTag) -> bool {
        self.which.is_none_or(|which| which == *space)
    }
}

/// Writes and cleanings that keep each other waiting.
#[derive(Default)]
pub(super) struct Turns {
    /// Writes that a backend has not answered.
    under_way: HashMap<(u64, SpaceTag), u32>,
    /// Cleanings that begin when those are answered.
    cleanings: Vec<Cleaning>,
    /// Writes that begin when a cleaning is done.
    writes: Vec<Errand>,
}

impl Turns {
    /// Begins a write: true. False if it waits, and an error where it must not.
    pub fn begin(&mut self, journey: &Arc<Journey>, tier: &Arc<Tier>, attempt: u32) -> Result<bool> {
        let space = journey.key.space;
        if !tier.bars.stop(&space) {
            *self.under_way.entry((tier.number, space)).or_default() += 1;
            return Ok(true);
        }
        if tier.bars.failed(&space) || self.writes.len() >= WAITING_MAX {
            return Err(Error::new(
                crate::error::KVKEEP_ERR_LIMIT,
                "what its space had there before is not deleted yet, and no more writes may wait for that",
            ));
        }
        self.writes.push(Errand::Write { journey: journey.clone(), tier: tier.clone(), attempt });
        Ok(false)
    }

    /// A write was answered.
    pub fn end(&mut self, tier: u64, space: SpaceTag) {
        if let Some(count) = self.under_way.get_mut(&(tier, space)) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&(tier, space));
            }
        }
    }

    /// Takes the cleanings that no write keeps waiting.
    pub fn ready(&mut self) -> Vec<Cleaning> {
        let under_way = &self.under_way;
        self.cleanings
            .extract_if(.., |cleaning| {
                let waits = |(&(tier, space), _): (&(u64, SpaceTag), &u32)| {
                    tier == cleaning.tier.number && cleaning.is_of(&space)
                };
                !under_way.iter().any(waits)
            })
            .collect()
    }
}

impl Writer {
    /// Has `tiers`, whose bars are raised, delete what they have of a space, or of all. L1 has none of it any more.
    pub fn forget(self: &Arc<Self>, which: Which, tiers: &[Arc<Tier>]) {
        let ready = {
            let mut desk = self.desk.lock();
            desk.open += tiers.len();
            desk.deletions += tiers.len();
            desk.turns.cleanings.extend(tiers.iter().map(|tier| Cleaning {
                tier: tier.clone(),
                which,
                keys: None,
                attempt: 0,
            }));
            desk.turns.ready()
        };
        self.begin_cleanings(ready);
    }

    pub(super) fn begin_cleanings(&self, cleanings: Vec<Cleaning>) {
        for cleaning in cleanings {
            self.at(Instant::now(), Errand::Clean(cleaning));
        }
    }

    /// Does the next step of a cleaning, on the writer's thread.
    pub(super) fn clean(self: &Arc<Self>, mut cleaning: Cleaning) {
        let backend = cleaning.tier.backend.clone();
        let which = cleaning.which;
        let keys = cleaning
            .keys
            .get_or_insert_with(|| backend.list(which).into_iter().map(|(key, _)| key).collect::<Vec<ObjectKey>>());
        let batch = keys.split_off(keys.len().saturating_sub(BATCH));
        let me = self.clone();
        if batch.is_empty() {
            return backend.sweep(
                which,
                Reply::new(move |result| match result {
                    Ok(_) => me.cleaned(&cleaning, None),
                    Err(error) => me.not_cleaned(cleaning, Vec::new(), error),
                }),
            );
        }
        let asked = batch.clone();
        backend.delete(
            asked,
            Reply::new(move |result| match result {
                Ok(_) => me.at(Instant::now(), Errand::Clean(Cleaning { attempt: 0, ..cleaning })),
                Err(error) => me.not_cleaned(cleaning, batch, error),
            }),
        );
    }

    fn not_cleaned(self: &Arc<Self>, mut cleaning: Cleaning, batch: Vec<ObjectKey>, error: Error) {
        if cleaning.attempt >= RETRIES || error.status == KVKEEP_ERR_CLOSED {
            return self.cleaned(&cleaning, Some(error));
        }
        self.meters.store_retries.add(1);
        cleaning.keys.get_or_insert_default().extend(batch);
        cleaning.attempt += 1;
        self.later(cleaning.attempt - 1, Errand::Clean(cleaning));
    }

    /// A backend has forgotten a space, or cannot.
    fn cleaned(self: &Arc<Self>, cleaning: &Cleaning, failure: Option<Error>) {
        let tier = &cleaning.tier;
        let closed = failure.as_ref().is_some_and(|error| error.status == KVKEEP_ERR_CLOSED);
        if let Some(error) = failure.as_ref().filter(|_| !closed) {
            let number = tier.number;
            self.log.say(LogLevel::Error, || {
                format!(
                    "backend {number} cannot forget a space: {error}; it is not asked about that space any more: mend it, then \
                     forget the space again, or use another generation of the space"
                )
            });
        }
        let waiting = {
            let mut desk = self.desk.lock();
            tier.bars.lower(cleaning.which, failure.is_some());
            let of_it = |errand: &mut Errand| match errand {
                Errand::Write { journey, tier: other, .. } => {
                    other.number == tier.number && cleaning.is_of(&journey.key.space)
                }
                _ => false,
            };
            desk.turns.writes.extract_if(.., of_it).collect::<Vec<Errand>>()
        };
        for errand in waiting {
            self.at(Instant::now(), errand);
        }
        self.deletion_ended();
    }
}
