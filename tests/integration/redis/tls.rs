//! Servers that want TLS.

use kvkeep::error::{KVKEEP_ERR_INVALID, KVKEEP_ERR_IO, KVKEEP_ERR_TIMEOUT, Status};

use super::round_trip::every_size_comes_back;
use crate::support::certificates::certify;
use crate::support::redis::*;

fn refused(url: &str, status: Status, words: &[&str]) {
    let error = open(url).map(|_| ()).unwrap_err();
    assert_eq!(error.status, status, "{error}");
    assert!(words.iter().all(|word| error.message.contains(word)), "{error}");
}

#[test]
fn values_go_under_tls_to_a_server_that_a_certificate_proves() {
    let dir = tempfile::tempdir().unwrap();
    let Some(()) = certify("tests of the redis backend under TLS", dir.path()) else { return };
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key, port) = (file("ca.pem"), file("cert.pem"), file("key.pem"), free_port());
    let tls = ["--tls-port", &port.to_string(), "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert].map(str::to_owned);
    let arguments = [&tls[..], &["--tls-key-file", &key, "--tls-auth-clients", "no"].map(str::to_owned)].concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(server) = Server::start(&arguments) else { return };
    let url = format!("rediss://127.0.0.1:{port}?ca={ca}");
    every_size_comes_back(&server, &url);
    every_size_comes_back(&server, &format!("rediss://localhost:{port}?ca={ca}&part=1MiB&connections=2"));
    // A certificate of nobody that we trust; of no such host; none at all.
    refused(&format!("rediss://127.0.0.1:{port}"), KVKEEP_ERR_IO, &["TLS fails", "ca="]);
    refused(&format!("rediss://127.0.0.2:{port}?ca={ca}&connect_ms=2000"), KVKEEP_ERR_IO, &["127.0.0.2"]);
    let plain = format!("rediss://127.0.0.1:{}?ca={ca}&connect_ms=300", server.port);
    refused(&plain, KVKEEP_ERR_TIMEOUT, &["does a Redis server listen there?"]);
    refused(&format!("redis://127.0.0.1:{port}"), KVKEEP_ERR_IO, &["rediss://"]);
    // Files that are not what they should be.
    refused("rediss://h?ca=/nowhere/ca.pem", KVKEEP_ERR_INVALID, &["/nowhere/ca.pem", "name a PEM file"]);
    refused(&format!("rediss://h?ca={key}"), KVKEEP_ERR_INVALID, &[&key, "name a PEM file"]);
    refused(&format!("rediss://h?ca={ca}&cert={cert}"), KVKEEP_ERR_INVALID, &["cert= and key="]);
    refused(&format!("rediss://h?ca={ca}&cert={cert}&key={ca}"), KVKEEP_ERR_INVALID, &["no key", "name a PEM file"]);
    refused(&format!("redis://h?ca={ca}"), KVKEEP_ERR_INVALID, &["no parameter \"ca\""]);
    // A server that asks who we are.
    server.ask(&["CONFIG", "SET", "tls-auth-clients", "yes"]);
    refused(&url, KVKEEP_ERR_IO, &["127.0.0.1"]);
    every_size_comes_back(&server, &format!("{url}&cert={cert}&key={key}"));
}
