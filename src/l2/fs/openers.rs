//! Other processes that have the directory open, and so may store keys that the index lacks.
//!
//! Each backend holds a shared lock on the directory, which ends with the process, and removes `tmp/.opened` before it stores anything.
//! To find out whether it is alone, it puts a file of its own in that place and tries to make its lock exclusive. If it can, it has
//! the directory alone for as long as the file is there.

use std::fs::{File, OpenOptions, remove_file, rename};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{FlockOperation, flock, fstat, statfs};

use super::path::{self, TMP, Temporaries};
use super::writers;

/// The name in `tmp/` of the file of the backend that has the directory alone.
const OPENED: &str = ".opened";
/// How often, a millisecond apart, the shared lock is tried: another backend has it exclusively for an instant.
const TRIES: usize = 100;

/// A backend's own `.opened`, in its place as long as no other backend has opened the directory.
pub struct Opened {
    file: File,
    path: PathBuf,
}

impl Opened {
    /// Takes the place, whoever has it.
    fn new(dir: &Path, names: &Temporaries) -> io::Result<Opened> {
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

/// The shared lock on the directory.
struct DirectoryLock(File);

impl DirectoryLock {
    /// Takes the lock. None where it cannot be had, or where locks of other machines are not seen.
    fn new(dir: &Path) -> Option<DirectoryLock> {
        let lock = DirectoryLock(File::open(dir).ok()?);
        (statfs(dir).is_ok_and(|stat| writers::is_local(stat.f_type as u64)) && lock.share()).then_some(lock)
    }

    fn share(&self) -> bool {
        (0..TRIES).any(|tried| {
            if tried > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            flock(&self.0, FlockOperation::NonBlockingLockShared).is_ok()
        })
    }

    /// Whether no other backend has the lock, and whether it is shared again. In between this backend may have had none.
    fn is_only(&self) -> (bool, bool) {
        (flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_ok(), self.share())
    }
}

/// Whether other processes may store in the directory.
pub struct Openers {
    /// The answer where the options give it.
    given: Option<bool>,
    lock: Mutex<Option<DirectoryLock>>,
    /// Set when this backend was alone and had listed the directory.
    own: RwLock<Option<Opened>>,
}

impl Openers {
    /// Shows other backends that `dir` is open. Without an answer given, others may store until `set_alone`.
    pub fn new(dir: &Path, given: Option<bool>) -> Openers {
        let openers = Openers { given, lock: Mutex::new(DirectoryLock::new(dir)), own: RwLock::new(None) };
        openers.displace(dir);
        openers
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

    /// Whether this backend is alone in `dir`, which it then is for as long as the result is in its place. To be called where others
    /// may store, and again every so often: what a backend that could not remove `.opened` stores shows at the latest then.
    pub fn find_out(&self, dir: &Path, names: &Temporaries) -> Option<Opened> {
        let mut held = self.lock.lock();
        if held.is_none() {
            *held = DirectoryLock::new(dir);
        }
        self.displace(dir);
        if self.given.is_some() {
            return None;
        }
        let lock = held.as_ref()?;
        let opened = Opened::new(dir, names).ok()?;
        let (is_only, is_shared) = lock.is_only();
        if !is_shared {
            *held = None;
        }
        if is_only && is_shared && opened.is_in_place() {
            return Some(opened);
        }
        // Another backend may have found no lock while this one's was exclusive or lost.
        drop(opened);
        self.displace(dir);
        None
    }

    /// Has the backend that took itself for alone ask the file system from now on. Needs no room in the file system.
    fn displace(&self, dir: &Path) {
        // Where it cannot be removed, this backend cannot store either, but for odd modes of `tmp/`.
        let _ = remove_file(dir.join(TMP).join(OPENED));
    }

    /// The index has everything that was stored before `opened` was in its place.
    pub fn set_alone(&self, opened: Opened) {
        *self.own.write() = Some(opened);
    }

    /// This backend is not known to be alone any more.
    pub fn give_up(&self) {
        *self.own.write() = None;
    }

    /// Whether other backends see that this one has the directory open, as far as locks show.
    pub fn is_shown(&self) -> bool {
        self.lock.lock().is_some()
    }

    /// The directory is closed: others may have it alone.
    pub fn close(&self) {
        self.give_up();
        if let Some(DirectoryLock(file)) = self.lock.lock().take() {
            // A child process that has the descriptor, too, would keep the lock.
            let _ = flock(&file, FlockOperation::Unlock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::WriterId;
    use super::*;

    fn opened() -> (tempfile::TempDir, Temporaries) {
        let dir = tempfile::tempdir().unwrap();
        path::make_tmp(dir.path()).unwrap();
        (dir, Temporaries::new(&WriterId::this()))
    }

    #[test]
    fn nobody_is_alone_before_the_last_of_the_others_closes() {
        let (dir, names) = opened();
        let openers: Vec<Openers> = (0..3).map(|_| Openers::new(dir.path(), None)).collect();
        for closed in 0..2 {
            for one in &openers[closed..] {
                assert!(one.find_out(dir.path(), &names).is_none());
                // Nothing in `tmp/` is needed to see the others.
                std::fs::read_dir(dir.path().join(TMP)).unwrap().for_each(|entry| {
                    let _ = remove_file(entry.unwrap().path());
                });
            }
            openers[closed].close();
        }
        let last = &openers[2];
        assert!(last.may_store());
        last.set_alone(last.find_out(dir.path(), &names).unwrap());
        assert!(!last.may_store());
        let newcomer = Openers::new(dir.path(), Some(false));
        assert!(last.may_store());
        assert!(last.find_out(dir.path(), &names).is_none());
        newcomer.close();
        assert!(last.find_out(dir.path(), &names).is_some());
    }

    #[test]
    fn two_that_ask_at_once_are_never_both_alone() {
        let (dir, names) = opened();
        let [one, two] = [(); 2].map(|()| Openers::new(dir.path(), None));
        for _ in 0..1000 {
            let ask = |openers: &Openers| openers.find_out(dir.path(), &names);
            std::thread::scope(|scope| {
                let other = scope.spawn(|| ask(&two));
                let found = [ask(&one), other.join().unwrap()];
                let alone = found.iter().flatten().filter(|opened| opened.is_in_place()).count();
                assert_eq!(alone, 0);
            });
        }
    }

    #[test]
    fn a_lock_that_another_program_holds_makes_nobody_alone() {
        let (dir, names) = opened();
        let foreign = File::open(dir.path()).unwrap();
        flock(&foreign, FlockOperation::LockExclusive).unwrap();
        let openers = Openers::new(dir.path(), None);
        assert!(openers.find_out(dir.path(), &names).is_none());
        drop(foreign);
        assert!(openers.find_out(dir.path(), &names).is_some());
    }
}
