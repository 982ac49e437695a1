//! What L1 knows of an object and readings do not look at.

use super::slot::{NONE, RETAIN_MS};
use crate::key::Key;

/// What a session looks at that notes an object.
#[derive(Debug, Default)]
pub struct Mention {
    /// Raised when the slot is freed, so that an old reference names nothing.
    pub generation: u32,
    /// Place of the object in its prompt, as far as its writer's session tells.
    pub depth: u32,
    /// The last pass over a session's objects that met it.
    pub seen: u32,
}

/// What else is known of an object.
#[repr(align(64))]
#[derive(Debug)]
pub struct Detail {
    /// Its key.
    pub key: Key,
    space: u16,
    /// Retention priority.
    pub priority: u8,
    /// Turns as a victim that its retention still spares it.
    pub chances: u8,
    /// Until when its retention lasts, in units of [`RETAIN_MS`] of the cache's clock.
    pub retain_until: u32,
    /// The allocator's name for its bytes.
    pub node: u32,
    /// Transfers that run on its bytes.
    pub io: u32,
    /// Shares of sessions other than its holder: first of a list in [`Holds`](super::holders::Holds) …
    pub more: u32,
    /// … and how many they are.
    pub rest: u32,
}

const _: () = assert!(size_of::<Detail>() == 64);

impl Detail {
    /// Of an object of which nothing else is known yet.
    pub fn new(key: Key, space: u32, node: u32) -> Detail {
        debug_assert!(space <= u32::from(u16::MAX));
        let (space, more) = (space as u16, NONE);
        Detail { key, space, priority: 0, chances: 0, retain_until: 0, node, io: 0, more, rest: 0 }
    }

    /// Of none.
    pub fn free() -> Detail {
        Detail::new(Key { hash: [0; 32], rank: 0, group: 0 }, 0, 0)
    }

    /// Index of its space.
    pub fn space(&self) -> u32 {
        u32::from(self.space)
    }

    /// Whether its retention lasts at `now_ms`.
    pub fn retained(&self, now_ms: u64) -> bool {
        u64::from(self.retain_until) * RETAIN_MS > now_ms
    }
}
