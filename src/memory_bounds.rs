//! The memory that this process may use: the machine's, or less where a control group bounds it (cgroup v1 and v2).

use std::collections::HashSet;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use crate::error::{Error, KVKEEP_ERR_NO_MEMORY, Result};

/// A bound and the file that it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bound {
    /// The bound in bytes.
    pub bytes: u64,
    /// The file with the bound.
    pub file: PathBuf,
}

/// The bounds on one kind of memory; a bound that is not set, or that cannot be read, is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryBounds {
    /// The memory of the machine.
    pub machine: Option<u64>,
    /// The smallest limit of the process's control group and of those above it.
    pub limit: Option<Bound>,
    /// The smallest `memory.high` of them: above it the kernel slows the process down and reclaims.
    pub high: Option<Bound>,
}

/// Memory that the kernel counts apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MemoryKind {
    /// Pages of the ordinary size.
    Pages,
    /// Reserved huge pages of 2 MiB.
    HugePages,
}

/// Where one kind of memory is bounded.
struct Files {
    /// The controller of cgroup v1.
    controller: &'static str,
    /// The limit in cgroup v1.
    v1: &'static str,
    /// The limit in cgroup v2.
    v2: &'static str,
    /// The soft limit in cgroup v2.
    v2_high: Option<&'static str>,
    /// In cgroup v1, the line of `memory.stat` with the least limit up to the hierarchy's root, which a container may not see.
    v1_total: Option<&'static str>,
}

impl MemoryKind {
    fn files(self) -> Files {
        match self {
            MemoryKind::Pages => Files {
                controller: "memory",
                v1: "memory.limit_in_bytes",
                v2: "memory.max",
                v2_high: Some("memory.high"),
                v1_total: Some("hierarchical_memory_limit"),
            },
            MemoryKind::HugePages => Files {
                controller: "hugetlb",
                v1: "hugetlb.2MB.limit_in_bytes",
                v2: "hugetlb.2MB.max",
                v2_high: None,
                v1_total: None,
            },
        }
    }
}

/// A hierarchy of control groups as `/proc/self/mountinfo` has it mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    /// The group at the mount point.
    root: String,
    point: PathBuf,
    /// The controllers of a v1 hierarchy; `None` for v2.
    controllers: Option<Vec<String>>,
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = behind.get(..3).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        (rest, _) = match code.filter(|_| *first == b'\\') {
            Some(byte) => (&behind[3..], bytes.push(byte)),
            None => (behind, bytes.push(*first)),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mounts of control groups in the text of `/proc/self/mountinfo`.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(3);
        let (root, point) = (unescaped(first.next()?), unescaped(first.next()?));
        let mut second = second.split(' ');
        let (kind, options) = (second.next()?, second.nth(1)?);
        let controllers = match kind {
            "cgroup" => Some(options.split(',').map(str::to_owned).collect()),
            "cgroup2" => None,
            _ => return None,
        };
        Some(Mount { root, point: PathBuf::from(point), controllers })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The process's group in the text of `/proc/self/cgroup`: in the v1 hierarchy of a controller, or in that of v2 for `None`.
fn group<'a>(cgroup: &'a str, controller: Option<&str>) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match controller {
            Some(controller) => controllers.split(',').any(|known| known == controller),
            None => number == "0" && controllers.is_empty(),
        };
        found.then_some(path)
    })
}

/// The directories of a group and of those above it, as far as the mount shows them; the group's own first. Where the mount does
/// not show the group by its name, as when it was made outside of the process's cgroup namespace, only the mount point.
fn directories(mount: &Mount, group: &str) -> Vec<PathBuf> {
    let below = match Path::new(group).strip_prefix(&mount.root) {
        Ok(below) if !group.contains("..") => below,
        _ => Path::new(""),
    };
    below.ancestors().map(|ancestor| mount.point.join(ancestor)).collect()
}

/// The number in a limit's file. A text that is no number bounds nothing, nor do "max" and the numbers that v1 has for it.
fn parsed(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < 1 << 62)
}

/// A path that is absolute on the machine whose files lie below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn least(bounds: impl Iterator<Item = Bound>) -> Option<Bound> {
    bounds.min_by_key(|bound| bound.bytes)
}

impl MemoryBounds {
    /// Those of this process, for L1 with or without reserved huge pages.
    pub fn of_process(huge_pages: bool) -> MemoryBounds {
        MemoryBounds::read_below(Path::new("/"), if huge_pages { MemoryKind::HugePages } else { MemoryKind::Pages })
    }

    /// Those of the process and the machine whose files lie below `root`.
    fn read_below(root: &Path, kind: MemoryKind) -> MemoryBounds {
        let text = |path: &Path| read_to_string(below(root, path)).ok();
        let proc = |name: &str| text(&Path::new("/proc").join(name)).unwrap_or_default();
        let (cgroup, mountinfo, files) = (proc("self/cgroup"), proc("self/mountinfo"), kind.files());
        let (mut limits, mut highs, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let bound = |file: PathBuf| text(&file).and_then(|text| parsed(&text)).map(|bytes| Bound { bytes, file });
        for mount in mounts(&mountinfo) {
            let v1 = match &mount.controllers {
                Some(controllers) if !controllers.iter().any(|known| known == files.controller) => continue,
                controllers => controllers.is_some(),
            };
            let Some(group) = group(&cgroup, v1.then_some(files.controller)) else { continue };
            let directories = directories(&mount, group);
            if v1 && let (Some(name), Some(own)) = (files.v1_total, directories.first()) {
                let file = own.join("memory.stat");
                let stat = text(&file).unwrap_or_default();
                let total = stat.lines().find_map(|line| parsed(line.strip_prefix(name)?));
                limits.extend(total.map(|bytes| Bound { bytes, file }));
            }
            for directory in directories.into_iter().filter(|directory| seen.insert(directory.clone())) {
                limits.extend(bound(directory.join(if v1 { files.v1 } else { files.v2 })));
                highs.extend(files.v2_high.filter(|_| !v1).and_then(|name| bound(directory.join(name))));
            }
        }
        // Of equal bounds the first is named, which is a group's own.
        limits.sort_by_key(|bound| bound.file.ends_with("memory.stat"));
        let meminfo = proc("meminfo");
        let total = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        MemoryBounds {
            machine: total.map(|kib| kib * 1024),
            limit: least(limits.into_iter()),
            high: least(highs.into_iter()),
        }
    }

    /// The smaller of the machine's memory and the limit.
    pub fn bytes(&self) -> Option<u64> {
        self.machine.into_iter().chain(self.limit.as_ref().map(|limit| limit.bytes)).min()
    }

    /// So many percent of it.
    pub fn percent(&self, percent: u32) -> Result<u64> {
        if !(1..=100).contains(&percent) {
            return Err(Error::invalid(format!("L1 is {percent}% of the memory, it must be 1% to 100%")));
        }
        let bytes = self.bytes().ok_or_else(|| {
            Error::invalid(format!(
                "L1 is {percent}% of the memory, but how much there is cannot be read from /proc/meminfo: give bytes"
            ))
        })?;
        Ok((u128::from(bytes) * u128::from(percent) / 100) as u64)
    }

    /// Refuses `bytes` of `what`, which the caller set as `name`, if they do not fit.
    pub fn check(&self, name: &str, what: &str, bytes: u64) -> Result<()> {
        let refused = |bound: String, remedy: &str| {
            let message = format!("{name} is {bytes}, but {bound}: make {what} smaller{remedy}");
            Err(Error::new(KVKEEP_ERR_NO_MEMORY, message))
        };
        match (&self.limit, self.machine) {
            (Some(limit), machine) if bytes > limit.bytes && machine.is_none_or(|machine| limit.bytes < machine) => {
                refused(
                    format!(
                        "the memory limit of the control group is {} bytes ({})",
                        limit.bytes,
                        limit.file.display()
                    ),
                    ", or raise the limit",
                )
            }
            (_, Some(machine)) if bytes > machine => refused(format!("the machine has {machine} bytes of memory"), ""),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for MemoryBounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.machine {
            Some(machine) => write!(f, "the machine has {machine} bytes of memory")?,
            None => write!(f, "the machine's memory is unknown")?,
        }
        match &self.limit {
            Some(limit) => write!(f, ", the control group's limit is {} ({})", limit.bytes, limit.file.display())?,
            None => write!(f, ", no control group limits it")?,
        }
        match &self.high {
            Some(high) => write!(f, ", it is throttled above {} ({})", high.bytes, high.file.display()),
            None => Ok(()),
        }
    }
}

/// Refuses a need of so many bytes for `what`, in many pieces, if the system would not give them in one. Small needs are not
/// tried.
pub fn ask_for(bytes: usize, what: &str) -> Result<()> {
    const SMALL: usize = 1 << 20;
    if bytes > SMALL && Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
        return Err(Error::no_memory(bytes, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::KVKEEP_ERR_INVALID;

    const GIB: u64 = 1 << 30;
    /// What cgroup v1 says where there is no limit.
    const V1_NONE: &str = "9223372036854771712\n";

    /// Writes files below a fresh directory.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal:       67108864 kB\nMemFree:        1 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn read(files: &[(&str, &str)]) -> MemoryBounds {
        MemoryBounds::read_below(tree(files).path(), MemoryKind::Pages)
    }

    fn at(bytes: u64, file: &str) -> Option<Bound> {
        Some(Bound { bytes, file: PathBuf::from(file) })
    }

    const V2_MOUNT: &str = "24 1 0:22 / /proc rw - proc proc rw\n\
         31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

    #[test]
    fn v2_the_least_of_a_service_and_the_slices_above_it() {
        let mut files = vec![
            ("proc/self/cgroup", "0::/system.slice/cache.slice/kvkeep.service\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/system.slice/cache.slice/kvkeep.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/cache.slice/kvkeep.service/memory.high", "max\n"),
        ];
        let bounds = read(&files);
        assert_eq!(bounds, MemoryBounds { machine: Some(64 * GIB), limit: None, high: None });
        assert_eq!(bounds.bytes(), Some(64 * GIB));
        files.push(("sys/fs/cgroup/system.slice/cache.slice/memory.max", "8589934592\n"));
        files.push(("sys/fs/cgroup/system.slice/cache.slice/memory.high", "6442450944\n"));
        files.push(("sys/fs/cgroup/system.slice/memory.max", "17179869184\n"));
        let bounds = read(&files);
        assert_eq!(bounds.limit, at(8 * GIB, "/sys/fs/cgroup/system.slice/cache.slice/memory.max"));
        assert_eq!(bounds.high, at(6 * GIB, "/sys/fs/cgroup/system.slice/cache.slice/memory.high"));
        assert_eq!(bounds.bytes(), Some(8 * GIB));
    }

    #[test]
    fn v2_a_container_in_a_cgroup_namespace_sees_its_group_as_the_root() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/memory.max", "4294967296\n"),
        ];
        assert_eq!(read(&files).limit, at(4 * GIB, "/sys/fs/cgroup/memory.max"));
    }

    #[test]
    fn v1_a_container_sees_the_limits_above_it_in_the_total_of_its_group() {
        let mountinfo = "1101 1099 0:36 /docker/0a1b /sys/fs/cgroup/memory ro,nosuid master:19 - cgroup cgroup rw,memory\n\
             1102 1099 0:37 /docker/0a1b /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n";
        let mut files = vec![
            ("proc/self/cgroup", "9:name=systemd:/docker/0a1b\n4:cpu,cpuacct:/docker/0a1b\n3:memory:/docker/0a1b\n"),
            ("proc/self/mountinfo", mountinfo),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3221225472\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "cache 0\nhierarchical_memory_limit 3221225472\nhierarchical_memsw_limit 9\n",
            ),
        ];
        assert_eq!(read(&files).limit, at(3 * GIB, "/sys/fs/cgroup/memory/memory.limit_in_bytes"));
        files[2].1 = V1_NONE;
        assert_eq!(read(&files).limit, at(3 * GIB, "/sys/fs/cgroup/memory/memory.stat"));
        files[3].1 = "hierarchical_memory_limit 9223372036854771712\n";
        assert_eq!(read(&files).limit, None);
    }

    #[test]
    fn v1_beside_v2_both_bound_and_the_smaller_counts() {
        let mountinfo = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let mut files = vec![
            ("proc/self/cgroup", "8:pids:/\n4:memory:/jobs/one\n0::/unit\n"),
            ("proc/self/mountinfo", mountinfo),
            ("sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", V1_NONE),
            ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "2147483648\n"),
        ];
        assert_eq!(read(&files).limit, at(2 * GIB, "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes"));
        files.push(("sys/fs/cgroup/unified/unit/memory.max", "1073741824\n"));
        assert_eq!(read(&files).limit, at(GIB, "/sys/fs/cgroup/unified/unit/memory.max"));
    }

    #[test]
    fn a_mount_that_does_not_show_the_group_by_name_bounds_by_its_own_root() {
        // The host's hierarchy, bound into a container with a namespace of its own, and a group outside of that namespace.
        for (group, root) in [("/", "/.."), ("/../other", "/"), ("/a", "/b")] {
            let mountinfo = format!("31 23 0:28 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
            let cgroup = format!("0::{group}\n");
            let files = [
                ("proc/self/cgroup", cgroup.as_str()),
                ("proc/self/mountinfo", mountinfo.as_str()),
                ("sys/fs/cgroup/memory.max", "4294967296\n"),
                ("sys/fs/cgroup/a/memory.max", "1\n"),
            ];
            assert_eq!(read(&files).limit, at(4 * GIB, "/sys/fs/cgroup/memory.max"), "{group} {root}");
        }
    }

    #[test]
    fn names_with_spaces_are_found_and_files_that_are_missing_or_garbled_bound_nothing() {
        let files = [
            ("proc/self/cgroup", "0::/my group/x\n"),
            (
                "proc/self/mountinfo",
                "31 23 0:28 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\ngarbled\n - \n1 2 3 - cgroup\n",
            ),
            ("sys/fs/c g/my group/memory.max", "5368709120\n"),
            ("sys/fs/c g/my group/x/memory.max", "-7 pages\n"),
        ];
        assert_eq!(read(&files).limit, at(5 * GIB, "/sys/fs/c g/my group/memory.max"));
        assert_eq!(read(&[]), MemoryBounds { machine: Some(64 * GIB), limit: None, high: None });
        let dir = tempfile::tempdir().unwrap();
        let nothing = MemoryBounds::read_below(dir.path(), MemoryKind::Pages);
        assert_eq!(nothing, MemoryBounds::default());
        nothing.check("l1_bytes", "L1", u64::MAX).unwrap();
        assert!(nothing.percent(50).unwrap_err().message.contains("/proc/meminfo"));
    }

    #[test]
    fn reserved_huge_pages_are_bounded_by_their_own_controller() {
        let files = [
            ("proc/self/cgroup", "0::/box\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/box/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/box/hugetlb.2MB.max", "2147483648\n"),
        ];
        let bounds = MemoryBounds::read_below(tree(&files).path(), MemoryKind::HugePages);
        let limit = at(2 * GIB, "/sys/fs/cgroup/box/hugetlb.2MB.max");
        assert_eq!(bounds, MemoryBounds { machine: Some(64 * GIB), limit, high: None });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers_and_the_remedy() {
        let limit = at(GIB, "/sys/fs/cgroup/memory.max");
        let bounds = MemoryBounds { machine: Some(4 * GIB), limit, high: None };
        bounds.check("l1_bytes", "L1", GIB).unwrap();
        let error = bounds.check("l1_bytes", "L1", GIB + 1).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_NO_MEMORY);
        for part in ["1073741825", "1073741824", "/sys/fs/cgroup/memory.max", "make L1 smaller, or raise the limit"] {
            assert!(error.message.contains(part), "{error}");
        }
        let bounds = MemoryBounds { limit: at(9 * GIB, "/x"), ..bounds };
        bounds.check("l1_bytes", "L1", 4 * GIB).unwrap();
        let error = bounds.check("l1_bytes", "L1", 10 * GIB).unwrap_err();
        assert!(error.message.contains("10737418240") && error.message.contains("machine has 4294967296"), "{error}");
    }

    #[test]
    fn a_percentage_is_of_the_smaller_of_both() {
        let bounds = MemoryBounds { machine: Some(4000), limit: at(1000, "/x"), high: at(10, "/y") };
        assert_eq!((bounds.percent(70).unwrap(), bounds.percent(100).unwrap()), (700, 1000));
        assert_eq!(MemoryBounds { limit: at(8000, "/x"), ..bounds.clone() }.percent(1).unwrap(), 40);
        assert!([0, 101].iter().all(|&percent| bounds.percent(percent).unwrap_err().status == KVKEEP_ERR_INVALID));
        let text = bounds.to_string();
        assert!(["4000", "1000 (/x)", "10 (/y)"].iter().all(|part| text.contains(part)), "{text}");
    }
}
