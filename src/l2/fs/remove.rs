//! Taking away the files of hidden objects: objects that the index does not show any more while their files are still there.
//!
//! [`unlink`] is called by the maintenance thread for deletions and evictions. A store unlinks its victims itself and then calls
//! [`stays`] for those that could not be; the quarantine moves a file and then calls [`is_gone`].

use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::core::Core;
use super::tasks::{DeleteBatch, PendingDelete};
use super::{durability, path};
use crate::key::ObjectKey;

/// Unlinks the file of a hidden object, and counts the result for `batch`. True if the file is gone.
pub fn unlink(core: &Core, key: ObjectKey, batch: Option<&DeleteBatch>) -> bool {
    let path = path::object(&key);
    let result = match unlinkat(&core.root.dirfd, path.as_str(), AtFlags::empty()) {
        Err(error) if error != Errno::NOENT => Err(core.root.error("deleting", &path, &error.into())),
        result => Ok(u64::from(result.is_ok())),
    };
    let gone = result.is_ok();
    if gone {
        is_gone(core, &key)
    } else {
        stays(core, &key)
    }
    match (result, batch) {
        (Ok(removed), Some(batch)) => {
            batch.removed.fetch_add(removed, Ordering::Relaxed);
        }
        (Err(error), Some(batch)) => batch.fail(error),
        (_, None) => {}
    }
    gone
}

/// Unlinks the files of hidden objects, and counts the results for their batches.
pub fn unlink_all(core: &Core, pending: &[PendingDelete]) {
    for (key, batch) in pending {
        unlink(core, *key, Some(batch));
    }
    if core.root.durable {
        let paths: Vec<String> = pending.iter().map(|(key, _)| path::object(key)).collect();
        if let Err(error) = durability::sync_names(&core.root, paths.iter().map(String::as_str)) {
            let error = core.root.error("syncing", "", &error);
            pending.iter().for_each(|(_, batch)| batch.fail(error.clone()));
        }
    }
}

/// The file of a hidden object is gone: its key may be stored anew.
pub fn is_gone(core: &Core, key: &ObjectKey) {
    core.directories.prune(&core.root, key);
    let stores = core.root.index(|index| index.removed(key));
    core.requeue(stores);
}

/// The file of a hidden object cannot be taken away: the index shows the object again.
pub fn stays(core: &Core, key: &ObjectKey) {
    match core.root.stat(&path::object(key)) {
        Ok(Some((size, used))) => {
            let stores = core.root.index(|index| index.unhide(key, size, used));
            core.requeue(stores);
        }
        Ok(None) | Err(_) => is_gone(core, key),
    }
}
