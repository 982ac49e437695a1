//! The maintenance thread's work between its tasks: it removes what dead writers left, trims the quarantine, and lists again the
//! directories that recovery could not list.

use super::core::Core;
use super::openers::Opened;
use super::quarantine_dir::Quarantine;
use super::recover::{self, ObjectDir, Recovered};
use super::root::Root;
use super::{path, writers};
use crate::log::LogLevel;

/// Removes what dead writers left, keeps the quarantine within its bounds, and counts the bytes of both.
pub fn run(core: &Core) {
    let root = &core.root;
    if let Some(lock) = &*core.writer_lock.lock() {
        lock.renew();
    }
    match writers::remove_leftovers(&root.dir, &core.writer, core.temporaries.writer()) {
        Ok(left) => {
            root.index(|index| index.overhead_mut().leftovers = left.bytes);
            if let Some(error) = left.unremoved {
                root.log
                    .often("fs unremoved", LogLevel::Warn, || format!("fs: some leftovers cannot be removed: {error}"));
            }
        }
        Err(error) => {
            root.unread("listing", path::TMP, &error);
        }
    }
    match Quarantine::trim(root) {
        Ok(bytes) => root.index(|index| index.overhead_mut().quarantine = bytes),
        Err(error) => {
            root.unread("listing", path::QUARANTINE, &error);
        }
    }
}

/// Remembers, logs and shows in health the directories that recovery could not list.
pub fn note_unlisted(core: &Core, recovered: Recovered) {
    let root = &core.root;
    if let Some(error) = &recovered.unremoved {
        root.log.often("fs unremoved", LogLevel::Warn, || format!("fs: some leftovers cannot be removed: {error}"));
    }
    let missing = recovered.missing(&root.dir);
    if let Some(why) = &missing {
        let line = || format!("fs: {why}; of what is there, only what is looked up by name is found");
        root.log.often("fs unlisted", LogLevel::Warn, line);
    }
    root.failures.set_unlisted(missing);
    *core.unlisted.lock() = recovered.unlisted;
}

/// This backend has the directory alone by `opened`, unless some of it could not be listed.
pub fn note_alone(core: &Core, opened: Option<Opened>) {
    if let Some(opened) = opened
        && core.unlisted.lock().is_empty()
    {
        core.root.openers.set_alone(opened);
    }
}

/// Where the other processes that had the directory open are gone: lists what they stored, so that the index has it all.
pub fn list_if_alone(core: &Core) {
    let Root { dir, openers, .. } = &core.root;
    if (openers.may_store() || !openers.is_shown())
        && let Some(opened) = openers.find_out(dir, &core.temporaries)
        && let Ok(spaces) = recover::spaces(dir)
    {
        list(core, spaces);
        note_alone(core, Some(opened));
    }
}

/// Tries again to list the directories that could not be listed.
pub fn list_again(core: &Core) {
    let places = std::mem::take(&mut *core.unlisted.lock());
    if !places.is_empty() {
        list(core, places);
    }
}

/// Adds to the index what is found in `places`.
fn list(core: &Core, places: Vec<ObjectDir>) {
    let mut recovered = recover::read(places, &core.writer);
    let found = std::mem::take(&mut recovered.found);
    core.root.index(|index| {
        index.restore(found);
        index.check_bounds();
    });
    note_unlisted(core, recovered);
}
