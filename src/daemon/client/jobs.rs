//! The jobs that a client submitted, with the answers that the daemon pushed: a query costs no round trip.

use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};

use crate::abi::{JobKind, JobResult, chars};
use crate::config::Notify;
use crate::control::completion::Completions;
use crate::error::{
    Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_CLOSED, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_TIMEOUT, KVKEEP_OK,
    KVKEEP_PENDING, Result, Status,
};

/// What is known of a lookup's answer.
#[derive(Clone, Copy)]
pub enum LookupAnswer {
    /// So many chunks at least.
    AtLeast(u32),
    Known(u32),
}

struct SubmittedJob {
    /// Its number, once the daemon has accepted it.
    job: Option<u64>,
    session: u64,
    keys: usize,
    lookup: LookupAnswer,
    answer: Option<(JobResult, Vec<u8>)>,
    /// How the caller is notified of the lookup's answer. Taken when the job is accepted and the daemon has given the answer.
    lookup_notify: Notify,
    /// How the caller is notified. Taken when the job is accepted and done, so that there is one completion.
    notify: Option<Notify>,
    /// Its caller has forgotten it: only its completion is still to come.
    released: bool,
}

impl SubmittedJob {
    /// Notifies of the lookup's answer, if it and the job's number are known.
    fn notify_lookup(&mut self, completions: &Completions) {
        if let (Some(job), LookupAnswer::Known(hit_chunks)) = (self.job, self.lookup) {
            let answer = JobResult::of_lookup(hit_chunks).completion(job, self.session);
            completions.deliver(std::mem::take(&mut self.lookup_notify), answer);
        }
    }

    /// The job has ended: if its lookup was not answered by then, there is nothing more to notify of.
    fn end_lookup(&mut self, result: &JobResult) {
        if let LookupAnswer::AtLeast(_) = self.lookup {
            self.lookup_notify = Notify::Poll;
            self.lookup = LookupAnswer::Known(result.lookup_chunks);
        }
    }

    /// Ends the job without an answer of the daemon.
    fn lose(mut self, status: Status, message: &str, completions: &Completions) {
        if let (Some(notify), Some(job)) = (self.notify.take(), self.job) {
            let (status, message) = (status as i32, chars(message));
            let kind = JobKind::KVKEEP_JOB_PREFETCH as u32;
            let result = JobResult { status, message, kind, ..JobResult::default() };
            notify_end(notify, job, self.session, &(result, Vec::new()), completions);
        }
    }
}

/// Notifies of a job's end. An observer is called here and now, under the table's lock.
fn notify_end(notify: Notify, job: u64, session: u64, answer: &(JobResult, Vec<u8>), completions: &Completions) {
    if let Notify::Observer(observer) = &notify {
        let held: Vec<bool> = answer.1.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
        observer.done(&answer.0, &held);
    }
    completions.deliver(notify, answer.0.completion(job, session));
}

#[derive(Default)]
struct JobIndex {
    last: u64,
    by_ticket: HashMap<u64, SubmittedJob>,
    /// Tickets of accepted jobs.
    by_job: HashMap<u64, u64>,
    /// How often all jobs were lost, and why the last time.
    losses: u64,
    lost_by: Option<Error>,
}

/// All jobs of a client.
#[derive(Default)]
pub struct SubmittedJobs {
    table: Mutex<JobIndex>,
    changed: Condvar,
}

fn no_job(job: u64) -> Error {
    crate::control::prefetch::no_job(job)
}

impl JobIndex {
    fn of_job(&self, job: u64) -> Option<&SubmittedJob> {
        self.by_ticket.get(self.by_job.get(&job)?)
    }

    fn of_job_mut(&mut self, job: u64) -> Option<&mut SubmittedJob> {
        self.by_ticket.get_mut(self.by_job.get(&job)?)
    }

    fn remove(&mut self, ticket: u64) -> Option<SubmittedJob> {
        let entry = self.by_ticket.remove(&ticket)?;
        if let Some(job) = entry.job {
            self.by_job.remove(&job);
        }
        Some(entry)
    }
}

impl SubmittedJobs {
    /// A job is about to be submitted: the ticket that names it meanwhile.
    pub fn begin(&self, session: u64, keys: usize, lookup_notify: Notify, notify: Notify) -> u64 {
        let mut table = self.table.lock();
        table.last += 1;
        let ticket = table.last;
        let notify = Some(notify);
        let (lookup, answer) = (LookupAnswer::AtLeast(0), None);
        let entry = SubmittedJob { job: None, session, keys, lookup, answer, lookup_notify, notify, released: false };
        table.by_ticket.insert(ticket, entry);
        ticket
    }

    /// Notes that the daemon accepted the job, with the answers that it knew by then. `id` is set before its end is notified.
    pub fn accepted(
        &self,
        ticket: u64,
        job: u64,
        lookup: LookupAnswer,
        answer: Option<(JobResult, Vec<u8>)>,
        id: &mut u64,
        completions: &Completions,
    ) {
        let mut table = self.table.lock();
        *id = job;
        let Some(entry) = table.by_ticket.get_mut(&ticket) else { return };
        entry.job = Some(job);
        if let LookupAnswer::AtLeast(_) = entry.lookup {
            entry.lookup = lookup;
        }
        entry.notify_lookup(completions);
        entry.answer = entry.answer.take().or(answer);
        if let Some((result, _)) = entry.answer {
            entry.end_lookup(&result);
        }
        if let Some(answer) = &entry.answer
            && let Some(notify) = entry.notify.take()
        {
            notify_end(notify, job, entry.session, answer, completions);
        }
        if entry.released && entry.notify.is_none() {
            table.by_ticket.remove(&ticket);
        } else {
            // The daemon still has to push the end of a job whose session has ended.
            table.by_job.insert(job, ticket);
        }
    }

    /// The daemon did not accept the job: no completion comes.
    pub fn refused(&self, ticket: u64) {
        self.table.lock().by_ticket.remove(&ticket);
    }

    /// The daemon went away while it accepted this job.
    pub fn disconnect_ticket(&self, ticket: u64, completions: &Completions) {
        let entry = self.table.lock().remove(ticket);
        if let Some(entry) = entry {
            entry.lose(KVKEEP_ERR_DISCONNECTED, "the daemon went away", completions);
        }
        self.changed.notify_all();
    }

    /// Pushed: the lookup's answer.
    pub fn looked_up(&self, ticket: u64, chunks: u32, completions: &Completions) {
        if let Some(entry) = self.table.lock().by_ticket.get_mut(&ticket) {
            entry.lookup = LookupAnswer::Known(chunks);
            entry.notify_lookup(completions);
        }
    }

    /// Pushed: a job is done, as the answer that accepted it may have reported.
    pub fn done(&self, ticket: u64, result: JobResult, bitmap: &[u8], completions: &Completions) {
        let mut table = self.table.lock();
        let Some(entry) = table.by_ticket.get_mut(&ticket) else { return };
        entry.end_lookup(&result);
        let answer = entry.answer.insert((result, bitmap.to_vec()));
        if let Some(job) = entry.job
            && let Some(notify) = entry.notify.take()
        {
            notify_end(notify, job, entry.session, answer, completions);
        }
        drop(table);
        self.changed.notify_all();
    }

    /// Pushed: a job is forgotten. It was done before.
    pub fn released(&self, ticket: u64) {
        let mut table = self.table.lock();
        match table.by_ticket.get_mut(&ticket) {
            Some(entry) if entry.job.is_none() => entry.released = true,
            _ => drop(table.remove(ticket)),
        }
        drop(table);
        self.changed.notify_all();
    }

    /// Its caller forgets a job: only its completion is still to come.
    pub fn forget(&self, job: u64) {
        if let Some(entry) = self.table.lock().of_job_mut(job) {
            entry.released = true;
        }
        self.changed.notify_all();
    }

    /// A session has ended: its jobs are forgotten.
    pub fn forget_session(&self, session: u64) {
        for entry in self.table.lock().by_ticket.values_mut() {
            entry.released |= entry.session == session;
        }
        self.changed.notify_all();
    }

    /// The daemon is gone: every job ends now, and waits for one end with `why`. Returns the numbers of the jobs.
    fn lose(&self, status: Status, message: &str, why: Error, completions: &Completions) -> Vec<u64> {
        let mut table = self.table.lock();
        table.losses += 1;
        table.lost_by = Some(why);
        let accepted: Vec<u64> =
            table.by_ticket.iter().filter(|(_, entry)| entry.job.is_some()).map(|(ticket, _)| *ticket).collect();
        let mut lost = Vec::new();
        for ticket in accepted {
            if let Some(entry) = table.remove(ticket) {
                lost.extend(entry.job);
                entry.lose(status, message, completions);
            }
        }
        // Those not accepted are their submitters' to refuse.
        drop(table);
        self.changed.notify_all();
        lost
    }

    /// The early answer of a job submitted here. None for one that was not.
    pub fn query_lookup_hits(&self, job: u64, chunks: &mut u32) -> Option<Result<Status>> {
        self.ask(job, |entry| {
            let (known, status) = match entry.lookup {
                LookupAnswer::Known(known) => (known, KVKEEP_OK),
                LookupAnswer::AtLeast(sure) => (sure, KVKEEP_PENDING),
            };
            *chunks = known;
            Ok(status)
        })
    }

    /// The answer of a job submitted here.
    pub fn query_job(&self, job: u64, result: &mut JobResult) -> Option<Result<Status>> {
        self.ask(job, |entry| match &entry.answer {
            Some((answer, _)) => {
                let (struct_size, abi_version) = (result.struct_size, result.abi_version);
                *result = JobResult { struct_size, abi_version, ..*answer };
                Ok(KVKEEP_OK)
            }
            None => Ok(KVKEEP_PENDING),
        })
    }

    /// Which keys of a job submitted here are held.
    pub fn query_bitmap(&self, job: u64, bitmap: &mut [u8]) -> Option<Result<Status>> {
        self.ask(job, |entry| {
            let needed = entry.keys.div_ceil(8);
            if bitmap.len() < needed {
                return Err(crate::control::prefetch::query::small_bitmap(job, entry.keys, bitmap.len()));
            }
            let Some((_, held)) = &entry.answer else { return Ok(KVKEEP_PENDING) };
            bitmap.fill(0);
            bitmap.iter_mut().zip(held).for_each(|(byte, held)| *byte = *held);
            Ok(KVKEEP_OK)
        })
    }

    fn ask(&self, job: u64, ask: impl FnOnce(&SubmittedJob) -> Result<Status>) -> Option<Result<Status>> {
        let table = self.table.lock();
        let entry = table.of_job(job)?;
        Some(if entry.released { Err(no_job(job)) } else { ask(entry) })
    }

    /// Blocks until a job submitted here is done. None for one that was not, or whose daemon is gone.
    pub fn wait(&self, job: u64, until: Instant) -> Option<Result<()>> {
        let mut table = self.table.lock();
        let losses = table.losses;
        let mut known = false;
        loop {
            let Some(entry) = table.of_job(job) else {
                let lost = table.lost_by.clone().filter(|_| table.losses != losses);
                return known.then(|| Err(lost.unwrap_or_else(|| no_job(job))));
            };
            known = true;
            if entry.released {
                return Some(Err(no_job(job)));
            }
            if entry.answer.is_some() {
                return Some(Ok(()));
            }
            if Instant::now() >= until {
                return Some(Err(Error::new(
                    KVKEEP_ERR_TIMEOUT,
                    format!("job {job} is not done yet: wait longer, cancel it, or give it a deadline"),
                )));
            }
            self.changed.wait_until(&mut table, until);
        }
    }

    /// The cache closes: as [`lose`](SubmittedJobs::lose), cancelled.
    pub fn close(&self, completions: &Completions) {
        let why = Error::new(KVKEEP_ERR_CLOSED, "the cache was closed: open one, and submit the job again");
        self.lose(KVKEEP_ERR_CANCELLED, "the cache was closed", why, completions);
    }

    /// The daemon went away, or the connection to it. Gives the numbers of the jobs that were lost.
    pub fn disconnect(&self, why: Error, completions: &Completions) -> Vec<u64> {
        let message = "the daemon went away: submit the job again when it is back";
        self.lose(KVKEEP_ERR_DISCONNECTED, message, why, completions)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::abi::Completion;

    /// The kinds of completions that a caller gets of a job whose pushes come in this order around its acceptance.
    fn told(early: usize, accepted: LookupAnswer, knows_end: bool, looked_up: bool) -> Vec<u32> {
        let result = JobResult { kind: JobKind::KVKEEP_JOB_PREFETCH as u32, ..JobResult::default() };
        let (jobs, completions) = (SubmittedJobs::default(), Completions::start().unwrap());
        let ticket = jobs.begin(7, 1, Notify::EventFd, Notify::EventFd);
        let looks = || jobs.looked_up(ticket, 1, &completions);
        let ends = || jobs.done(ticket, result, &[0], &completions);
        let pushes: Vec<&dyn Fn()> = if looked_up { vec![&looks, &ends] } else { vec![&ends] };
        pushes[..early].iter().for_each(|push| push());
        jobs.accepted(ticket, 9, accepted, knows_end.then(|| (result, vec![0])), &mut 0, &completions);
        pushes[early..].iter().for_each(|push| push());
        let mut taken = [Completion::new_zeroed(); 4];
        let count = completions.drain(&mut taken);
        completions.close();
        taken[..count].iter().map(|completion| completion.kind).collect()
    }

    #[test]
    fn the_answer_of_a_lookup_is_told_once_and_before_the_end_if_there_was_one() {
        let [lookup, end] = [JobKind::KVKEEP_JOB_LOOKUP as u32, JobKind::KVKEEP_JOB_PREFETCH as u32];
        for early in 0..=2 {
            assert_eq!(told(early, LookupAnswer::AtLeast(0), false, true), [lookup, end], "{early} pushes");
            assert_eq!(told(early, LookupAnswer::Known(1), false, true), [lookup, end], "{early} pushes");
            assert_eq!(told(early, LookupAnswer::Known(1), true, true), [lookup, end], "{early} pushes");
        }
        for early in 0..=1 {
            assert_eq!(told(early, LookupAnswer::AtLeast(0), false, false), [end], "{early} pushes");
            assert_eq!(told(early, LookupAnswer::AtLeast(0), true, false), [end], "{early} pushes");
        }
    }

    #[test]
    fn a_job_whose_session_ends_while_it_is_accepted_is_told_of_once() {
        let result = JobResult { status: KVKEEP_ERR_CANCELLED as i32, ..JobResult::default() };
        // How many of the two pushes come before the acceptance, and whether that knows the end, too.
        for (early, knows) in [(0, false), (0, true), (1, true), (2, true)] {
            let (jobs, completions) = (SubmittedJobs::default(), Completions::start().unwrap());
            let ticket = jobs.begin(7, 1, Notify::Poll, Notify::EventFd);
            let pushes: [&dyn Fn(); 2] = [&|| jobs.done(ticket, result, &[0], &completions), &|| jobs.released(ticket)];
            pushes[..early].iter().for_each(|push| push());
            jobs.forget_session(7);
            jobs.accepted(ticket, 9, LookupAnswer::AtLeast(0), knows.then(|| (result, vec![0])), &mut 0, &completions);
            assert!(jobs.query_job(9, &mut JobResult::default()).is_none_or(|answer| answer.is_err()));
            pushes[early..].iter().for_each(|push| push());
            assert_eq!(completions.drain(&mut [Completion::new_zeroed(); 2]), 1, "{early} pushes, {knows}");
            assert!(jobs.table.lock().by_ticket.is_empty() && jobs.table.lock().by_job.is_empty());
            completions.close();
        }
    }
}
