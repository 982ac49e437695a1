//! The spaces that a backend is to forget. It is not looked up for them until it has forgotten them.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::key::SpaceTag;

/// Which spaces are being forgotten; `None` stands for all.
pub type Which = Option<SpaceTag>;

#[derive(Default)]
struct Forgetting {
    /// Cleanings that are not done.
    cleanings: u32,
    /// The last one was given up.
    failed: bool,
}

/// The spaces that one backend is to forget or could not forget.
#[derive(Default)]
pub struct ForgottenSpaces {
    count: AtomicUsize,
    spaces: Mutex<HashMap<Which, Forgetting>>,
}

impl ForgottenSpaces {
    /// Whether a space is being forgotten, or could not be.
    pub fn covers(&self, space: &SpaceTag) -> bool {
        self.any(space, |_| true)
    }

    /// Whether a space could not be forgotten.
    pub fn failed(&self, space: &SpaceTag) -> bool {
        self.any(space, |bar| bar.failed && bar.cleanings == 0)
    }

    fn any(&self, space: &SpaceTag, is: impl Fn(&Forgetting) -> bool) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let spaces = self.spaces.lock();
        [None, Some(*space)].iter().any(|which| spaces.get(which).is_some_and(&is))
    }

    /// Why the backend is not looked up for some space, where that will not pass by itself.
    pub fn trouble(&self) -> Option<String> {
        let failed = self.count.load(Ordering::Acquire) > 0
            && self.spaces.lock().values().any(|bar| bar.failed && bar.cleanings == 0);
        failed.then(|| {
            "it could not forget a space, of which nothing is looked up in it: forget the space again".to_owned()
        })
    }

    /// Begins to forget a space: the backend is not looked up for it from now on.
    pub fn begin(&self, which: Which) {
        let mut spaces = self.spaces.lock();
        spaces.entry(which).or_default().cleanings += 1;
        self.count.store(spaces.len(), Ordering::Release);
    }

    /// A cleaning has ended.
    pub fn end(&self, which: Which, failed: bool) {
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
