//! Other processes that have the directory open, and so may store keys that the index lacks.
//!
//! A backend that opens a directory locks a file in `tmp/` (see `writers`), puts a file of its own in the place of `tmp/.opened`, and
//! then looks for locks of others. If there is none, it has the directory alone for as long as `.opened` is its own: each other backend
//! takes its place before it stores anything.

use std::fs::{File, OpenOptions, remove_file, rename};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use rustix::fs::{fstat, statfs};

use super::path::{self, TMP, Temporaries, WriterId};
use super::writers;

/// The name in `tmp/` of the file of the backend that opened the directory last.
const OPENED: &str = ".opened";

/// A backend's own `.opened`, in its place as long as no other backend has opened the directory.
pub struct Opened {
    file: File,
    path: PathBuf,
}

impl Opened {
    fn is_in_place(&self) -> bool {
        fstat(&self.file).is_ok_and(|opened| opened.st_nlink > 0)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Another backend's that comes between is removed in its place: that backend then asks the file system.
        if self.is_in_place() {
            let _ = remove_file(&self.path);
        }
    }
}

/// Whether other processes may store in the directory.
pub struct Openers {
    /// The answer where the options give it.
    given: Option<bool>,
    /// Set when this backend was alone and had listed the directory.
    own: RwLock<Option<Opened>>,
}

impl Openers {
    /// Without an answer given, others may store until `set_alone`.
    pub fn new(given: Option<bool>) -> Openers {
        Openers { given, own: RwLock::new(None) }
    }

    /// Whether other processes may have stored what the index lacks. One system call.
    pub fn may_store(&self) -> bool {
        if let Some(given) = self.given {
            return given;
        }
        let own = self.own.read();
        let Some(opened) = &*own else { return true };
        if opened.is_in_place() {
            return false;
        }
        drop(own);
        self.give_up();
        true
    }

    /// Whether it is still to be found out that this backend is alone.
    pub fn is_open(&self) -> bool {
        self.given.is_none() && self.may_store()
    }

    /// The index has everything that was stored before `opened` was announced, when no other process had the directory open.
    pub fn set_alone(&self, opened: Opened) {
        *self.own.write() = Some(opened);
    }

    /// This backend is not known to be alone any more.
    pub fn give_up(&self) {
        *self.own.write() = None;
    }
}

/// Shows the backends that have `dir` open that another one has opened it. Call it with the writer's lock held.
pub fn announce(dir: &Path, names: &Temporaries) -> io::Result<Opened> {
    let made = dir.join(TMP).join(names.name());
    OpenOptions::new().write(true).create_new(true).mode(path::FILE_MODE).open(&made)?;
    // A file system on which a file is open for writing cannot be mounted anew for reading.
    let path = dir.join(TMP).join(OPENED);
    let opened = File::open(&made).and_then(|file| rename(&made, &path).map(|()| Opened { file, path }));
    if opened.is_err() {
        let _ = remove_file(&made);
    }
    opened
}

/// Whether no other open backend holds a lock in `dir`, on a file system where all locks are seen. Call it after `announce`.
pub fn is_alone(dir: &Path, this: &WriterId, names: &Temporaries) -> bool {
    statfs(dir).is_ok_and(|stat| writers::is_local(stat.f_type as u64))
        && writers::others(dir, this, names.writer()).is_ok_and(|others| others == 0)
}
