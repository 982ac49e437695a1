//! The daemon's HTTP port over real connections: what each path says, what is refused, and that everything is bounded.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kvkeep::abi::View;
use kvkeep::cache::Cache as _;
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::daemon::http::{Http, HttpOptions};
use kvkeep::key::{Key, hex};
use kvkeep::log::Log;
use kvkeep::node::Node;
use serde_json::Value;

/// Only a hang meets it.
const WATCHDOG: Duration = Duration::from_secs(60);

fn options() -> HttpOptions {
    HttpOptions::new("127.0.0.1:0".parse().unwrap())
}

struct Port {
    node: Arc<Node>,
    http: Http,
}

impl Port {
    fn open_with(options: HttpOptions, url: Option<&str>) -> Port {
        let backend_urls = url.into_iter().map(str::to_owned).collect();
        let node = Node::open(NodeConfig { backend_urls, ..NodeConfig::new(4 << 20) }).unwrap();
        let http = Http::start(node.clone(), options, Log::none()).unwrap();
        Port { node, http }
    }

    fn open() -> Port {
        Port::open_with(options(), None)
    }

    fn ask(&self, method: &str, path: &str) -> Said {
        said(send(self.http.address(), &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")))
    }

    fn get(&self, path: &str) -> Said {
        self.ask("GET", path)
    }

    fn json(&self, path: &str) -> Value {
        let said = self.get(path);
        assert_eq!((said.status, said.header("content-type")), (200, "application/json"), "{}", said.body);
        serde_json::from_str(&said.body).unwrap()
    }

    fn space(&self) -> u64 {
        let (layout, tenant) = (String::new(), String::new());
        let spec = SpaceSpec { generation: 0, model: "m".to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes: 0 };
        self.node.open_space(spec).unwrap()
    }

    /// Stores objects, and leaves the session open.
    fn store(&self, numbers: std::ops::Range<u32>) -> u64 {
        let session = self.node.begin_session(self.space(), "who", None).unwrap();
        for number in numbers {
            let mut view = [View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }];
            assert!(self.node.reserve_write(session, &[key(number)], &[64], false, &mut view).unwrap());
            assert!(self.node.finish_write(session, &[key(number)], None).unwrap());
        }
        session
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.http.stop();
        self.node.close();
    }
}

fn key(number: u32) -> Key {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    Key { hash, rank: 3, group: 1 }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    stream
}

fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

struct Said {
    status: u16,
    head: Vec<(String, String)>,
    body: String,
}

impl Said {
    fn header(&self, name: &str) -> &str {
        self.head.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }
}

fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = reader.lines().map(Result::unwrap);
    let status = lines.next().unwrap();
    let head = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .collect();
    (status.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

fn said(stream: TcpStream) -> Said {
    let mut reader = BufReader::new(stream);
    let (status, head) = head(&mut reader);
    let mut body = String::new();
    reader.read_to_string(&mut body).unwrap();
    Said { status, head, body }
}

/// What comes before the port hangs up, which it must do: one that forgot the connection would be met by the watchdog.
fn until_hung_up(mut stream: impl Read) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    rest
}

/// A reader of the event stream.
struct Reader(BufReader<TcpStream>);

impl Reader {
    fn follow(port: &Port, from: u64) -> Reader {
        let request = format!("GET /events?from={from} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut reader = BufReader::new(send(port.http.address(), &request));
        let (status, head) = head(&mut reader);
        assert_eq!(status, 200);
        assert!(head.contains(&("transfer-encoding".to_owned(), "chunked".to_owned())));
        assert!(head.contains(&("content-type".to_owned(), "application/x-ndjson".to_owned())));
        Reader(reader)
    }

    /// The next line that is not the frame of a chunk; none at the end.
    fn line(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "cut off");
            match line.trim() {
                "0" => return None,
                json if json.starts_with('{') => return Some(serde_json::from_str(json).unwrap()),
                _ => {}
            }
        }
    }
}

#[test]
fn metrics_are_those_of_the_library() {
    let port = Port::open();
    port.store(0..3);
    let said = port.get("/metrics");
    assert_eq!((said.status, said.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    assert!(said.body.contains("\nkvkeep_commits_total 3\n"));
    assert_eq!(said.body, port.node.metrics() + &port.node.space_metrics());
    assert_eq!(said.header("content-length"), said.body.len().to_string());
    let port = Port::open_with(options(), Some("memory:"));
    let said = port.get("/metrics").body;
    for gauge in ["trouble", "short"] {
        assert!(said.contains(&format!("\nkvkeep_backend_{gauge}{{backend=\"1\",scheme=\"memory\"}} 0\n")), "{said}");
    }
}

#[test]
fn open_metrics_are_given_to_those_who_prefer_them() {
    let port = Port::open();
    port.store(0..3);
    let ask = |accept: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        said(send(port.http.address(), &request))
    };
    // As Prometheus asks.
    let said = ask("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1");
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((said.status, said.header("content-type"), said.header("vary")), (200, kind, "Accept"));
    assert!(said.body.contains("\n# TYPE kvkeep_commits counter\nkvkeep_commits_total 3\n"), "{}", said.body);
    assert!(said.body.ends_with("\n# EOF\n"));
    let other = ask("text/plain, */*;q=0.1");
    assert_eq!(other.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!other.body.contains("# EOF"));
}

#[test]
fn head_is_get_without_a_body() {
    let port = Port::open();
    let (get, head) = (port.get("/"), port.ask("HEAD", "/"));
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), get.body.len().to_string());
    assert_eq!(port.ask("HEAD", "/events").body, "");
}

#[test]
fn numbers_and_history_are_one_object() {
    let port = Port::open_with(options(), Some("memory:?capacity=1MiB"));
    port.store(0..3);
    port.node.flush(60_000).unwrap();
    let numbers = port.json("/stats.json");
    assert_eq!((&numbers["stats"]["commits"], &numbers["stats"]["sessions"]), (&3.into(), &1.into()));
    assert_eq!(numbers["stats"]["store_latency"]["count"], 3);
    let backend = &numbers["backends"][0];
    assert_eq!((&backend["scheme"], &backend["objects"], &backend["tier"]), (&"memory".into(), &3.into(), &1.into()));
    assert_eq!((&backend["capacity_bytes"], &backend["trouble"]), (&(1 << 20).into(), &Value::Null));
    assert_eq!((&backend["short"], &backend["note"]), (&false.into(), &Value::Null));
    assert_eq!((&numbers["newest_event"], &numbers["history"]), (&6.into(), &Value::Null));
    // The first sample is taken when the port opens, beside its first answers.
    let history = loop {
        let numbers = port.json("/stats.json?history_after_ms=0");
        if numbers["history"]["rows"] != Value::Array(vec![]) {
            break numbers["history"].clone();
        }
    };
    assert_eq!(history["columns"][0], "time_ms");
    for row in history["rows"].as_array().unwrap() {
        assert_eq!(row.as_array().unwrap().len(), history["columns"].as_array().unwrap().len());
    }
}

#[test]
fn health_tells_trouble_from_refusal() {
    let port = Port::open_with(options(), Some("memory:"));
    assert_eq!(port.json("/healthz")["status"], "ok");
    port.node.poison();
    let said = port.get("/healthz");
    assert_eq!(said.status, 503);
    let health: Value = serde_json::from_str(&said.body).unwrap();
    assert_eq!((&health["status"], &health["poisoned"]), (&"poisoned".into(), &true.into()));
    assert_eq!(health["backends"][0]["scheme"], "memory");
}

#[test]
fn a_fenced_backend_degrades_and_does_not_kill() {
    let backend_urls = vec!["fault:memory:?fault.store_hang=1".to_owned()];
    let backend_timeout = Duration::from_millis(1);
    let node = Node::open(NodeConfig { backend_urls, backend_timeout, ..NodeConfig::new(1 << 20) }).unwrap();
    let http = Http::start(node.clone(), options(), Log::none()).unwrap();
    let port = Port { node, http };
    port.store(0..1);
    // The deadline passes in the background.
    let health = loop {
        let health = port.json("/healthz");
        if health["status"] != "ok" {
            break health;
        }
    };
    assert_eq!(health["status"], "degraded");
    assert!(health["backends"][0]["trouble"].as_str().unwrap().contains("fenced"));
}

#[test]
fn backends_that_do_not_keep_up_degrade_and_are_told_of() {
    let backend_urls = vec!["fault:memory:?fault.store_hang=1".to_owned()];
    let (writes_pending_max, backend_timeout) = (16, Duration::from_secs(5));
    let config = NodeConfig { backend_urls, writes_pending_max, backend_timeout, ..NodeConfig::new(1 << 20) };
    let node = Node::open(config).unwrap();
    let http = Http::start(node.clone(), options(), Log::none()).unwrap();
    let port = Port { node, http };
    assert_eq!(port.json("/healthz")["writes"]["trouble"], Value::Null);
    // More than half of what may wait.
    port.store(0..12);
    let health = port.json("/healthz");
    assert_eq!((&health["status"], &health["writes"]["pending"]), (&"degraded".into(), &12.into()));
    assert!(health["writes"]["trouble"].as_str().unwrap().contains("12 writes wait, at most 16 may"));
    // Most of which the writer takes, and hangs with.
    port.store(100..5000);
    let health = port.json("/healthz");
    assert_eq!(health["status"], "degraded");
    assert!(health["writes"]["dropped_recently"].as_u64().unwrap() > 0);
    assert!(health["writes"]["trouble"].as_str().unwrap().contains("dropped in the last minute"));
    assert_eq!(port.json("/stats.json")["writes"]["pending_max"], 16);
}

#[test]
fn reasons_are_explained() {
    let port = Port::open();
    let session = port.store(0..1);
    assert_eq!(port.json(&format!("/explain/session/{session}"))["sessions"][0]["request_id"], "who");
    assert_eq!(port.json("/explain/session/0")["sessions"], Value::Array(vec![]));
    assert_eq!(port.get("/explain/session/12345").status, 404);
    let path = format!("/explain/key?space={}&hash={}&group=1", port.space(), hex(&key(0).hash));
    assert_eq!(port.json(&format!("{path}&rank=3"))["state"], "ready");
    assert_eq!(port.json(&path)["state"], "absent");
    assert_eq!(port.get(&format!("/explain/key?space=1&hash={}", hex(&[0; 32]))).status, 404);
}

#[test]
fn sessions_are_listed_by_bytes_without_their_keys() {
    let port = Port::open();
    assert_eq!(port.json("/sessions.json")["sessions"], Value::Array(vec![]));
    let (small, large) = (port.store(0..3), port.store(3..8));
    for (session, numbers) in [(small, 0..3), (large, 3..8)] {
        let mut views = vec![View { data: std::ptr::null_mut(), size: 0, status: 0, reserved: 0 }; numbers.len()];
        assert!(port.node.reserve_read(session, &numbers.map(key).collect::<Vec<_>>(), 0, &mut views).unwrap());
    }
    let said = port.json("/sessions.json");
    let [first, second] = &said["sessions"].as_array().unwrap()[..] else { panic!("{said}") };
    assert_eq!((&first["session"], &first["bytes"], &first["keys"]), (&large.into(), &320.into(), &5.into()));
    assert_eq!((&second["session"], &second["bytes"], &second["keys"]), (&small.into(), &192.into(), &3.into()));
    assert!(first.get("held").is_none(), "{said}");
    let one = port.json("/sessions.json?most=1");
    assert_eq!(one["sessions"].as_array().unwrap().len(), 1);
    for said in [said, one] {
        assert_eq!((&said["holding"], &said["held_bytes"]), (&2.into(), &512.into()));
        assert_eq!((&said["l1_bytes"], &said["l1_locked_bytes"]), (&(4 << 20).into(), &512.into()));
    }
    [small, large].into_iter().for_each(|session| port.node.end_session(session).unwrap());
}

#[test]
fn what_is_not_known_is_refused_with_a_sentence() {
    let port = Port::open();
    for (path, status, words) in [
        ("/nowhere", 404, "there is no /nowhere here"),
        ("/metrics/", 404, "/explain/key"),
        ("/metrics?x=1", 400, "\"x\" is not known"),
        ("/events?form=1", 400, "known are from"),
        ("/events?from=-1", 400, "whole number"),
        ("/events?from=2", 400, "from=0"),
        ("/stats.json?history_after_ms=x", 400, "whole number"),
        ("/sessions.json?most=-1", 400, "whole number"),
        ("/sessions.json?least=1", 400, "known are most"),
        ("/explain/session/", 400, "whole number"),
        ("/explain/session/99999999999999999999", 400, "whole number"),
        ("/explain/key", 400, "which key"),
        ("/explain/key?space=1&hash=00", 400, "64 hexadecimal digits"),
    ] {
        let said = port.get(path);
        assert_eq!(said.status, status, "{path}");
        assert!(said.body.contains(words) && said.body.ends_with('\n'), "{path}: {}", said.body);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let said = port.ask(method, "/metrics");
        assert_eq!((said.status, said.header("allow")), (405, "GET, HEAD"));
    }
    let request = "GET /metrics HTTP/1.1\r\nHost: somewhere.example\r\n\r\n";
    assert_eq!(said(send(port.http.address(), request)).status, 403);
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let port = Port::open();
    for garbage in
        ["\x16\x03\x01\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n"]
    {
        let answer = until_hung_up(send(port.http.address(), garbage));
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    let long = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let mut stream = connect(port.http.address());
    // The port may hang up before all of it is sent.
    let _ = stream.write_all(long.as_bytes());
    let answer = until_hung_up(stream);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(port.get("/metrics").status, 200);
}

#[test]
fn events_come_as_they_happen() {
    let port = Port::open();
    let mut reader = Reader::follow(&port, 0);
    port.store(0..2);
    for number in 0..2u64 {
        let event = reader.line().unwrap();
        assert_eq!((&event["sequence"], &event["kind"]), (&(number + 1).into(), &"stored".into()));
        assert_eq!((&event["key"], &event["size"]), (&key(number as u32).to_string().into(), &64.into()));
        assert_eq!((&event["space"], &event["tier"]), (&port.space().into(), &0.into()));
    }
    port.node.clear(0, false).unwrap();
    assert_eq!(reader.line().unwrap()["kind"], "removed");
    // Another one begins where it likes.
    let mut second = Reader::follow(&port, 2);
    assert_eq!(second.line().unwrap()["sequence"], 2);
}

#[test]
fn a_gap_is_a_line_of_its_own() {
    let port = Port::open();
    port.store(0..5);
    // Nobody read until now, so what was is lost.
    let mut reader = Reader::follow(&port, 2);
    let lost = reader.line().unwrap();
    assert_eq!((&lost["lost"]["first"], &lost["lost"]["last"]), (&2.into(), &5.into()));
    port.store(5..6);
    assert_eq!(reader.line().unwrap()["sequence"], 6);
}

#[test]
fn readers_of_events_are_bounded_and_end_with_the_port() {
    let port = Port::open_with(HttpOptions { followers_max: 1, ..options() }, None);
    let mut reader = Reader::follow(&port, 0);
    port.store(0..1);
    assert!(reader.line().is_some());
    let refused = port.get("/events");
    assert_eq!(refused.status, 503);
    port.http.stop();
    assert_eq!(reader.line(), None);
    assert!(TcpStream::connect(port.http.address()).is_err());
}

/// Has more and more said until another reader of the events is let in.
fn until_let_in(port: &Port, events_at_once: u32) {
    for number in (0..).step_by(events_at_once as usize) {
        port.store(number..number + events_at_once);
        let stream = send(port.http.address(), "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match head(&mut BufReader::new(stream)).0 {
            200 => return,
            status => assert_eq!(status, 503),
        }
    }
}

#[test]
fn a_place_is_free_again_when_its_reader_went() {
    let port = Port::open_with(HttpOptions { followers_max: 1, ..options() }, None);
    drop(Reader::follow(&port, 0));
    // The port notices when it has something to say.
    until_let_in(&port, 1);
}

#[test]
fn a_peer_that_says_nothing_is_cut_off_and_holds_up_nobody() {
    let head_timeout = Duration::from_millis(300);
    let port = Port::open_with(HttpOptions { connections_max: 1, head_timeout, ..options() }, None);
    let silent = send(port.http.address(), "GET /met");
    // The one place there is is taken, and given to who asks.
    assert_eq!(port.get("/healthz").status, 200);
    assert!(!until_hung_up(silent).starts_with(b"HTTP/1.1 200"));
}

#[test]
fn slow_connections_do_not_silence_health() {
    let forever = Duration::from_secs(3600);
    let port = Port::open_with(HttpOptions { head_timeout: forever, answer_timeout: forever, ..options() }, None);
    let mut followers: Vec<Reader> = (0..4).map(|_| Reader::follow(&port, 0)).collect();
    let mut slow = Vec::new();
    for words in ["GET /healthz HTTP/1.1\r\nHost: loc", "G", ""] {
        for _ in 0..64 {
            slow.push(send(port.http.address(), words));
        }
        // None of them ever ends its request, and none has to time out.
        assert_eq!(port.get("/healthz").status, 200);
    }
    // The oldest have gone, and those that follow events have not.
    assert_eq!(until_hung_up(slow.remove(0)), b"");
    port.store(0..1);
    assert!(followers.iter_mut().all(|reader| reader.line().is_some()));
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off() {
    let answer_timeout = Duration::from_secs(1);
    let port = Port::open_with(HttpOptions { followers_max: 1, answer_timeout, ..options() }, None);
    let stuck = Reader::follow(&port, 0);
    // Until its buffers are full, and a time more.
    until_let_in(&port, 500);
    let told = until_hung_up(stuck.0);
    // Its last chunk would be empty, had it ended in order.
    assert!(!told.ends_with(b"\r\n0\r\n\r\n"));
}

#[test]
fn a_port_that_is_taken_is_an_error_with_a_remedy() {
    let port = Port::open();
    let error = Http::start(port.node.clone(), HttpOptions::new(port.http.address()), Log::none()).err().unwrap();
    assert!(error.message.contains("choose another --http"), "{error}");
}
