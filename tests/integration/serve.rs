//! `kvkeep serve` as a process: what it says when it starts and stops, and how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::View;
use kvkeep::cache::Cache as _;
use kvkeep::config::{Mode, PrefetchRequest, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::KVKEEP_ERR_LIMIT;
use kvkeep::key::Key;
use rustix::process::{Pid, Signal, kill_process};

/// Only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvkeep"));
    command.arg("serve").env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A daemon that systemd, played by the test, started.
struct Daemon {
    child: Child,
    socket: PathBuf,
    notified: UnixDatagram,
    said: BufReader<ChildStderr>,
}

impl Daemon {
    fn start(dir: &Path, words: &str) -> Daemon {
        let (socket, notify) = (dir.join("kvkeep.sock"), dir.join("notify"));
        let _ = std::fs::remove_file(&notify);
        let notified = UnixDatagram::bind(&notify).unwrap();
        notified.set_read_timeout(Some(WATCHDOG)).unwrap();
        let mut child = command()
            .arg("--socket")
            .arg(&socket)
            .args(words.split_whitespace())
            .env("NOTIFY_SOCKET", &notify)
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, socket, notified, said }
    }

    /// What systemd is told next.
    fn told(&self) -> String {
        let mut text = [0; 1000];
        let length = self.notified.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    /// The next line of the log that has `words`.
    fn line(&mut self, words: &str) -> String {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "never said {words:?}");
        }
        line
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }

    fn client(&self) -> Arc<Client> {
        Client::open(ClientConfig::new(&format!("unix://{}", self.socket.display())).unwrap()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn store(client: &Client) -> (u64, u64, Key) {
    let (layout, tenant) = (String::new(), String::new());
    let spec = SpaceSpec { generation: 0, model: "m".to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
    let space = client.open_space(spec).unwrap();
    let session = client.begin_session(space, "who", None).unwrap();
    let key = [Key { hash: [1; 32], rank: 0, group: 0 }];
    let mut view = [View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }];
    assert!(client.reserve_write(session, &key, &[4096], false, &mut view).unwrap());
    client.copy_in(&view[0], &[7; 4096]).unwrap();
    assert!(client.finish_write(session, &key, None).unwrap());
    (space, session, key[0])
}

/// What another subcommand prints, and whether all was well.
fn ask(words: &str) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kvkeep")).args(words.split_whitespace()).output().unwrap();
    let text = if output.status.code() == Some(2) { output.stderr } else { output.stdout };
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn refusal(arguments: &[&str]) -> String {
    let output = command().args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_serves_until_told_to_end_and_writes_out_what_it_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let l2 = dir.path().join("l2");
    let words = format!("--l1 4MiB --http 127.0.0.1:0 --l2 fs://{}?capacity=1GiB", l2.display());
    let mut daemon = Daemon::start(dir.path(), &words);
    let ready = daemon.told();
    assert!(ready.starts_with("READY=1\n") && ready.contains("STATUS=serving "), "{ready}");
    let page = daemon.line("the page is at http://");
    assert!(page.contains(" UTC info "), "{page}");
    let address = page.split("http://").nth(1).unwrap().trim().trim_end_matches('/');
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let client = daemon.client();
    store(&client);
    daemon.signal(Signal::TERM);
    assert!(daemon.told().starts_with("STOPPING=1\n"));
    daemon.line("signal 15");
    daemon.line("closed");
    assert_eq!(daemon.end(), 0);
    assert!(!daemon.socket.exists());
    client.close();
    // The next one finds it.
    let mut daemon = Daemon::start(dir.path(), &words);
    daemon.told();
    let client = daemon.client();
    let mut stats = kvkeep::abi::Stats::default();
    client.stats(&mut stats).unwrap();
    assert_eq!(stats.l2_objects, 1);
    client.close();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.end(), 0);
}

#[test]
fn it_raises_its_soft_limit_on_open_files_to_the_hard_one_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let script = "ulimit -Sn 100; ulimit -Hn 300; exec \"$0\" serve --l1 4MiB --socket \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_kvkeep")])
        .arg(dir.path().join("kvkeep.sock"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut line = |words: &str| said.find(|line| line.contains(words)).unwrap();
    line("the limit on open files was raised from 100 to 300");
    let serving = line("serving ");
    assert!(serving.contains("of 300 descriptors, clients may have "), "{serving}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3).unwrap(), "300");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon =
        Daemon::start(dir.path(), "--l1 4MiB --l2 fault:memory:?fault.store_hang=1 --backend-timeout-ms 3600000");
    daemon.told();
    store(&daemon.client());
    daemon.signal(Signal::TERM);
    assert!(daemon.told().starts_with("STOPPING=1\n"));
    assert_eq!(daemon.child.try_wait().unwrap(), None);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), 128 + 15);
}

#[test]
fn a_second_daemon_on_the_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "--l1 4MiB");
    daemon.told();
    let said = refusal(&["--l1", "4MiB", "--socket", daemon.socket.to_str().unwrap()]);
    assert!(said.contains("another daemon") && said.contains("--socket"), "{said}");
    // The first one does not mind.
    store(&daemon.client());
}

#[test]
fn a_file_says_the_same_as_flags() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("kvkeep.toml");
    std::fs::write(&config, "l1 = \"1GiB\"\nlog = \"error\"\nsocket_mode = \"0660\"\nwatermark_high_percent = 100\n")
        .unwrap();
    let daemon = Daemon::start(dir.path(), &format!("--l1 4MiB --config {}", config.display()));
    daemon.told();
    let client = daemon.client();
    let mut stats = kvkeep::abi::Stats::default();
    client.stats(&mut stats).unwrap();
    assert_eq!(stats.l1_bytes, 4 << 20);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&daemon.socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    client.close();
}

#[test]
fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let socket = socket.to_str().unwrap();
    assert!(refusal(&["--l1", "4MiB"]).contains("--socket /run/kvkeep.sock"));
    assert!(refusal(&["--socket", socket]).contains("--l1 8GiB"));
    assert!(refusal(&["--socket", socket, "--l1", "much"]).contains("64MiB"));
    assert!(refusal(&["--socket", socket, "--l1", "4MiB", "--l2", "nfs:///x"]).contains("no backend has the scheme"));
    assert!(refusal(&["--socket", socket, "--l1", "4MiB", "--http", "192.0.2.1:1"]).contains("choose another --http"));
    assert!(refusal(&["--socket", "/nowhere/at/all", "--l1", "4MiB"]).contains("choose another --socket"));
    assert!(refusal(&["--config", "/nowhere.toml"]).contains("/nowhere.toml"));
    let config = dir.path().join("k.toml");
    std::fs::write(&config, "\n\nl1 = 3\n").unwrap();
    assert!(refusal(&["--config", config.to_str().unwrap()]).contains("k.toml, line 3: "));
}

#[test]
fn a_check_opens_nothing_and_leaves_the_daemon_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), "--l1 4MiB --l2 memory:");
    daemon.told();
    let config = dir.path().join("k.toml");
    let settings = format!(
        "socket = {:?}\nl1 = \"4MiB\"\nl2 = [\"fs://{}/objects?capacity=1GiB\"]\nallow_users = [\"root\"]\n",
        daemon.socket,
        dir.path().display()
    );
    std::fs::write(&config, &settings).unwrap();
    let check = |path: &std::path::Path| ask(&format!("serve --check --config {}", path.display()));
    let (code, said) = check(&config);
    assert!(code == 0 && said.contains("the settings are well\n"), "{said}");
    assert!(!dir.path().join("objects").exists());
    let client = daemon.client();
    store(&client);
    client.close();
    for (right, wrong, said) in [
        ("capacity=1GiB", "capacity=much", "much"),
        ("fs:///", "nfs:///", "no backend has the scheme"),
        ("\"4MiB\"", "\"1000TiB\"", "memory"),
        ("capacity=1GiB", "policy=fifo", "fifo"),
        ("capacity=1GiB", "key_file=/nowhere", "/nowhere"),
        ("fs://", "redis://:/", "redis"),
        ("socket", "policy = \"fifo\"\nsocket", "there is no eviction policy \"fifo\"; known are lru"),
        ("root", "no such user", "there is no user \"no such user\""),
    ] {
        std::fs::write(&config, settings.replace(right, wrong)).unwrap();
        let (code, text) = check(&config);
        assert!(code == 2 && text.contains(said), "{text}");
    }
    assert!(
        refusal(&["--check", "--socket", "/nowhere/at/all", "--l1", "4MiB"]).contains("/nowhere/at is no directory")
    );
    assert!(refusal(&["--check", "--print-config"]).contains("cannot be used with"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(), 0);
}

#[test]
fn who_only_looks_is_let_in_when_as_many_clients_as_may_be_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "--l1 4MiB --clients-max 1");
    daemon.told();
    let url = format!("unix://{}", daemon.socket.display());
    let client = daemon.client();
    let (space, session, key) = store(&client);
    let refused = Client::open(ClientConfig::new(&url).unwrap()).err().unwrap();
    assert_eq!(refused.status, KVKEEP_ERR_LIMIT);
    assert!(refused.message.contains("raise clients_max"), "{refused}");
    // They are no clients, neither in what they see.
    let (code, stat) = ask(&format!("stat {url}"));
    assert_eq!(code, 0, "{stat}");
    assert!(stat.contains("1  clients "), "{stat}");
    let (code, top) = ask(&format!("top --count 2 --interval-ms 1 {url}"));
    assert_eq!((code, top.matches("1 clients, 1 sessions").count()), (0, 2), "{top}");
    let (code, said) = ask(&format!("explain {url} --space {space} {key}"));
    assert!(code == 0 && said.contains("ready, 4 KiB"), "{said}");
    // One that changes something is a client.
    let (code, said) = ask(&format!("clear {url}"));
    assert!(code == 2 && said.contains("raise clients_max"), "{said}");
    client.end_session(session).unwrap();
    client.close();
}

#[test]
fn why_answers_why_the_hit_rate_is_low() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "--l1 4MiB --l2 memory:");
    daemon.told();
    let url = format!("unix://{}", daemon.socket.display());
    let client = daemon.client();
    assert_eq!(ask(&format!("why {url}")), (0, "all spaces\n  no key was asked for\n".to_owned()));
    let (space, session, key) = store(&client);
    client.flush(60_000).unwrap();
    client.clear(0, true).unwrap();
    let keys = [key, Key { hash: [2; 32], ..key }, Key { hash: [3; 32], ..key }];
    let mut view = [View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }];
    client.reserve_read(session, &keys[1..2], 0, &mut view).unwrap();
    let request = PrefetchRequest { mode: Mode::Any, ..PrefetchRequest::default() };
    let mut job = 0;
    client.submit_prefetch(session, &keys, request, &mut job).unwrap();
    client.wait(job, 60_000).unwrap();
    let (code, said) = ask(&format!("why {url}"));
    let lines: Vec<&str> = said.lines().map(str::trim_start).collect();
    let its = [
        "1   25.0 %  hits, of 4 keys asked for",
        "2   50.0 %  hits of a cache without an end, as estimated",
        "1   25.0 %  hits in the backend at place 1",
        "2   50.0 %  missed: never stored or asked for since the cache was opened, or forgotten",
        "1   25.0 %  missed: asked for before and not stored since",
    ];
    assert_eq!((code, lines[0], &lines[1..6]), (0, "all spaces", &its[..]), "{said}");
    assert!(lines[7].starts_with(&format!("space {space} of model ")), "{said}");
    assert_eq!(lines[8..], its, "{said}");
    let (_, json) = ask(&format!("why --json {url}"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["spaces"][0]["lookups"], json["all"], "{json}");
    assert_eq!((&json["all"]["reasons"][0]["reason"], &json["all"]["misses"]), (&"never_seen".into(), &3.into()));
    client.end_session(session).unwrap();
    client.close();
}

#[test]
fn the_other_subcommands_look_at_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "--l1 4MiB --l2 memory:");
    daemon.told();
    let url = format!("unix://{}", daemon.socket.display());
    let client = daemon.client();
    let (space, session, key) = store(&client);
    client.flush(60_000).unwrap();
    let mut view = [View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }];
    client.reserve_read(session, &[key], 6, &mut view).unwrap();

    let (code, stat) = ask(&format!("stat {url}"));
    assert_eq!(code, 0);
    assert!(stat.contains("1  commits  ") && stat.contains("4 KiB  l1_used_bytes"), "{stat}");
    let (_, json) = ask(&format!("stat --json {url}"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["l1_shares"], &json["stores"]), (&7.into(), &1.into()));
    // Spaces by name.
    let named = &json["spaces"][0];
    assert_eq!((&named["model"], &named["chunk_tokens"]), (&"m".into(), &16.into()));
    assert_eq!((&named["objects"], &named["used_bytes"]), (&1.into(), &4096.into()));
    assert!(
        stat.contains(&format!("             1         4 KiB  model \"m\", 16 tokens a chunk ({space})\n")),
        "{stat}"
    );

    let (code, top) = ask(&format!("top --count 2 --interval-ms 1 {url}"));
    assert_eq!((code, top.matches("live    ").count()), (0, 2));
    assert!(top.contains("1 sessions, 0 jobs, 7 shares") && !top.contains('\x1b'), "{top}");

    let (_, said) = ask(&format!("explain {url} --space {space} {key}"));
    assert!(said.contains("ready, 4 KiB") && said.contains(&format!("session {session} (\"who\", pid ")), "{said}");
    assert!(said.contains("7 shares, the first taken ") && said.contains("backend 1 (memory): present"), "{said}");
    let (_, said) = ask(&format!("explain {url}"));
    assert!(said.contains(&format!("session {session} \"who\" of process {}", std::process::id())), "{said}");
    assert!(
        said.contains(&format!("space {space} (model \"m\", 16 tokens a chunk): begun"))
            && said.starts_with("L1: 4 KiB of 4 MiB cannot be evicted"),
        "{said}"
    );
    // The largest holder first, in sums; keys on request.
    let larger = client.begin_session(space, "larger", None).unwrap();
    let staged = [2, 3].map(|first| Key { hash: [first; 32], rank: 0, group: 0 });
    let mut views = [view[0]; 2];
    assert!(client.reserve_write(larger, &staged, &[65536, 4096], false, &mut views).unwrap());
    let (_, said) = ask(&format!("explain {url}"));
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[1].starts_with(&format!("session {larger} \"larger\"")) && lines[1].contains("idle for "), "{said}");
    assert!(
        lines[2].starts_with("  68 KiB in 2 keys, 1.7 % of L1;") && lines[2].contains("2 staged, 0 jobs"),
        "{said}"
    );
    assert!(lines[4].starts_with("  4 KiB in 1 keys, 0.1 % of L1; the longest shared for "), "{said}");
    assert_eq!(lines.len(), 5, "{said}");
    assert!(ask(&format!("explain --all {url}")).1.contains(&format!("holds {key} × 7")));
    let (_, json) = ask(&format!("explain --json {url}"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["l1_locked_bytes"], &json["sessions"][0]["bytes"]), (&73728.into(), &69632.into()), "{json}");
    // A refusal names the largest holder.
    assert!(!ask(&format!("top --count 1 {url}")).1.contains("L1 refuses"));
    assert!(
        !client
            .reserve_write(
                larger,
                &[4, 5].map(|first| Key { hash: [first; 32], rank: 0, group: 0 }),
                &[3 << 20; 2],
                false,
                &mut views
            )
            .unwrap()
    );
    let (_, top) = ask(&format!("top --count 1 {url}"));
    let named = format!(
        "\nL1 refuses: 1 reservations in all. Most of it is held by\n  session {larger} \"larger\" of process {}\n  3.1 MiB in 3 keys, 76.7 \
         % of L1; the longest shared for 0 ms; 3 staged, 0 jobs running\n",
        std::process::id()
    );
    assert!(top.contains(&named), "{top}");
    client.end_session(larger).unwrap();
    let (_, said) = ask(&format!("explain {url} {session}"));
    assert!(said.lines().count() == 4 && said.contains(&format!("holds {key} × 7")), "{said}");

    let (code, said) = ask(&format!("clear {url}"));
    assert_eq!(code, 1);
    assert!(said.contains("0 objects went; others are in use"), "{said}");
    assert_eq!(ask(&format!("clear --force --space {space} {url}")), (0, "1 objects went\n".to_owned()));
    assert!(client.finish_read(session, &[key], 6, None).unwrap());
    client.end_session(session).unwrap();
    assert_eq!(ask(&format!("explain {url}")).1, "no session holds anything\n");
    let (_, said) = ask(&format!("explain {url} --space {space} {key}"));
    assert!(said.contains("backend 1 (memory): present"), "{said}");
    let (code, said) = ask(&format!("clear --all-tiers --space {space} {url}"));
    assert_eq!((code, &*said), (0, "0 objects went from L1; the backends delete theirs\n"));
    client.flush(60_000).unwrap();
    let (_, said) = ask(&format!("explain {url} --space {space} {key}"));
    assert!(said.contains("backend 1 (memory): absent"), "{said}");

    for (words, remedy) in [
        ("explain fs:///x 1", "unix:///"),
        (&*format!("explain {url} {session}"), "is not live"),
        (&*format!("explain {url} {key}"), "--space"),
        (&*format!("explain {url} what"), "64 hexadecimal digits"),
        (&*format!("stat {url}.no"), "kvkeep serve"),
    ] {
        let (code, said) = ask(words);
        assert_eq!(code, 2, "{words}");
        assert!(said.contains(remedy), "{words}: {said}");
    }
    client.close();
}
