//! Layouts as machines and containers have them, each as a tree of files.

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
        ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\ngarbled\n - \n1 2 3 - cgroup\n"),
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
