//! What both engines do with an object that they store before its bytes move and after.

use std::io;
use std::time::Instant;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::failures::EVICTING;
use super::file_format::{Frame, Spare};
use super::index::{Admit, Reservation};
use super::object_io::{Core, Fault, in_time, patience};
use super::path;
use crate::arena::Buffer;
use crate::error::{Error, KVKEEP_ERR_IO, Result};
use crate::key::ObjectKey;
use crate::l2::{Reply, StoreRequest, Stored};

/// A store under way.
pub struct Writing {
    pub path: String,
    /// Its name until it is whole.
    pub temporary: String,
    /// A descriptor is waited for until then.
    pub patience: Instant,
    /// Objects to unlink first.
    pub victims: Vec<String>,
    key: ObjectKey,
    reply: Reply<Stored>,
    pub(super) reservation: Reservation,
    /// Bytes that the file system has not given its file yet.
    pub(super) unallocated: u64,
    /// Times that it began anew because the file system was full.
    pub(super) attempts: u32,
    /// How often the directory of its path was made.
    shards_made: u32,
}

/// Times that the directory of an object may be missing when it is to be renamed.
const SHARDS_MADE_MAX: u32 = 8;

impl Core {
    /// Prepares a store, or answers it, or leaves it in the index to come back.
    pub fn begin_store(&self, store: StoreRequest, spare: &mut Spare) -> Option<(Writing, Frame)> {
        if let Err(error) = in_time(store.deadline, "store") {
            self.answer_store(store, Err(error));
            return None;
        }
        self.space.measure(self);
        let (admitted, pressed) = self.index(|index| (index.admit(store), index.take_pressed()));
        if pressed {
            self.space.pressed(self);
        }
        let (store, reservation) = match admitted {
            Admit::Go(store, reservation) => (store, reservation),
            Admit::Parked => return None,
            Admit::Already(store) => {
                self.answer_store(store, Ok(Stored::Already));
                return None;
            }
            Admit::Refused(store, error) => {
                if pressed {
                    self.condition.write_failed(&error);
                }
                self.answer_store(store, Err(error));
                return None;
            }
        };
        let StoreRequest { key, header, buffer, deadline, reply } = store;
        self.space.reserve(reservation.bytes);
        let writing = Writing {
            unallocated: reservation.bytes,
            attempts: 0,
            shards_made: 0,
            path: path::object(&key),
            temporary: format!("{}/{}", path::TMP, self.temporaries.name()),
            patience: patience(deadline),
            victims: reservation.victims.iter().map(path::object).collect(),
            key,
            reply,
            reservation,
        };
        match Frame::new(buffer, spare, self.direct) {
            Ok(mut frame) => {
                frame.seal(&header);
                Some((writing, frame))
            }
            Err((buffer, error)) => {
                let error = Error::io("a buffer for an unaligned store", &error);
                self.finish_store(writing, buffer, Err(error));
                None
            }
        }
    }

    /// Concludes a store that failed before its file was renamed. Gives it back if it is to begin anew, since the file system was full
    /// and others made room.
    pub fn fail(
        &self,
        mut writing: Writing,
        frame: Frame,
        fault: Fault,
        spare: &mut Spare,
    ) -> Option<(Writing, Frame)> {
        let (what, error) = match fault {
            Fault::Io(what, error) => (what, error),
            Fault::Short(_) => ("writing", io::Error::from(io::ErrorKind::WriteZero)),
        };
        if self.space.make_room(self, &mut writing, &error) {
            let _ = unlinkat(&self.dirfd, writing.temporary.as_str(), AtFlags::empty());
            return Some((writing, frame));
        }
        let error = match what {
            // Tried again, it evicts others, whether or not this one may ever go.
            EVICTING if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
                Error { status: KVKEEP_ERR_IO, ..self.error(what, self.first_there(&writing), &error) }
            }
            _ => self.error(what, &writing.path, &error),
        };
        self.end_store(writing, frame, Err(error), spare);
        None
    }

    /// The first of a store's victims whose file is still there.
    fn first_there<'a>(&self, writing: &'a Writing) -> &'a str {
        let there = |path: &&String| statat(&self.dirfd, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok();
        writing.victims.iter().find(there).unwrap_or(&writing.path)
    }

    /// The file of a store was given its room with this result. A file system that cannot give it finds out while it is written.
    pub fn allocated(&self, writing: &mut Writing, result: io::Result<()>) -> io::Result<()> {
        self.space.allocated(std::mem::take(&mut writing.unallocated));
        #[cfg(test)]
        self.space.pretend(self.index(|index| index.held()))?;
        match result.as_ref().err().and_then(io::Error::raw_os_error) {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(()),
            _ => result,
        }
    }

    /// Whether another process stored the object already.
    pub fn is_stored(&self, writing: &Writing, frame: &Frame) -> bool {
        self.shared && self.is_whole(writing, frame)
    }

    /// The victims of a store are unlinked.
    pub fn settle(&self, writing: &mut Writing) {
        if !writing.victims.is_empty() {
            writing.victims.clear();
            writing.reservation.victims.iter().for_each(|victim| self.prune(victim));
            let stores = self.index(|index| index.settle(&mut writing.reservation));
            self.again(stores);
        }
    }

    /// Makes the directory where objects are written.
    pub fn make_tmp(&self) -> io::Result<()> {
        path::make_directory(&self.dir.join(path::TMP))
    }

    /// Whether to rename again what could not be for `error`: the directory that the file goes to was missing, and is made.
    pub fn made_shard(&self, writing: &mut Writing, error: &mut io::Error) -> bool {
        // More than once, since another process may take an empty one away.
        if error.kind() != io::ErrorKind::NotFound || writing.shards_made == SHARDS_MADE_MAX {
            return false;
        }
        writing.shards_made += 1;
        match self.make_shard(&writing.key, writing.shards_made == 1) {
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
        writing: Writing,
        frame: Frame,
        renamed: io::Result<()>,
        spare: &mut Spare,
    ) -> Option<(Writing, Frame)> {
        match self.renamed(&writing, &frame, renamed) {
            Ok(stored) => {
                self.end_store(writing, frame, Ok(stored), spare);
                None
            }
            Err(error) => self.fail(writing, frame, Fault::Io("publishing", error), spare),
        }
    }

    fn renamed(&self, writing: &Writing, frame: &Frame, renamed: io::Result<()>) -> io::Result<Stored> {
        let Err(error) = renamed else { return Ok(Stored::Written) };
        match error.raw_os_error() {
            Some(libc::EEXIST) if self.is_whole(writing, frame) => Ok(Stored::Already),
            // Either what is there is no object, or the file system cannot rename without replacing. Objects of one key
            // are alike, so replacing harms nobody.
            Some(libc::EEXIST | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
                renameat(&self.dirfd, writing.temporary.as_str(), &self.dirfd, writing.path.as_str())?;
                Ok(Stored::Written)
            }
            _ => Err(error),
        }
    }

    fn is_whole(&self, writing: &Writing, frame: &Frame) -> bool {
        statat(&self.dirfd, writing.path.as_str(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_size as u64 == frame.file_bytes())
    }

    /// Renames without replacing.
    pub fn rename(&self, writing: &mut Writing) -> io::Result<()> {
        loop {
            let (from, to) = (writing.temporary.as_str(), writing.path.as_str());
            match renameat_with(&self.dirfd, from, &self.dirfd, to, RenameFlags::NOREPLACE).map_err(io::Error::from) {
                Err(mut error) => {
                    if !self.made_shard(writing, &mut error) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Answers a store.
    pub fn end_store(&self, writing: Writing, frame: Frame, outcome: Result<Stored>, spare: &mut Spare) {
        match &outcome {
            Ok(Stored::Written) => self.condition.written(),
            // Best effort: what stays is removed as stale by a later open.
            Ok(Stored::Already) | Err(_) => {
                let _ = unlinkat(&self.dirfd, writing.temporary.as_str(), AtFlags::empty());
            }
        }
        self.finish_store(writing, frame.abandoned(spare), outcome);
    }

    fn finish_store(&self, mut writing: Writing, payload: Buffer, outcome: Result<Stored>) {
        self.space.allocated(writing.unallocated);
        if writing.shards_made > 0 {
            self.filled_shard(&writing.key);
        }
        // Where the store failed before it unlinked its victims: they are out of the index and must not stay on disk, nor be
        // forgotten where they do.
        let mut stay = Vec::new();
        if !writing.victims.is_empty() {
            let mut paths = writing.victims.iter();
            let unlink = |path: &String| unlinkat(&self.dirfd, path.as_str(), AtFlags::empty());
            let gone = |path| matches!(unlink(path), Ok(()) | Err(Errno::NOENT));
            stay.extend(writing.reservation.victims.extract_if(.., |_| !paths.next().is_none_or(gone)));
        }
        let stores = self.index(|index| index.finish(writing.reservation, outcome.as_ref().ok()));
        stay.iter().for_each(|victim| self.stays(victim));
        // Not before: whoever deletes the object as soon as nobody writes it must find it in the index.
        drop(payload);
        self.again(stores);
        writing.reply.send(outcome);
        self.queue.answered();
    }

    fn answer_store(&self, store: StoreRequest, outcome: Result<Stored>) {
        store.answer(outcome);
        self.queue.answered();
    }
}
