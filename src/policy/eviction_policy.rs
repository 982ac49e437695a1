//! The interface between a tier and its eviction policy.

/// The facts that a policy may ask for of an object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// Hash of the object's identity, stable across eviction and reinsertion (for ghost lists).
    pub tag: u64,
    /// Bytes of the object's payload.
    pub size: u64,
    /// Place of the object in its prompt, 0 for the first, as far as its writer's session knows.
    pub depth: u32,
    /// Times the object was read since it was inserted.
    pub uses: u32,
    /// Live retention priority, 0 (none) to 100.
    pub priority: u8,
}

/// Why an object leaves a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// Chosen as a victim: a ghost list may remember it.
    Evicted,
    /// Deleted by its user: forget it.
    Deleted,
}

/// An eviction policy over dense slot numbers that the tier assigns (and reuses after `remove`).
///
/// Locked objects stay known to the policy. When `victim` meets one, `usable` refuses it and the policy
/// sets it aside; it comes back by `touch` or `release`, and is not offered before.
pub trait EvictionPolicy: Send {
    /// The name it is chosen by.
    fn name(&self) -> &'static str;
    /// A new object. `id` is not known to the policy. `meta` may have to look far for its answer, here and below.
    fn insert(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta);
    /// The object was used; ends being set aside.
    fn touch(&mut self, id: u32, meta: &dyn Fn(u32) -> Meta);
    /// Objects were used, one after another.
    fn touch_all(&mut self, ids: &[u32], meta: &dyn Fn(u32) -> Meta) {
        ids.iter().for_each(|&id| self.touch(id, meta));
    }
    /// The object is gone. Works for known objects in any state, set aside or not.
    fn remove(&mut self, id: u32, why: Removal);
    /// The next object to go, first to last, that `usable` accepts; each one it refuses is set aside, and so is the
    /// accepted one, until `remove`, `touch` or `release` is called for it. `None`: no usable object is left.
    fn victim(&mut self, usable: &mut dyn FnMut(u32) -> bool) -> Option<u32>;
    /// A set-aside object may be offered again, at about the place it had (first to go). No-op if not set aside.
    fn release(&mut self, id: u32);
    /// Bytes of memory the policy itself holds (capacity, not length).
    fn memory_bytes(&self) -> usize;
}
