//! Processes for the tests of the daemon: each is this test's own program, told by a variable what part it plays.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use kvkeep::abi::{Stats, View};
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::daemon::server::{Access, Limits, LockFile, Server};
use kvkeep::error::KVKEEP_OK;
use kvkeep::key::Key;
use kvkeep::node::Node;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::random::{mix, rounds};
use super::test_name;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
const PART: &str = "KVKEEP_PROCESS_PART";
/// Far beyond any pause of a loaded machine; only a hang meets it.
pub const WATCHDOG: Duration = Duration::from_secs(120);
pub const WATCHDOG_MS: u32 = 120_000;

/// What a process does that a test starts. The module that names the parts has a test `plays_its_part`, which is ignored unless a
/// process is started for it.
pub trait Part: Serialize + DeserializeOwned {
    /// The `module_path!()` of that test.
    const MODULE: &str;
}

/// The part that this process is to play.
pub fn part<P: Part>() -> P {
    let part = std::env::var(PART).expect("another test starts this one and says what to do");
    // Whatever becomes of the test, its processes end with it.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    serde_json::from_str(&part).unwrap()
}

/// Aborts the process unless it is dropped in time.
pub struct Watchdog(Sender<()>);

/// Ends the test if it hangs.
#[must_use]
pub fn watch() -> Watchdog {
    let rounds = rounds("KVKEEP_KILL_ROUNDS", 0) + rounds("KVKEEP_FUZZ_ROUNDS", 0) / 10;
    watch_for(5 * WATCHDOG + Duration::from_secs(rounds))
}

/// Ends the test if it lasts longer.
#[must_use]
pub fn watch_for(most: Duration) -> Watchdog {
    let (watchdog, dropped) = mpsc::channel();
    std::thread::spawn(move || {
        if dropped.recv_timeout(most) == Err(RecvTimeoutError::Timeout) {
            eprintln!("it hangs");
            std::process::abort();
        }
    });
    Watchdog(watchdog)
}

/// Says a line to the test that started this process.
pub fn say(line: &str) {
    // One write, at the beginning of a line: the test harness writes here too.
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The next line that the test says; the process ends with the test.
pub fn hear() -> String {
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
        std::process::exit(0);
    }
    line.trim_end().to_owned()
}

/// A process that plays a part.
pub struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    /// Starts one.
    pub fn start<P: Part>(part: &P) -> Process {
        Process::start_with(part, |_| {})
    }

    pub fn start_with<P: Part>(part: &P, prepare: impl FnOnce(&mut Command)) -> Process {
        Process::spawn(Command::new(std::env::current_exe().unwrap()), part, prepare)
    }

    /// Starts one by a command that executes the rest of its arguments; by itself, if there is none.
    pub fn start_under<P: Part>(wrapper: &[&str], part: &P) -> Process {
        let [name, arguments @ ..] = wrapper else { return Process::start(part) };
        let mut command = Command::new(name);
        command.args(arguments).arg(std::env::current_exe().unwrap());
        Process::spawn(command, part, |_| {})
    }

    fn spawn<P: Part>(mut command: Command, part: &P, prepare: impl FnOnce(&mut Command)) -> Process {
        command
            .args(["--exact", &test_name(P::MODULE, "plays_its_part"), "--ignored", "--nocapture"])
            .env(PART, serde_json::to_string(part).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Process { child, to, from }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) {
        self.to.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next line that it says, or None when it has ended.
    pub fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.from.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(said) = line.trim_end().strip_prefix('@') {
                return Some(said.to_owned());
            }
        }
    }

    /// What follows `word` in the next line.
    pub fn expect(&mut self, word: &str) -> String {
        let line = self.hear().unwrap_or_else(|| panic!("it ended instead of saying {word:?}"));
        let rest = line.strip_prefix(word).unwrap_or_else(|| panic!("it said {line:?}, not {word:?}"));
        rest.trim_start().to_owned()
    }

    /// Stops all of its threads. This has happened when it returns.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let status = waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED).unwrap();
        assert!(status.unwrap().1.stopped());
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// kill -9. What it said before can still be heard.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its orderly end.
    pub fn wait(mut self) {
        while self.hear().is_some() {}
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon as a process of its own.
#[derive(Clone, Serialize, Deserialize)]
pub struct DaemonPart {
    pub socket: String,
    pub l2: String,
    pub l1_bytes: u64,
    pub watermark_percent: u32,
    pub session_timeout_ms: u64,
    pub backend_timeout_ms: u64,
    pub mode: u32,
    pub uids: Vec<u32>,
    pub read_only_uids: Vec<u32>,
    pub tenants: Vec<(String, Vec<u32>)>,
    pub clients_max: usize,
    pub connections_max: usize,
    pub sessions_max: usize,
    pub jobs_max: usize,
    pub staged_bytes_max: u64,
    pub message_bytes_max: u32,
}

impl DaemonPart {
    /// Serves `dir`/kvkeep.sock, with its L2 in `dir`/l2 whose loads take so many milliseconds.
    pub fn new(dir: &Path, delay_ms: u32) -> DaemonPart {
        let fault = if delay_ms > 0 { format!("?fault.delay=1&fault.delay_ms={delay_ms}") } else { String::new() };
        DaemonPart::with_l2(
            dir,
            &format!("{}fs://{}/l2{fault}", if delay_ms > 0 { "fault:" } else { "" }, dir.display()),
        )
    }

    pub fn with_l2(dir: &Path, l2: &str) -> DaemonPart {
        let limits = Limits::default();
        DaemonPart {
            socket: format!("{}/kvkeep.sock", dir.display()),
            l2: l2.to_owned(),
            l1_bytes: 16 * MIB,
            watermark_percent: 80,
            session_timeout_ms: 300_000,
            backend_timeout_ms: 30_000,
            mode: 0o600,
            uids: Vec::new(),
            read_only_uids: Vec::new(),
            tenants: Vec::new(),
            clients_max: limits.clients_max,
            connections_max: limits.connections_per_client_max,
            sessions_max: limits.sessions_per_client_max,
            jobs_max: limits.jobs_per_client_max,
            staged_bytes_max: limits.staged_bytes_per_client_max,
            message_bytes_max: limits.message_bytes_max,
        }
    }

    /// Serves until its standard input ends or says so.
    pub fn play(&self) {
        let lock_file = match LockFile::take(Path::new(&self.socket)) {
            Ok(lock_file) => lock_file,
            Err(error) => return say(&format!("refused {:?} {error}", error.status)),
        };
        let node = Node::open(NodeConfig {
            boot: lock_file.boot,
            backend_urls: vec![self.l2.clone()],
            watermark_high_percent: self.watermark_percent,
            session_timeout: Duration::from_millis(self.session_timeout_ms),
            backend_timeout: Duration::from_millis(self.backend_timeout_ms),
            ..NodeConfig::new(self.l1_bytes)
        })
        .unwrap();
        let access = Access {
            mode: self.mode,
            uids: self.uids.clone(),
            read_only_uids: self.read_only_uids.clone(),
            tenants: self.tenants.clone(),
            ..Access::default()
        };
        let limits = Limits {
            clients_max: self.clients_max,
            connections_per_client_max: self.connections_max,
            sessions_per_client_max: self.sessions_max,
            jobs_per_client_max: self.jobs_max,
            staged_bytes_per_client_max: self.staged_bytes_max,
            message_bytes_max: self.message_bytes_max,
        };
        let server = Server::start(node.clone(), lock_file, access, limits).unwrap();
        say("serving");
        hear();
        server.stop();
        node.close();
        say("stopped");
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket)
    }

    /// A client of it.
    pub fn client(&self) -> Arc<Client> {
        Client::open(self.config()).unwrap()
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig { prefault: false, patience: WATCHDOG, ..ClientConfig::new(&self.url()).unwrap() }
    }

    /// A client of one that may be starting still, or again.
    pub fn patient_client(&self) -> Arc<Client> {
        Client::open(ClientConfig { wait: WATCHDOG, ..self.config() }).unwrap()
    }
}

pub fn key(number: u64, rank: u32) -> Key {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&mix(number).to_le_bytes());
    hash[8..16].copy_from_slice(&number.to_le_bytes());
    Key { hash, rank, group: 0 }
}

pub fn keys(numbers: std::ops::Range<u64>) -> Vec<Key> {
    numbers.map(|number| key(number, 0)).collect()
}

/// The size of a key's object: whole pages and others.
pub fn size(key: &Key) -> u64 {
    [4096, 1000, 8192, 512][usize::from(key.hash[0] % 4)]
}

/// The bytes of a key's object.
pub fn bytes(key: &Key) -> Vec<u8> {
    let seed = u64::from_le_bytes(key.hash[..8].try_into().unwrap()) ^ u64::from(key.rank) << 32;
    (0..size(key)).map(|i| (seed >> (i % 8 * 8)) as u8 ^ (i / 8) as u8).collect()
}

pub fn views(count: usize) -> Vec<View> {
    vec![View::none(KVKEEP_OK); count]
}

pub fn spec(model: &str, tenant: &str) -> SpaceSpec {
    let (model, tenant) = (model.to_owned(), tenant.to_owned());
    SpaceSpec { generation: 0, model, layout: String::new(), tenant, chunk_tokens: 16, quota_bytes: 0 }
}

pub fn open_space(client: &Client) -> u64 {
    client.open_space(spec("m", "")).unwrap()
}

/// Fills in what was staged; a view that is not OK is left.
pub fn fill(client: &Client, keys: &[Key], views: &[View]) {
    for (key, view) in keys.iter().zip(views).filter(|(_, view)| view.status == 0) {
        client.copy_in(view, &bytes(key)).unwrap();
    }
}

pub fn stage(client: &Client, session: u64, keys: &[Key]) -> Vec<View> {
    let mut out = views(keys.len());
    let sizes: Vec<u64> = keys.iter().map(size).collect();
    assert!(client.reserve_write(session, keys, &sizes, false, &mut out).unwrap());
    fill(client, keys, &out);
    out
}

pub fn write(client: &Client, session: u64, keys: &[Key]) {
    stage(client, session, keys);
    assert!(client.finish_write(session, keys, None).unwrap());
}

/// Writes keys and leaves them in L2 alone.
pub fn store(client: &Client, space: u64, keys: &[Key]) {
    let session = client.begin_session(space, "store", None).unwrap();
    write(client, session, keys);
    client.end_session(session).unwrap();
    client.flush(WATCHDOG_MS).unwrap();
    client.clear(space, false).unwrap();
}

/// Every byte is the key's.
pub fn check(client: &Client, keys: &[Key], views: &[View]) {
    for (key, view) in keys.iter().zip(views) {
        assert_eq!(view.status, 0, "{key}");
        let mut found = vec![0; size(key) as usize];
        client.copy_out(view, &mut found).unwrap();
        assert!(view.size == size(key) && found == bytes(key), "other bytes than were committed");
    }
}

/// Looks at held keys.
pub fn look(client: &Client, session: u64, keys: &[Key]) {
    let mut out = views(keys.len());
    assert!(client.get_views(session, keys, &mut out).unwrap());
    check(client, keys, &out);
}

/// Takes shares, looks, returns them.
pub fn read(client: &Client, session: u64, keys: &[Key]) {
    let mut out = views(keys.len());
    assert!(client.reserve_read(session, keys, 0, &mut out).unwrap());
    check(client, keys, &out);
    assert!(client.finish_read(session, keys, 0, None).unwrap());
}

pub fn stats(client: &Client) -> Stats {
    let mut stats = Stats::default();
    client.stats(&mut stats).unwrap();
    stats
}

/// Asks until it is so, and says how long that took.
pub fn until(what: &str, so: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < WATCHDOG, "it never came: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
    began.elapsed()
}
