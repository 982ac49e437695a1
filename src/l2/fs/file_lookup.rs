//! Lookups that need the file system: keys that other processes may have stored. Runs on the maintenance thread.

use std::time::Instant;

use rustix::fs::{Mode, OFlags, openat};

use super::core::Core;
use super::path;
use crate::error::{Error, KVKEEP_ERR_TIMEOUT, Result};
use crate::key::ObjectKey;
use crate::l2::{Found, LookupRequest};

/// Answers a lookup, pinning each key that it finds.
pub fn look_up(core: &Core, lookup: LookupRequest) {
    let LookupRequest { keys, in_order, deadline, reply } = lookup;
    let mut found = vec![Found::Absent; keys.len()];
    let other = if core.root.openers.may_store() { Found::Unknown } else { Found::Absent };
    core.root.index(|index| index.lookup(&keys, &mut found, other));
    let result = ask(core, &keys, &mut found, in_order, deadline);
    match result {
        Ok(()) => reply.send(Ok(found)),
        Err(error) => {
            unpin_found(core, &keys, &found);
            reply.send(Err(error));
        }
    }
}

/// Asks the file system for every key still unknown.
fn ask(core: &Core, keys: &[ObjectKey], found: &mut [Found], in_order: bool, deadline: Instant) -> Result<()> {
    for at in 0..keys.len() {
        if found[at] == Found::Unknown {
            if Instant::now() >= deadline {
                return Err(Error::new(KVKEEP_ERR_TIMEOUT, "the deadline passed before the lookup was done"));
            }
            found[at] = discover(core, &keys[at]);
        }
        if in_order && found[at] == Found::Absent {
            unpin_found(core, &keys[at..], &found[at..]);
            found[at..].fill(Found::Absent);
            return Ok(());
        }
    }
    Ok(())
}

fn unpin_found(core: &Core, keys: &[ObjectKey], found: &[Found]) {
    let pinned = keys.iter().zip(found).filter(|(_, found)| matches!(found, Found::Present(_)));
    let pinned: Vec<ObjectKey> = pinned.map(|(key, _)| *key).collect();
    core.unpin(&pinned);
}

/// Asks the file system for one key. A file that cannot be seen or opened is absent for now.
fn discover(core: &Core, key: &ObjectKey) -> Found {
    let path = path::object(key);
    let seen = match core.root.stat(&path) {
        Ok(seen) => seen,
        Err(error) => {
            core.root.unread("looking up", &path, &error.into());
            return Found::Absent;
        }
    };
    let Some((size, used)) = seen else { return Found::Absent };
    if core.root.index(|index| index.is_unreadable(key)) && !opens(core, &path) {
        return Found::Absent;
    }
    core.root.index(|index| index.discovered(*key, size, used))
}

/// Whether this process may read the file at `path`.
fn opens(core: &Core, path: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    openat(&core.root.dirfd, path, flags, Mode::empty()).is_ok()
}
