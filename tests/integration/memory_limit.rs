//! The memory limit of a control group, as the kernel and a daemon within it see it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, PrefetchRequest, SpaceSpec};
use kvkeep::error::{KVKEEP_ERR_NO_MEMORY, Result};
use kvkeep::events::EMPTY;
use kvkeep::key::Key;
use kvkeep::memory_bounds::MemoryBounds;
use kvkeep::node::Node;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::support::skip::skipped;
use crate::support::test_name;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 512 * MIB;

/// A control group of ours, with a limit. Where none can be made, a file system that looks like one.
enum Group {
    Real(PathBuf),
    Played(PathBuf),
}

impl Group {
    /// Makes one below a directory that is a memory controller's.
    fn real(above: &Path, limit: &str) -> Option<Group> {
        let dir = above.join(format!("kvkeep-test-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let group = Group::Real(dir.clone());
        fs::write(dir.join(limit), LIMIT.to_string()).ok()?;
        Some(group)
    }

    fn new(dir: &Path) -> Group {
        let v1 = || Group::real(Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes");
        let v2 = || Group::real(Path::new("/sys/fs/cgroup"), "memory.max");
        v1().or_else(v2).unwrap_or_else(|| {
            fs::write(dir.join("memory.max"), LIMIT.to_string()).unwrap();
            fs::write(dir.join("cgroup"), "0::/\n").unwrap();
            fs::write(dir.join("mountinfo"), format!("31 23 0:28 / {} rw - cgroup2 cgroup2 rw\n", dir.display()))
                .unwrap();
            Group::Played(dir.to_owned())
        })
    }

    /// A program within the group.
    fn command(&self, program: &str) -> Command {
        match self {
            Group::Real(group) => {
                let (mut command, procs) = (Command::new("sh"), group.join("cgroup.procs"));
                command.args(["-c", "echo $$ > \"$0\" && exec \"$@\"", procs.to_str().unwrap(), program]);
                command
            }
            Group::Played(dir) => {
                let script = "mount --bind \"$0/cgroup\" /proc/$$/cgroup && mount --bind \"$0/mountinfo\" /proc/$$/mountinfo \
                              && exec \"$@\"";
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(dir).arg(program);
                command
            }
        }
    }

    /// `kvkeep serve` within the group.
    fn serve(&self, dir: &Path, l1: &str) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_kvkeep"));
        command.args(["serve", "--l1", l1, "--no-prefault=true", "--socket"]).arg(dir.join("socket"));
        command.stdin(Stdio::null()).stderr(Stdio::piped()).env_remove("JOURNAL_STREAM").process_group(0);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Group::Real(dir) = self {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// What a daemon says when it has opened.
fn opened(mut command: Command) -> String {
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("opened with") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended without a word");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    line
}

#[test]
fn an_l1_beyond_the_groups_limit_is_refused_and_a_share_is_of_that_limit() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::new(dir.path());
    if !group.command("true").status().is_ok_and(|status| status.success()) {
        let test = "an_l1_beyond_the_groups_limit_is_refused_and_a_share_is_of_that_limit";
        return skipped(test, "no control group can be made, and none played in a namespace");
    }
    let refused = group.serve(dir.path(), "513MiB").output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    for part in ["l1_bytes is 537919488", "control group is 536870912 bytes", "make L1 smaller, or raise the limit"] {
        assert!(said.contains(part), "{said}");
    }
    let said = opened(group.serve(dir.path(), "50%"));
    assert!(said.contains(&format!("an L1 of {} bytes", LIMIT / 2)), "{said}");
    assert!(said.contains("the machine has ") && said.contains("control group's limit is 536870912 ("), "{said}");
}

/// Run by the test below, in a process of its own.
#[test]
#[ignore = "it bounds the memory of its process"]
fn within_a_bound() {
    let node = Node::open(NodeConfig::new(MIB)).unwrap();
    let (model, layout, tenant) = ("m".to_owned(), String::new(), String::new());
    let spec = SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens: 1, quota_bytes: 0 };
    let space = node.open_space(spec).unwrap();
    let session = node.begin_session(space, "r", None).unwrap();
    let (tokens, mut some) = (vec![0; 1 << 20], [EMPTY; 1]);
    let keys: Vec<Key> = (0..1 << 18).map(|rank| Key { hash: [1; 32], rank, group: 0 }).collect();
    let calls: [(&str, &mut dyn FnMut() -> Result<()>); 3] = [
        ("events", &mut || node.read_events(&mut 0, &mut some).map(drop)),
        ("tokens", &mut || node.append_tokens(session, &tokens).map(drop)),
        ("keys of a job", &mut || node.submit_prefetch(session, &keys, PrefetchRequest::default(), &mut 0)),
    ];
    for (what, call) in calls {
        let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        let bound = |most| setrlimit(Resource::As, Rlimit { current: most, maximum: None }).unwrap();
        bound(Some(pages * 4096 + MIB));
        let refused = call();
        bound(None);
        let error = refused.unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_NO_MEMORY, "{error}");
        assert!(error.message.contains(what) && error.message.contains("give this process more"), "{error}");
        // Nothing was changed, and it can be had when there is memory.
        call().unwrap();
    }
    node.end_session(session).unwrap();
    node.close();
}

#[test]
fn memory_that_the_system_refuses_is_no_memory() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test_name(module_path!(), "within_a_bound"), "--ignored", "--nocapture"])
        // What is large is asked of the kernel, and not taken from what the C library has put by.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .env("MALLOC_ARENA_MAX", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_machine_has_memory() {
    let bounds = MemoryBounds::of_process(false);
    assert!(bounds.bytes().unwrap() <= bounds.machine.unwrap());
}
