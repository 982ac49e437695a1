//! Messages of calls that failed, by what each call named, for hosts whose next call may run on another thread.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Subjects whose newest failure is kept.
const SUBJECTS_MAX: usize = 256;

/// What a call names: the first of session, job, pool, backend and space that it has, or nothing but the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Subject {
    Cache,
    Session(u64),
    Job(u64),
    Space(u64),
    Pool(u64),
    Backend(u64),
}

/// The newest failure of each subject.
#[derive(Default)]
pub struct CallErrors {
    /// The newest is the last.
    all: Mutex<VecDeque<(Subject, String)>>,
}

impl CallErrors {
    /// None yet.
    pub const fn new() -> CallErrors {
        CallErrors { all: Mutex::new(VecDeque::new()) }
    }

    /// Keeps the message of a call in place of the former one of its subject.
    #[cold]
    pub fn note(&self, subject: Subject, message: &str) {
        let mut all = self.all.lock();
        if let Some(former) = all.iter().position(|(of, _)| *of == subject) {
            all.remove(former);
        } else if all.len() == SUBJECTS_MAX {
            all.pop_front();
        }
        all.push_back((subject, message.to_owned()));
    }

    /// The newest message of a subject.
    pub fn newest(&self, subject: Subject) -> Option<String> {
        self.all.lock().iter().find(|(of, _)| *of == subject).map(|(_, message)| message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_its_newest_failure_and_only_so_many_have_one() {
        let errors = CallErrors::new();
        errors.note(Subject::Session(7), "first");
        errors.note(Subject::Job(7), "of the job");
        errors.note(Subject::Session(7), "second");
        assert_eq!(errors.newest(Subject::Session(7)).as_deref(), Some("second"));
        assert_eq!(errors.newest(Subject::Job(7)).as_deref(), Some("of the job"));
        assert_eq!(errors.newest(Subject::Cache), None);
        for number in 0..SUBJECTS_MAX as u64 - 1 {
            errors.note(Subject::Space(number), "other");
        }
        // The job's failure was the oldest.
        assert_eq!(errors.newest(Subject::Job(7)), None);
        assert_eq!(errors.newest(Subject::Session(7)).as_deref(), Some("second"));
        errors.note(Subject::Cache, "one more");
        assert_eq!(errors.newest(Subject::Session(7)), None);
    }
}
