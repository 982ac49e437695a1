//! Who may do what: read-only mappings, users, tenants, and the bounds of one client.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use kvkeep::abi::{JobResult, KeyState, SessionState, SpaceUsage, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{PrefetchRequest, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{Error, KVKEEP_ERR_LIMIT, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT, Status};
use kvkeep::misses::miss_report::MissReport;
use serde::{Deserialize, Serialize};

use super::{Part, daemon};
use crate::support::process::*;
use crate::support::skip::skipped;

const NOBODY: u32 = 65_534;
const SOMEBODY: u32 = 65_533;
const ONLY_ROOT: &str = "only root can be several users";

fn is<T>(result: Result<T, Error>, status: Status, why: &str) {
    let error = result.err().unwrap_or_else(|| panic!("allowed, though {why}"));
    assert!(error.status == status && error.message.contains(why), "{:?} {error}, not {why:?}", error.status);
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Becomes another user, who may look at its own descriptors like any process.
fn become_user(uid: u32) {
    // SAFETY: plain calls.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(uid, uid, uid), 0);
        assert_eq!(libc::setresuid(uid, uid, uid), 0);
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1), 0);
    }
}

/// The descriptors of L1 that this process has.
fn arenas() -> Vec<PathBuf> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    fds.filter(|fd| std::fs::read_link(fd).is_ok_and(|to| to.to_string_lossy().contains("kvkeep-l1"))).collect()
}

/// Tries all it can to write what it may only read.
#[derive(Serialize, Deserialize)]
pub struct Reader {
    daemon: DaemonPart,
    uid: Option<u32>,
}

impl Reader {
    pub fn play(&self) {
        self.uid.into_iter().for_each(become_user);
        // A user whom the daemon lets only read need not say so.
        let client = Client::open(ClientConfig { read_only: self.uid.is_none(), ..self.daemon.config() }).unwrap();
        let space = open_space(&client);
        let session = client.begin_session(space, "reader", None).unwrap();
        let (some, new) = (keys(0..5), keys(100..101));
        let mut job = 0;
        client.submit_prefetch(session, &some, PrefetchRequest::default(), &mut job).unwrap();
        client.wait(job, WATCHDOG_MS).unwrap();
        look(&client, session, &some);
        let reader = |result| is(result, KVKEEP_ERR_PERMISSION, "reader");
        reader(client.reserve_write(session, &new, &[4096], false, &mut views(1)));
        reader(client.finish_write(session, &new, None));
        reader(client.abort_write(session, &new, None));
        reader(client.finish_write_and_reserve_read(session, &new, 0, &mut views(1)));
        reader(client.set_quota(space, 1).map(|()| true));
        client.open_space(SpaceSpec { quota_bytes: 1, ..spec("m", "") }).unwrap();
        let mut usage = SpaceUsage::default();
        client.query_space(space, &mut usage).unwrap();
        assert_eq!(usage.quota_bytes, 0);
        reader(client.evict(space, &some, None));
        reader(client.delete(space, &some, None));
        reader(client.retain(space, &some, 100, 1000, None));
        reader(client.clear(space, true).map(|_| true));
        let mut held = views(some.len());
        client.get_views(session, &some, &mut held).unwrap();
        assert!(client.copy_in(&held[0], &[1; 8]).is_err());
        self.attack(&held[0]);
        look(&client, session, &some);
        client.close();
        say("could not write");
    }

    fn attack(&self, view: &View) {
        let page = (view.data as usize & !4095) as *mut libc::c_void;
        // SAFETY: it is refused, or else this process ends.
        assert_ne!(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE) }, 0);
        let arenas = arenas();
        assert_eq!(arenas.len(), 1);
        let fd: i32 = arenas[0].file_name().unwrap().to_str().unwrap().parse().unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, which it refuses.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_SHARED, fd, 0) };
        assert_eq!(mapped, libc::MAP_FAILED);
        if self.uid.is_some() {
            // The daemon's own user could open it anew, and could do anything else to the daemon.
            assert!(std::fs::OpenOptions::new().write(true).open(&arenas[0]).is_err());
            assert!(std::fs::File::open(&arenas[0]).is_err());
        }
    }
}

#[test]
fn who_may_only_read_cannot_write_by_any_way() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let part = DaemonPart { mode: 0o666, read_only_uids: vec![NOBODY], ..DaemonPart::new(dir.path(), 0) };
    let _daemon = daemon(&part);
    let client = part.client();
    store(&client, open_space(&client), &keys(0..5));
    if !root() {
        skipped("who_may_only_read_cannot_write_by_any_way, as another user", ONLY_ROOT);
    }
    for uid in [None, Some(NOBODY)].into_iter().take(1 + usize::from(root())) {
        let mut reader = Process::start(&Part::Reader(Reader { daemon: part.clone(), uid }));
        reader.expect("could not write");
        reader.wait();
    }
    client.close();
}

/// Tries to be let in, and into the spaces of a tenant.
#[derive(Serialize, Deserialize)]
pub struct Stranger {
    daemon: DaemonPart,
    uid: u32,
}

impl Stranger {
    pub fn play(&self) {
        become_user(self.uid);
        let client = match Client::open(self.daemon.config()) {
            Ok(client) => client,
            Err(error) => return say(&format!("refused {:?} {error}", error.status)),
        };
        say("connected");
        let numbers: Vec<u64> = hear().split(' ').map(|number| number.parse().unwrap()).collect();
        let [space, session, job] = numbers[..] else { panic!("{numbers:?}") };
        let own = client.begin_session(open_space(&client), "own", None).unwrap();
        write(&client, own, &[key(u64::from(self.uid), 0)]);
        is(client.add_backend("memory:"), KVKEEP_ERR_PERMISSION, "the daemon's user");
        is(client.clear(0, true), KVKEEP_ERR_PERMISSION, "the daemon's user");
        is(client.explain_session(0), KVKEEP_ERR_PERMISSION, "the daemon's user");
        is(client.explain_holders(20), KVKEEP_ERR_PERMISSION, "the daemon's user");
        is(client.list_spaces(), KVKEEP_ERR_PERMISSION, "the daemon's user");
        let known = client.open_space(spec("m", "acme"));
        if self.uid == SOMEBODY {
            assert_eq!(known.unwrap(), space);
            look(&client, session, &keys(0..5));
            client.close();
            return say("let in");
        }
        let (some, one) = (keys(0..5), key(0, 0));
        let kept_out = |result| is(result, KVKEEP_ERR_PERMISSION, "tenant");
        kept_out(known);
        kept_out(client.begin_session(space, "guessed", None));
        kept_out(client.touch(space, &some, None).map(u64::from));
        kept_out(client.query_keys(space, &some, &mut [KeyState::default(); 5]).map(|()| 0));
        kept_out(client.query_space(space, &mut SpaceUsage::default()).map(|()| 0));
        kept_out(client.query_misses(space, &mut MissReport::default()).map(|()| 0));
        let reasons = client.explain_misses().unwrap();
        assert!(reasons.contains("\"all\"") && !reasons.contains("acme"), "{reasons}");
        kept_out(client.set_quota(space, 1).map(|()| 0));
        kept_out(client.evict(space, &some, None).map(u64::from));
        kept_out(client.delete(space, &some, None).map(u64::from));
        kept_out(client.clear(space, true).map(|_| 0));
        kept_out(client.explain_key(space, &one).map(|_| 0));
        kept_out(client.get_views(session, &some, &mut views(5)).map(u64::from));
        kept_out(client.reserve_read(session, &some, 0, &mut views(5)).map(u64::from));
        kept_out(client.finish_read(session, &some, 0, None).map(u64::from));
        kept_out(client.renew_session(session).map(|()| 0));
        kept_out(client.end_session(session).map(|()| 0));
        kept_out(client.abort_session(session).map(|()| 0));
        kept_out(client.query_session(session, &mut SessionState::default()).map(|()| 0));
        kept_out(client.explain_session(session).map(|_| 0));
        kept_out(client.submit_prefetch(session, &some, PrefetchRequest::default(), &mut 0).map(|()| 0));
        kept_out(client.cancel(job).map(|()| 0));
        kept_out(client.release_job(job).map(|()| 0));
        kept_out(client.query_bitmap(job, &mut [0]).map(|_| 0));
        kept_out(client.query_job(job, &mut JobResult::default()).map(|_| 0));
        kept_out(client.wait(job, 0).map(|()| 0));
        client.close();
        say("kept out");
    }
}

#[test]
fn users_and_tenants_are_kept_apart() {
    if !root() {
        return skipped("users_and_tenants_are_kept_apart", ONLY_ROOT);
    }
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let part = DaemonPart {
        mode: 0o666,
        uids: vec![NOBODY, SOMEBODY],
        tenants: vec![("acme".to_owned(), vec![SOMEBODY])],
        ..DaemonPart::new(dir.path(), 0)
    };
    let server = daemon(&part);
    let client = part.client();
    let space = client.open_space(spec("m", "acme")).unwrap();
    let session = client.begin_session(space, "acme's", None).unwrap();
    write(&client, session, &keys(0..5));
    let mut job = 0;
    client.submit_prefetch(session, &keys(0..5), PrefetchRequest::default(), &mut job).unwrap();
    let expires_in_ms = || {
        let mut state = SessionState::default();
        client.query_session(session, &mut state).unwrap();
        state.expires_in_ms
    };
    let begun = expires_in_ms();
    until("time passes, so that a renewal would show", || expires_in_ms() + 300 <= begun);
    for (uid, word) in [(NOBODY, "kept out"), (SOMEBODY, "let in")] {
        let before = expires_in_ms();
        let mut stranger = Process::start(&Part::Stranger(Stranger { daemon: part.clone(), uid }));
        stranger.expect("connected");
        stranger.say(&format!("{space} {session} {job}"));
        stranger.expect(word);
        stranger.wait();
        // Calls that are refused renew no deadline.
        assert!(uid == SOMEBODY || expires_in_ms() <= before);
    }
    look(&client, session, &keys(0..5));
    client.close();
    drop(server);

    // The mode of the socket keeps them out, and so does the daemon.
    for (mode, why) in [(0o600, "may not be opened by this user"), (0o666, "user 65534 (group 65534)")] {
        let part = DaemonPart { mode, uids: Vec::new(), ..part.clone() };
        let _server = daemon(&part);
        let mut stranger = Process::start(&Part::Stranger(Stranger { daemon: part.clone(), uid: NOBODY }));
        let said = stranger.expect("refused KVKEEP_ERR_PERMISSION");
        assert!(said.contains(why), "{said}");
        stranger.wait();
    }
}

#[test]
fn every_bound_of_a_client_says_what_it_is() {
    let _watch = watch();
    let dir = tempfile::tempdir().unwrap();
    let part = DaemonPart {
        clients_max: 2,
        connections_max: 1,
        sessions_max: 3,
        jobs_max: 2,
        staged_bytes_max: 64 * KIB,
        message_bytes_max: 16 * KIB as u32,
        ..DaemonPart::with_l2(dir.path(), &format!("fault:fs://{}/l2?fault.store_hang=1", dir.path().display()))
    };
    let _daemon = daemon(&part);
    let (client, other) = (part.client(), part.client());
    let limit = |result, why| is(result, KVKEEP_ERR_LIMIT, why);
    limit(Client::open(part.config()).map(|_| 0), "clients_max");
    other.close();
    until("a client may come when another went", || {
        Client::open(part.config()).is_ok_and(|client| {
            client.close();
            true
        })
    });

    let space = open_space(&client);
    let begin = || client.begin_session(space, "bounded", None);
    let sessions: Vec<u64> = (0..3).map(|_| begin().unwrap()).collect();
    limit(begin(), "sessions");
    client.end_session(sessions[2]).unwrap();
    let again = begin().unwrap();
    client.end_session(again).unwrap();

    let session = sessions[0];
    let submit = || {
        let mut job = 0;
        client.submit_prefetch(session, &keys(0..2), PrefetchRequest::default(), &mut job).map(|()| job)
    };
    let job = submit().unwrap();
    submit().unwrap();
    limit(submit(), "jobs");
    client.release_job(job).unwrap();
    submit().unwrap();

    let stage = |number, size| client.reserve_write(session, &[key(number, 0)], &[size], false, &mut views(1));
    assert!(stage(10, 48 * KIB).unwrap());
    limit(stage(11, 32 * KIB).map(u64::from), "bytes staged");
    assert!(client.abort_write(session, &keys(10..11), None).unwrap());
    assert!(stage(11, 32 * KIB).unwrap());
    assert!(client.finish_write(session, &keys(11..12), None).unwrap());
    assert!(stage(12, 64 * KIB).unwrap());
    limit(stage(13, u64::MAX).map(u64::from), "bytes staged");

    // A message that is too long is refused, and nothing else is lost by it.
    limit(client.reserve_read(session, &keys(0..1000), 0, &mut views(1000)).map(u64::from), "split the batch");
    assert!(!client.reserve_read(session, &keys(0..100), 0, &mut views(100)).unwrap());

    // Calls wait for the one connection: the writes never end, and each asks for them a while, or does not come to it in its time.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let error = client.flush(200).unwrap_err();
                assert_eq!(error.status, KVKEEP_ERR_TIMEOUT, "{error}");
                let asked = error.message.contains("writes are left");
                assert!(asked || error.message.contains("raise connections_per_client_max"), "{error}");
            });
        }
        assert_eq!(stats(&client).sessions, 2);
    });
    client.close();
}
