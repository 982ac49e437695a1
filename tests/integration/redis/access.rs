//! Who may in, and what an operator hears who gave a wrong address: a cause, a remedy, and no secret.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use kvkeep::config::NodeConfig;
use kvkeep::error::{KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION, KVKEEP_ERR_TIMEOUT, KVKEEP_ERR_UNSUPPORTED, Status};
use kvkeep::l2::redis::RedisBackend;
use kvkeep::l2::url::Url;
use kvkeep::l2::{Found, Stored};
use kvkeep::log::{Log, LogLevel};
use kvkeep::node::Node;
use parking_lot::Mutex;

use crate::support::fs::WATCHDOG;
use crate::support::redis::*;

/// The refusal to open `url`, of which neither message nor log has the secret.
fn refusal(url: &str) -> (Status, String) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let written = lines.clone();
    let log = Log::new(LogLevel::Info, move |_, line| written.lock().push(line.to_owned()));
    let began = Instant::now();
    let error = RedisBackend::open_url(&Url::parse(url).unwrap(), &log).map(|_| ()).unwrap_err();
    assert!(began.elapsed() < WATCHDOG);
    assert!(!error.message.contains("s3cret"), "{}", error.message);
    assert!(!lines.lock().iter().any(|line| line.contains("s3cret")), "{:?}", lines.lock());
    (error.status, error.message)
}

fn refused(url: &str, status: Status, words: &[&str]) {
    let (found, message) = refusal(url);
    assert_eq!(found, status, "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn a_password_and_a_user_are_asked_for() {
    let Some(mut server) = Server::start(&[]) else { return };
    server.ask(&["ACL", "SETUSER", "kv", "on", ">s3cret/@", "~kvkeep:*", "+@all", "-@dangerous", "-@admin"]);
    server.ask(&["ACL", "SETUSER", "blind", "on", ">s3cret", "+@connection", "-@read"]);
    server.ask(&["CONFIG", "SET", "requirepass", "s3cret"]);
    server.login = ["AUTH", "s3cret"].map(str::to_owned).to_vec();
    let port = server.port;
    refused(&server.url(""), KVKEEP_ERR_PERMISSION, &["NOAUTH", "redis://user:password@host", &port.to_string()]);
    for login in [":s3cretx", "kv:s3cret", "nobody:s3cret"] {
        let url = format!("redis://{login}@127.0.0.1:{port}");
        refused(&url, KVKEEP_ERR_PERMISSION, &["WRONGPASS", "check the user and the password"]);
    }
    // An ACL user without dangerous commands: no INFO, no KEYS. All but the usage works.
    let file = server.dir.path().join("password");
    std::fs::write(&file, "s3cret/@\n").unwrap();
    let rests = [
        format!("redis://kv:s3cret%2F%40@127.0.0.1:{port}"),
        format!("redis+unix://kv:s3cret%2F%40@{}", server.socket().display()),
        format!("redis://:s3cret@127.0.0.1:{port}"),
    ];
    for (number, url) in rests.iter().enumerate() {
        let backend = open(url).unwrap();
        assert_eq!(store(&*backend, number as u64, 1000).unwrap(), Stored::Written);
        assert_eq!(lookup(&*backend, &[number as u64], true).unwrap(), [Found::Present(1000)]);
        load(&*backend, number as u64, 1000).unwrap();
        assert_eq!(delete(&*backend, &[number as u64]).unwrap(), 1);
    }
    // A user that may do nothing is told which rights are missing, request by request.
    let backend = open(&format!("redis://blind:s3cret@127.0.0.1:{port}")).unwrap();
    for error in [store(&*backend, 1, 10).unwrap_err(), lookup(&*backend, &[1], true).unwrap_err()] {
        assert_eq!(error.status, KVKEEP_ERR_PERMISSION);
        assert!(error.message.contains("NOPERM") && error.message.contains("+getrange"), "{error}");
    }
}

#[test]
fn no_report_of_a_cache_has_the_secret() {
    let Some(mut server) = Server::start(&["--requirepass", "s3cret"]) else { return };
    server.login = ["AUTH", "s3cret"].map(str::to_owned).to_vec();
    let url = format!("redis://:s3cret@127.0.0.1:{}/0?prefix=a", server.port);
    let lines = Arc::new(Mutex::new(Vec::new()));
    let written = lines.clone();
    let mut config = NodeConfig::new(1 << 20);
    config.backend_urls = vec![url];
    config.log = Log::new(LogLevel::Info, move |_, line| written.lock().push(line.to_owned()));
    let node = Node::open(config).unwrap();
    let url: String = node.query_backends()[0].url.iter().map(|&byte| byte as u8 as char).collect();
    let told = format!("{:?} {:?} {url}", node.backend_reports(), lines.lock());
    assert!(told.contains(&format!("redis://127.0.0.1:{}/0?prefix=a", server.port)), "{told}");
    node.close();
    assert!(!told.contains("s3cret") && !format!("{:?}", lines.lock()).contains("s3cret"), "{told}");
}

#[test]
fn a_server_that_knows_no_hello_is_used_as_well() {
    // As before Redis 6: the older protocol, and a password without a user.
    let Some(mut server) = Server::start(&["--rename-command", "HELLO", "", "--requirepass", "s3cret"]) else { return };
    server.login = ["AUTH", "s3cret"].map(str::to_owned).to_vec();
    let backend = open(&format!("redis://:s3cret@127.0.0.1:{}?part=1MiB", server.port)).unwrap();
    for (number, length) in [(1, 1000), (2, (2 << 20) + 5)] {
        assert_eq!(store(&*backend, number, length).unwrap(), Stored::Written);
        load(&*backend, number, length).unwrap();
        assert_eq!(lookup(&*backend, &[number, 3], true).unwrap(), [Found::Present(length as u64), Found::Absent]);
        assert_eq!(delete(&*backend, &[number]).unwrap(), 1);
    }
    refused(&server.url(""), KVKEEP_ERR_PERMISSION, &["NOAUTH", "redis://user:password@host"]);
    let wrong = format!("redis://:s3cretx@127.0.0.1:{}", server.port);
    refused(&wrong, KVKEEP_ERR_PERMISSION, &["WRONGPASS", "check the user and the password"]);
}

/// Answers whatever comes with these bytes.
fn speaker(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    let _ = stream.write_all(bytes);
                }
            });
        }
    });
    port
}

#[test]
fn what_is_no_redis_server_is_refused_at_once() {
    let nobody = free_port();
    refused(
        &format!("redis://:s3cret@127.0.0.1:{nobody}"),
        KVKEEP_ERR_IO,
        &["refused", "is a Redis", &nobody.to_string()],
    );
    refused("redis://no.such.host.invalid", KVKEEP_ERR_IO, &["no.such.host.invalid"]);
    refused("redis+unix:///nowhere/redis.sock", KVKEEP_ERR_IO, &["/nowhere/redis.sock"]);
    for (bytes, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"[..], "HTTP/1.1 400"),
        (b"<html>\r\n", "<html>"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "TLS"),
        (b"-ERR unknown command 'HELLO', with args beginning with: 's3cret'\r\n", "refuses to let us in"),
        (b"$99999999999\r\n", "length"),
    ] {
        let url = format!("redis://:s3cret@127.0.0.1:{}?connect_ms=10000", speaker(bytes));
        let (status, message) = refusal(&url);
        assert!([KVKEEP_ERR_IO, KVKEEP_ERR_PERMISSION].contains(&status) && message.contains(words), "{message}");
    }
    // One that accepts and says nothing.
    let silent = format!("redis://127.0.0.1:{}?connect_ms=50", speaker(b""));
    refused(&silent, KVKEEP_ERR_TIMEOUT, &["does not answer", "does a Redis server listen there?"]);
}

#[test]
fn a_database_that_is_not_there_is_refused() {
    let Some(server) = Server::start(&["--databases", "2"]) else { return };
    drop(server.open("/1"));
    refused(&server.url("/2"), kvkeep::error::KVKEEP_ERR_INVALID, &["no database 2"]);
}

#[test]
fn a_server_of_a_cluster_is_refused_where_one_server_is_named() {
    let Some(server) = Server::start(&["--cluster-enabled", "yes"]) else { return };
    refused(&server.url(""), KVKEEP_ERR_UNSUPPORTED, &["cluster", "write redis+cluster://"]);
}
