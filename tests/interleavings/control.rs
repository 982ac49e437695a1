//! Requests to backends and their deadlines.

#[path = "../../src/control/deadline.rs"]
pub mod deadline;

/// In place of `src/control/backends.rs`: how many late requests fence a backend.
pub mod backends {
    use loom::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    pub struct BackendSlot(AtomicUsize);

    impl BackendSlot {
        pub fn deadline(&self) -> Option<std::time::Duration> {
            None
        }

        pub fn fence(&self) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }

        pub fn unfence(&self) {
            assert!(self.0.fetch_sub(1, Ordering::AcqRel) > 0, "unfenced before it was fenced");
        }

        pub fn late(&self) -> usize {
            self.0.load(Ordering::Acquire)
        }
    }
}

mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use loom::sync::atomic::{AtomicUsize, Ordering};

    use super::backends::BackendSlot;
    use super::deadline::Deadlines;
    use crate::every_order;

    #[test]
    fn a_request_completes_once_and_its_backend_is_not_left_fenced() {
        every_order(4, || {
            let (deadlines, slot) = (Deadlines::new(Duration::from_secs(1)), Arc::new(BackendSlot::default()));
            let completions: Vec<_> = (0..2).map(|_| Arc::new(AtomicUsize::new(0))).collect();
            let on_late = completions.iter().map(|completions| {
                let completions = completions.clone();
                Box::new(move || {
                    completions.fetch_add(1, Ordering::Relaxed);
                }) as Box<dyn FnOnce() + Send>
            });
            let tickets = deadlines.begin(&slot, on_late);
            let later = deadlines.deadline(&slot) + Duration::from_secs(1);
            let answers: Vec<_> = tickets
                .into_iter()
                .zip(completions.clone())
                .map(|(ticket, completions)| {
                    loom::thread::spawn(move || {
                        if ticket.answered() {
                            completions.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let (late, next) = deadlines.expire(later);
            answers.into_iter().for_each(|answer| answer.join().unwrap());
            assert!(completions.iter().all(|completions| completions.load(Ordering::Relaxed) == 1));
            assert!(late <= 2 && next.is_none());
            assert_eq!(slot.late(), 0);
            assert_eq!(deadlines.expire(later), (0, None));
        });
    }
}
