//! Names in the directory: `<space>/<first hash byte>/<hash>-<rank>-<group>`, `tmp/` for objects that are being written,
//! and `quarantine/` for broken ones.

use std::ffi::CString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::{Key, ObjectKey, SpaceTag, hex, unhex};

/// Where broken objects are kept for an inspection.
pub const QUARANTINE: &str = "quarantine";
/// Where objects are written before they get their names. Earlier builds wrote them in the objects' directories.
pub const TMP: &str = "tmp";
/// Directories in `tmp/` that objects are written in by turns: files are made in one directory one after the other, and a file system
/// may search long for the number of a new one.
const TMP_PARTS: u64 = 16;
/// How temporary names begin.
pub const TEMPORARY: &str = ".tmp-";

/// The mode of files and directories, less the umask. The bytes are what users said to a model, which only this user and group may
/// read.
pub const FILE_MODE: u32 = 0o660;
pub const DIRECTORY_MODE: u32 = 0o770;

/// Makes a directory and those above it, as far as they are not there.
pub fn make_directory(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir)
}

/// Makes the directories in which the objects of the directory `dir` are written.
pub fn make_tmp(dir: &Path) -> std::io::Result<()> {
    tmp_parts(dir).try_for_each(|part| make_directory(&part))
}

/// The directories in which the objects of the directory `dir` are written.
pub fn tmp_parts(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let tmp = dir.join(TMP);
    (0..TMP_PARTS).map(move |part| tmp.join(format!("{part:x}")))
}

/// The path of an object, relative to the directory.
pub fn object(key: &ObjectKey) -> String {
    let hash = hex(&key.key.hash);
    let (rank, group) = (key.key.rank, key.key.group);
    format!("{}/{}/{hash}-{rank}-{group}", hex(&key.space.0), &hash[..2])
}

/// The directory an object is in.
pub fn shard(key: &ObjectKey) -> String {
    format!("{}/{}", hex(&key.space.0), hex(&key.key.hash[..1]))
}

/// The path of an object in quarantine.
pub fn quarantined(key: &ObjectKey) -> String {
    format!("{QUARANTINE}/{}-{}-{}-{}", hex(&key.space.0), hex(&key.key.hash), key.key.rank, key.key.group)
}

/// A path as the kernel wants it. Ours hold hexadecimal, digits, dots, dashes and slashes, so that none has a NUL.
pub fn c(path: &str) -> CString {
    CString::new(path).unwrap_or_default()
}

/// The space a directory is for, if its name is one.
pub fn parse_space(name: &str) -> Option<SpaceTag> {
    let space = SpaceTag(unhex(name)?);
    (hex(&space.0) == name).then_some(space)
}

/// Whether a directory of a space has a name that we give.
pub fn is_shard(name: &str) -> bool {
    unhex::<1>(name).is_some_and(|byte| hex(&byte) == name)
}

/// The object a file is, if it is where we would put it under the name we would give it.
pub fn parse_object(space: SpaceTag, shard: &str, name: &str) -> Option<ObjectKey> {
    let mut parts = name.split('-');
    let key =
        Key { hash: unhex(parts.next()?)?, rank: parts.next()?.parse().ok()?, group: parts.next()?.parse().ok()? };
    let canonical = format!("{}-{}-{}", hex(&key.hash), key.rank, key.group);
    (canonical == name && name.starts_with(shard)).then_some(ObjectKey { space, key })
}

/// The process that wrote a temporary file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterId {
    /// Eight digits for the kernel's boot and eight for the process namespace, so that process numbers can be compared.
    pub host: String,
    /// The process number in its namespace.
    pub pid: u32,
    /// When the process started, in the kernel's ticks: numbers are reused, pairs are not.
    pub start: u64,
}

fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; the start time is the 20th field after it.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl WriterId {
    /// The identity of this process.
    pub fn this() -> WriterId {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let digits = |bytes: &[u8]| hex(&blake3::hash(bytes).as_bytes()[..4]);
        let host = digits(boot.as_bytes()) + &digits(namespace.as_os_str().as_encoded_bytes());
        let pid = std::process::id();
        WriterId { host, pid, start: start_of(pid).unwrap_or(0) }
    }

    /// Whether the writer `other` runs; `None` if that cannot be known from here.
    pub fn knows_alive(&self, other: &WriterId) -> Option<bool> {
        (self.host == other.host && self.start != 0).then(|| start_of(other.pid) == Some(other.start))
    }
}

impl WriterId {
    /// Whether the writer `other` ran under this kernel since it was booted, in any namespace.
    pub fn shares_kernel(&self, other: &WriterId) -> bool {
        self.host.get(..8) == other.host.get(..8)
    }
}

/// Gives temporary names, none twice.
pub struct Temporaries {
    writer: String,
    next: AtomicU64,
}

/// Shared by all directories open in this process, since two of them may be the same.
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

impl Temporaries {
    /// Names that only `writer` gives.
    pub fn new(writer: &WriterId) -> Temporaries {
        let open = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let writer = format!("{}-{}-{}-{open}", writer.host, writer.pid, writer.start);
        Temporaries { writer, next: AtomicU64::new(0) }
    }

    /// The open backend that gives these names.
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// A new file name.
    pub fn name(&self) -> String {
        self.numbered(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The path of a new file for an object, relative to the directory.
    pub fn path(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{TMP}/{:x}/{}", number % TMP_PARTS, self.numbered(number))
    }

    fn numbered(&self, number: u64) -> String {
        format!("{TEMPORARY}{}.{number}", self.writer)
    }
}

/// The writer of a temporary file, if `name` is that of one. `None` inside: the name has no writer.
pub fn parse_temporary(name: &str) -> Option<Option<WriterId>> {
    name.strip_prefix(TEMPORARY).map(parse_writer)
}

/// The writer that a name gives.
pub fn parse_writer(name: &str) -> Option<WriterId> {
    let mut parts = name.split('-');
    let host = parts.next()?.to_owned();
    Some(WriterId { host, pid: parts.next()?.parse().ok()?, start: parts.next()?.parse().ok()? })
}

/// The object that a file in quarantine was.
pub fn parse_quarantined(name: &str) -> Option<ObjectKey> {
    let (space, object) = name.split_once('-')?;
    let space = parse_space(space)?;
    parse_object(space, object.get(..2)?, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey { space: SpaceTag([0xab; 16]), key: Key { hash: [0x1f; 32], rank: 3, group: 11 } }
    }

    #[test]
    fn the_path_of_an_object_reads_back() {
        let path = object(&key());
        let parts: Vec<&str> = path.split('/').collect();
        assert_eq!(format!("{}/{}", parts[0], parts[1]), shard(&key()));
        assert!(is_shard(parts[1]));
        assert_eq!(parse_object(parse_space(parts[0]).unwrap(), parts[1], parts[2]), Some(key()));
        assert_eq!(parse_quarantined(quarantined(&key()).strip_prefix("quarantine/").unwrap()), Some(key()));
    }

    #[test]
    fn names_that_we_do_not_give_are_foreign() {
        let hash = hex(&[0x1f; 32]);
        let space = key().space;
        assert!(parse_object(space, "1f", &format!("{hash}-03-11")).is_none());
        assert!(parse_object(space, "2f", &format!("{hash}-3-11")).is_none());
        assert!(parse_object(space, "1f", &format!("{hash}-3-11-1")).is_none());
        assert!(parse_object(space, "1f", &format!("{}-3-11", hash.to_uppercase())).is_none());
        assert!(!is_shard("1F") && !is_shard("1") && parse_space("quarantine").is_none());
    }

    #[test]
    fn a_temporary_name_says_whose_it_is() {
        let this = WriterId::this();
        let names = Temporaries::new(&this);
        let (one, two) = (names.name(), names.name());
        assert_ne!(one, two);
        let parts: std::collections::BTreeSet<_> =
            (0..TMP_PARTS).map(|_| names.path().split('/').nth(1).unwrap_or_default().to_owned()).collect();
        let made: Vec<_> = tmp_parts(Path::new("")).collect();
        assert_eq!(parts.iter().map(|part| Path::new(TMP).join(part)).collect::<Vec<_>>(), made);
        assert_eq!(parse_temporary(&one), Some(Some(this.clone())));
        assert_eq!(this.knows_alive(&this), Some(true));
        let earlier = WriterId { start: this.start - 1, ..this.clone() };
        assert_eq!(this.knows_alive(&earlier), Some(false));
        let elsewhere = WriterId { host: "00".to_owned(), ..this.clone() };
        assert_eq!(this.knows_alive(&elsewhere), None);
        assert_eq!(parse_temporary(".tmp-x"), Some(None));
        assert_eq!(parse_temporary("x"), None);
    }
}
