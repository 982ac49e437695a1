//! The life of a store, from its request to its answer. Every engine calls [`Core::begin_store`], unlinks the victims and calls
//! [`Core::settle`], writes the temporary file, renames it, and calls [`Core::conclude`], or [`Core::fail`] at the first error; on its own
//! threads and under no lock. With `durability=power` it hands the written file to the threads that sync instead of renaming it.

use std::io;
use std::time::Instant;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::core::Core;
use super::failures::{EVICTING, IoFailure};
use super::file_buffers::{FileBuffers, Spare};
use super::free_space::is_full;
use super::index::{Admit, Reservation};
use super::load::{in_time, patience};
use super::{path, remove};
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_IO, Result};
use crate::key::ObjectKey;
use crate::l2::{Reply, StoreRequest, Stored};

/// A store under way.
pub struct ActiveStore {
    pub path: String,
    /// The name of its file until that is whole.
    pub temporary: String,
    /// Until then it waits for a descriptor, where there is none.
    pub patience: Instant,
    /// Objects to unlink first.
    pub victims: Vec<String>,
    key: ObjectKey,
    reply: Reply<Stored>,
    reservation: Reservation,
    /// Bytes that the file system has not given its file yet.
    unallocated: u64,
    /// Times that it began anew because the file system was full.
    attempts: u32,
    /// How often the directory of its path was made.
    shards_made: u32,
}

/// Times that a store begins anew, each after an eviction, before it fails.
const ATTEMPTS_MAX: u32 = 3;
/// Times that the directory of an object may be missing when it is to be renamed.
const SHARDS_MADE_MAX: u32 = 8;

impl Core {
    /// Prepares a store, or answers it, or leaves it in the index until it can be written.
    pub fn begin_store(&self, store: StoreRequest, spare: &mut Spare) -> Option<(ActiveStore, FileBuffers)> {
        if let Err(error) = in_time(store.deadline, "store") {
            self.answer_store(store, Err(error));
            return None;
        }
        self.free_space.measure(&self.root);
        let (admitted, pressed) = self.root.index(|index| (index.admit(store), index.take_pressed()));
        if pressed {
            self.free_space.pressed(&self.root);
        }
        let (store, reservation) = match admitted {
            Admit::Go(store, reservation) => (store, reservation),
            Admit::Waits => return None,
            Admit::Already(store) => {
                self.answer_store(store, Ok(Stored::Already));
                return None;
            }
            Admit::Refused(store, error) => {
                if pressed {
                    self.root.failures.write_failed(&error);
                }
                self.answer_store(store, Err(error));
                return None;
            }
        };
        let StoreRequest { key, header, buffer, deadline, reply } = store;
        let header = header.seal(buffer.bytes());
        self.free_space.reserve(reservation.bytes);
        let active = ActiveStore {
            unallocated: reservation.bytes,
            attempts: 0,
            shards_made: 0,
            path: path::object(&key),
            temporary: self.temporaries.path(),
            patience: patience(deadline),
            victims: reservation.victims.iter().map(path::object).collect(),
            key,
            reply,
            reservation,
        };
        match FileBuffers::new(buffer, spare, self.root.direct) {
            Ok(mut buffers) => {
                buffers.set_header(&header);
                Some((active, buffers))
            }
            Err((buffer, error)) => {
                let error = Error::io("a buffer for an unaligned store", &error);
                self.finish_store(active, buffer, Err(error));
                None
            }
        }
    }

    /// Concludes a store that failed before its file was renamed. Gives it back if it is to begin anew, since the file system was full
    /// and other objects were evicted for it.
    pub fn fail(
        &self,
        mut active: ActiveStore,
        buffers: FileBuffers,
        fault: IoFailure,
        spare: &mut Spare,
    ) -> Option<(ActiveStore, FileBuffers)> {
        let (what, error) = match fault {
            IoFailure::Io(what, error) => (what, error),
            IoFailure::Short(_) => ("writing", io::Error::from(io::ErrorKind::WriteZero)),
        };
        if self.makes_room(&mut active, &error) {
            let _ = unlinkat(&self.root.dirfd, active.temporary.as_str(), AtFlags::empty());
            return Some((active, buffers));
        }
        let error = match what {
            // Tried again, it evicts others, whether or not this one may ever go.
            EVICTING if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
                Error { status: KVKEEP_ERR_IO, ..self.root.error(what, self.first_there(&active), &error) }
            }
            _ => self.root.error(what, &active.path, &error),
        };
        self.end_store(active, buffers, Err(error), spare);
        None
    }

    /// Evicts for a store that the file system refused with `error`. True if the store is to begin anew.
    pub fn makes_room(&self, active: &mut ActiveStore, error: &io::Error) -> bool {
        if !is_full(error) || !active.victims.is_empty() {
            return false;
        }
        let last_attempt = active.attempts == ATTEMPTS_MAX;
        if !self.free_space.refused(&self.root, error, last_attempt)
            || !self.root.index(|index| index.refused(&mut active.reservation))
        {
            return false;
        }
        active.attempts += 1;
        active.unallocated = active.reservation.bytes;
        self.free_space.reserve(active.unallocated);
        active.victims = active.reservation.victims.iter().map(path::object).collect();
        true
    }

    /// The first of a store's victims whose file is still there.
    fn first_there<'a>(&self, active: &'a ActiveStore) -> &'a str {
        let there = |path: &&String| statat(&self.root.dirfd, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
        active.victims.iter().find(there).unwrap_or(&active.path)
    }

    /// The file system allocated the bytes of a store's file with this result. One that cannot allocate fails during the write instead.
    pub fn allocated(&self, active: &mut ActiveStore, result: io::Result<()>) -> io::Result<()> {
        self.free_space.allocated(std::mem::take(&mut active.unallocated));
        #[cfg(test)]
        self.free_space.pretend(self.root.index(|index| index.held()), false)?;
        match result.as_ref().err().and_then(io::Error::raw_os_error) {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(()),
            _ => result,
        }
    }

    /// Whether another process stored the object already.
    pub fn is_stored(&self, active: &ActiveStore, buffers: &FileBuffers) -> bool {
        self.root.openers.may_store() && self.is_whole(active, buffers)
    }

    /// The victims of a store are unlinked.
    pub fn settle(&self, active: &mut ActiveStore) {
        if !active.victims.is_empty() {
            active.victims.clear();
            active.reservation.victims.iter().for_each(|victim| self.directories.prune(&self.root, victim));
            let stores = self.root.index(|index| index.settle(&mut active.reservation));
            self.requeue(stores);
        }
    }

    /// Whether to rename again what could not be for `error`: the directory that the file goes to was missing, and is made.
    pub fn made_shard(&self, active: &mut ActiveStore, error: &mut io::Error) -> bool {
        // More than once, since another process may take an empty one away.
        if error.kind() != io::ErrorKind::NotFound || active.shards_made == SHARDS_MADE_MAX {
            return false;
        }
        active.shards_made += 1;
        match self.directories.make_shard(&self.root, &active.key, active.shards_made == 1) {
            // Another process took the space's away meanwhile: it is made the next time.
            Err(failed) if failed.kind() != io::ErrorKind::NotFound => {
                *error = failed;
                false
            }
            _ => true,
        }
    }

    /// Concludes a store whose file was renamed with the result `renamed`, without replacing. Gives it back if it is to begin anew.
    pub fn conclude(
        &self,
        active: ActiveStore,
        buffers: FileBuffers,
        renamed: io::Result<()>,
        spare: &mut Spare,
    ) -> Option<(ActiveStore, FileBuffers)> {
        match self.renamed(&active, &buffers, renamed) {
            Ok(stored) => {
                self.end_store(active, buffers, Ok(stored), spare);
                None
            }
            Err(error) => self.fail(active, buffers, IoFailure::Io("publishing", error), spare),
        }
    }

    /// What a rename with this result made of a store.
    pub fn renamed(&self, active: &ActiveStore, buffers: &FileBuffers, renamed: io::Result<()>) -> io::Result<Stored> {
        let Err(error) = renamed else { return Ok(Stored::Written) };
        match error.raw_os_error() {
            Some(libc::EEXIST) if self.is_whole(active, buffers) => Ok(Stored::Already),
            // Either what is there is no object, or the file system cannot rename without replacing. Objects of one key
            // are alike, so replacing one harms no reader.
            Some(libc::EEXIST | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                renameat(&self.root.dirfd, active.temporary.as_str(), &self.root.dirfd, active.path.as_str())?;
                Ok(Stored::Written)
            }
            _ => Err(error),
        }
    }

    fn is_whole(&self, active: &ActiveStore, buffers: &FileBuffers) -> bool {
        statat(&self.root.dirfd, active.path.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_size as u64 == buffers.file_bytes())
    }

    /// Renames the temporary file to the object's name, replacing nothing.
    pub fn rename(&self, active: &mut ActiveStore) -> io::Result<()> {
        loop {
            let (from, to) = (active.temporary.as_str(), active.path.as_str());
            match renameat_with(&self.root.dirfd, from, &self.root.dirfd, to, RenameFlags::NOREPLACE)
                .map_err(io::Error::from)
            {
                Err(mut error) => {
                    if !self.made_shard(active, &mut error) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Answers a store whose file is published, or is removed here.
    pub fn end_store(&self, active: ActiveStore, buffers: FileBuffers, outcome: Result<Stored>, spare: &mut Spare) {
        match &outcome {
            Ok(Stored::Written) => self.root.failures.written(),
            // Best effort: a later open removes a file that stays.
            Ok(Stored::Already) | Err(_) => {
                let _ = unlinkat(&self.root.dirfd, active.temporary.as_str(), AtFlags::empty());
            }
        }
        self.finish_store(active, buffers.abandoned(spare), outcome);
    }

    fn finish_store(&self, mut active: ActiveStore, payload: Buffer, outcome: Result<Stored>) {
        self.free_space.allocated(active.unallocated);
        if active.shards_made > 0 {
            self.directories.shard_filled(&active.key);
        }
        // Where the store failed before it unlinked its victims: they are out of the index and must not stay on disk, nor be
        // forgotten where they do.
        let mut stay = Vec::new();
        if !active.victims.is_empty() {
            let mut paths = active.victims.iter();
            let unlink = |path: &String| unlinkat(&self.root.dirfd, path.as_str(), AtFlags::empty());
            let gone = |path| matches!(unlink(path), Ok(()) | Err(Errno::NOENT));
            stay.extend(active.reservation.victims.extract_if(.., |_| !paths.next().is_none_or(gone)));
        }
        let stores = self.root.index(|index| index.finish(active.reservation, outcome.as_ref().ok()));
        stay.iter().for_each(|victim| remove::stays(self, victim));
        // Not before: a caller that deletes the object as soon as its payload is free must find it in the index.
        drop(payload);
        self.requeue(stores);
        active.reply.send(outcome);
        self.backlog.answered();
    }

    fn answer_store(&self, store: StoreRequest, outcome: Result<Stored>) {
        store.answer(outcome);
        self.backlog.answered();
    }
}
