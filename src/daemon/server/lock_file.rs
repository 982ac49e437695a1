//! The lock file of a socket: one daemon serves it at a time, and each run of a daemon has a number.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, KVKEEP_ERR_EXISTS, Result};

/// The locked file. Held while the socket is served; the kernel unlocks it when the process ends, however it ends.
pub struct LockFile {
    /// The socket that may be served.
    pub socket: PathBuf,
    /// Upper 16 bits of the numbers that this run gives. They differ from those of the 65534 runs before. Never 0.
    pub boot: u16,
    _lock: File,
}

impl LockFile {
    /// Locks the file beside `socket`, whose content counts the runs. EXISTS if another daemon has it.
    pub fn take(socket: &Path) -> Result<LockFile> {
        let mut name = socket.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let failed = |error: &std::io::Error| {
            Error::io(
                format!(
                    "opening {}, the lock of the socket; make its directory, or choose another --socket",
                    path.display()
                ),
                error,
            )
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&error))?;
        let held = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let mut text = String::new();
        let _ = (&lock).take(64).read_to_string(&mut text);
        let mut words = text.split_whitespace();
        let (runs, pid) = (words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0), words.next());
        if !held {
            return Err(Error::new(
                KVKEEP_ERR_EXISTS,
                format!(
                    "another daemon (pid {}) serves {}: stop it, or choose another --socket",
                    pid.unwrap_or("unknown"),
                    socket.display()
                ),
            ));
        }
        let runs = runs.wrapping_add(1);
        let write = |lock: &mut File| {
            lock.seek(SeekFrom::Start(0))?;
            lock.set_len(0)?;
            writeln!(lock, "{runs} {}", std::process::id())
        };
        write(&mut lock).map_err(|error| failed(&error))?;
        Ok(LockFile { socket: socket.to_owned(), boot: (runs % u64::from(u16::MAX)) as u16 + 1, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_none_of_the_numbers_of_the_runs_before() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kvkeep.sock");
        let mut seen = std::collections::HashSet::new();
        for _ in 0..300 {
            let lock_file = LockFile::take(&socket).unwrap();
            assert!(lock_file.boot != 0 && seen.insert(lock_file.boot));
            let error = LockFile::take(&socket).err().unwrap();
            assert_eq!(error.status, KVKEEP_ERR_EXISTS);
            assert!(error.message.contains(&std::process::id().to_string()), "{error}");
        }
        // It begins anew after all of them, and is never 0.
        let all = u64::from(u16::MAX);
        for runs in [all - 2, all - 1, all, 7 * all - 1] {
            std::fs::write(dir.path().join("kvkeep.sock.lock"), format!("{runs} 1\n")).unwrap();
            let boots = [(); 2].map(|()| LockFile::take(&socket).unwrap().boot);
            assert!(boots[0] != 0 && boots[1] != 0 && boots[0] != boots[1], "{runs}: {boots:?}");
        }
    }
}
