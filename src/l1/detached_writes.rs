//! Objects that were detached while a backend was writing them.

use hashbrown::HashMap;

use crate::key::Key;

/// Names of detached objects that a backend may publish yet: their keys are not deleted below until it is done.
#[derive(Default)]
pub(super) struct DetachedWrites {
    slots: HashMap<u32, (u32, Key)>,
    counts: HashMap<(u32, Key), u32>,
}

impl DetachedWrites {
    /// The object in a slot is being detached while transfers run on its bytes.
    pub fn add(&mut self, id: u32, space: u32, key: Key) {
        self.slots.insert(id, (space, key));
        *self.counts.entry((space, key)).or_default() += 1;
    }

    /// The memory of a detached object is freed: no backend writes it any more.
    pub fn remove(&mut self, id: u32) {
        if self.slots.is_empty() {
            return;
        }
        if let Some(name) = self.slots.remove(&id)
            && let Some(count) = self.counts.get_mut(&name)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&name);
            }
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.counts.is_empty()
    }

    /// Whether one of this key is still being written.
    pub fn has(&self, space: u32, key: &Key) -> bool {
        !self.counts.is_empty() && self.counts.contains_key(&(space, *key))
    }
}
