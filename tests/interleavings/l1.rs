//! Reads of several sessions that share the lock of L1 meet in the word of an object's slot.

#[path = "../../src/l1/slot.rs"]
mod slot;

mod tests {
    use loom::sync::Arc;

    use super::slot::Slot;
    use crate::every_order;
    use crate::fingerprint::Fingerprint;
    use crate::sync::Ordering;

    /// Takes and returns a share as `src/l1/shared_read.rs` does. False: the call needs the exclusive lock.
    fn read(slot: &Slot, session: u32) -> bool {
        let (holder, held) = slot.holder();
        if held > 0 || !slot.change_holder(holder, session, 1) {
            return false;
        }
        slot.since_ms.store(session, Ordering::Relaxed);
        assert_eq!(slot.word().holder(), (session, 1), "another session changed what it does not hold");
        assert_eq!(slot.since_ms.load(Ordering::Relaxed), session);
        slot.count_use();
        slot.set_holder(session, 0);
        true
    }

    #[test]
    fn each_session_returns_its_own_share_and_counts_its_use() {
        every_order(3, || {
            let size = 5 << 32 | 77;
            let slot = Arc::new(Slot::new(Fingerprint::default(), size, 0, super::slot::READY));
            let readers: Vec<_> = (1..3)
                .map(|session| {
                    let slot = slot.clone();
                    loom::thread::spawn(move || u32::from(read(&slot, session)))
                })
                .collect();
            let own = u32::from(read(&slot, 0));
            let shared = readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u32>() + own;
            assert!(shared > 0, "every call needs the exclusive lock");
            assert_eq!((slot.holder().1, slot.uses()), (0, shared));
            assert!(slot.is_findable() && slot.size() == size, "what shared calls do not change is changed");
        });
    }
}
