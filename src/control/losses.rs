//! Objects that backends have lost, noted until the store thread looks after them.

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use crate::key::ObjectKey;

/// Most objects noted as lost before all are looked at again.
const NOTED_MAX: usize = 1 << 16;

/// Objects that vanished from backends. A backend notes them under its own lock, so that nothing else is done here.
#[derive(Default)]
pub struct Losses {
    noted: Mutex<Noted>,
    waker: OnceCell<Box<dyn Fn() + Send + Sync>>,
}

/// The losses noted since they were last taken.
#[derive(Default)]
pub(super) struct Noted {
    pub objects: Vec<ObjectKey>,
    /// More than can be noted: any object may have vanished.
    pub any: bool,
}

impl Losses {
    /// Sets the function that wakes the store thread at the first loss after the others were taken. Set once.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    /// Notes that an object vanished from a backend. Called under the backend's lock.
    pub fn note(&self, object: &ObjectKey) {
        let mut noted = self.noted.lock();
        let first = noted.objects.is_empty() && !noted.any;
        if noted.objects.len() < NOTED_MAX {
            noted.objects.push(*object);
        } else {
            noted.any = true;
        }
        drop(noted);
        if first && let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Whether none is noted.
    pub(super) fn is_empty(&self) -> bool {
        let noted = self.noted.lock();
        noted.objects.is_empty() && !noted.any
    }

    /// Takes all losses noted so far.
    pub(super) fn take(&self) -> Noted {
        std::mem::take(&mut *self.noted.lock())
    }
}
