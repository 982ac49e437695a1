//! Calls that use a cache, and closes that free it.
#![allow(unsafe_code, reason = "the files have it, and so does what a call reads and a close frees")]

#[path = "../../src/ffi/gate.rs"]
mod gate;

mod tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::gate::Gate;
    use crate::every_order;

    const PLACE: usize = 0x18;

    struct Handle {
        gate: &'static Gate,
        /// Whether the cache lives. loom fails where it is read and written at the same time.
        alive: UnsafeCell<bool>,
        closed: AtomicUsize,
    }

    // SAFETY: loom finds accesses to `alive` that are not ordered.
    unsafe impl Sync for Handle {}
    // SAFETY: as above.
    unsafe impl Send for Handle {}

    impl Handle {
        fn open() -> (Arc<Handle>, u64) {
            let gate = Box::leak(Box::new(Gate(AtomicU64::new(0))));
            let handle = Handle { gate, alive: UnsafeCell::new(true), closed: AtomicUsize::new(0) };
            (Arc::new(handle), gate.open())
        }

        fn call(&self, generation: u64, nested: bool) {
            let Some(_pass) = self.gate.enter(PLACE, generation) else { return };
            // SAFETY: the pass keeps the cache; loom fails if it does not.
            self.alive.with(|alive| assert!(unsafe { *alive }, "a call uses a cache that was freed"));
            if nested {
                self.call(generation, false);
            }
        }

        fn close(&self, generation: u64) {
            if self.gate.shut(generation) {
                self.gate.wait_until_empty();
                // SAFETY: no call is in the cache any more; loom fails if one is.
                self.alive.with_mut(|alive| assert!(unsafe { std::mem::replace(&mut *alive, false) }, "freed twice"));
                self.closed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn spawn(handle: &Arc<Handle>, body: impl FnOnce(&Handle) + 'static) -> loom::thread::JoinHandle<()> {
        let handle = handle.clone();
        loom::thread::spawn(move || body(&handle))
    }

    #[test]
    fn a_cache_is_never_freed_under_a_call() {
        every_order(3, || {
            let (handle, generation) = Handle::open();
            let callers = [false, true].map(|nested| spawn(&handle, move |handle| handle.call(generation, nested)));
            handle.close(generation);
            callers.into_iter().for_each(|caller| caller.join().unwrap());
            assert_eq!(handle.closed.load(Ordering::Relaxed), 1);
            handle.call(generation, false);
        });
    }

    #[test]
    fn of_two_closes_one_frees() {
        every_order(3, || {
            let (handle, generation) = Handle::open();
            let closer = spawn(&handle, move |handle| handle.close(generation));
            let caller = spawn(&handle, move |handle| handle.call(generation, false));
            handle.close(generation);
            [closer, caller].into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!(handle.closed.load(Ordering::Relaxed), 1);
        });
    }
}
