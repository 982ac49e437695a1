//! An S3 service for a test, and URLs of buckets in it: moto, or s3s-fs where `KVKEEP_S3S` gives its path.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use kvkeep::key::hex;
use ring::{digest, hmac};

use super::skip::skipped;

/// The access key that the services accept, and its secret.
const ACCESS_KEY: &str = "AKIDTEST";
const SECRET_KEY: &str = "hush";

/// A service in a process of its own, which ends with this one.
pub struct Service {
    child: Child,
    pub address: SocketAddr,
    /// Access keys that it accepts.
    keys: tempfile::NamedTempFile,
}

/// A Python that has moto, if it can be had.
pub fn python() -> Option<&'static str> {
    static PYTHON: OnceLock<Option<String>> = OnceLock::new();
    let install = || {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/moto.sh")).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    PYTHON.get_or_init(install).as_deref()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Starts moto, if it can be had.
fn moto(arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new(python()?);
    command.arg(script("s3_server.py")).args(arguments);
    Some(command)
}

/// Whether the tests run against s3s-fs, which is unlike S3 as `what` says. Then that is counted as skipped.
pub fn is_s3s(test: &str, what: &str) -> bool {
    let is_it = s3s().is_some();
    if is_it {
        skipped(test, format!("s3s-fs {what}"));
    }
    is_it
}

/// Starts s3s-fs, if the tests are to run against it.
fn s3s() -> Option<Command> {
    let program = std::env::var_os("KVKEEP_S3S").filter(|path| !path.is_empty())?;
    let mut command = Command::new("python3");
    command.arg(script("s3s_server.py")).arg(program);
    Some(command)
}

impl Service {
    /// Starts one for a test, unless it cannot be had: that is counted as skipped.
    pub fn start(test: &str) -> Option<Service> {
        let command = s3s().or_else(|| moto(&[]));
        if command.is_none() {
            skipped(test, "moto cannot be had from PyPI");
        }
        command.map(Service::start_by)
    }

    /// Starts one under TLS, whose certificate and key are in `dir`.
    pub fn start_under_tls(test: &str, dir: &Path) -> Option<Service> {
        if is_s3s(test, "knows neither TLS nor web identities") {
            return None;
        }
        let file = |name| dir.join(name).to_str().unwrap().to_owned();
        let command = moto(&["--tls", &file("cert.pem"), &file("key.pem")]);
        if command.is_none() {
            skipped(test, "moto cannot be had from PyPI");
        }
        command.map(Service::start_by)
    }

    /// Starts one that does not know the precondition of a store: `"refused"`, or `"ignored"`.
    pub fn start_without_conditions(test: &str, how: &str) -> Option<Service> {
        if is_s3s(test, "cannot be told to know no precondition of a store") {
            return None;
        }
        let command = moto(&["--conditions", how]);
        if command.is_none() {
            skipped(test, "moto cannot be had from PyPI");
        }
        command.map(Service::start_by)
    }

    fn start_by(mut command: Command) -> Service {
        let mut child =
            command.arg("kvkeep").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut endpoint = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        let address = endpoint.trim().split_once("://").expect("the service starts").1.parse().unwrap();
        Service { child, address, keys: access_keys() }
    }

    /// The service that tests share which leave it as it was.
    pub fn shared(test: &str) -> Option<&'static Service> {
        static SHARED: OnceLock<Option<Service>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Service::start(test)).as_ref();
        if shared.is_none() {
            skipped(test, "moto cannot be had from PyPI");
        }
        shared
    }

    /// The URL of a prefix that no other test has.
    pub fn url(&self, parameters: &str) -> String {
        self.url_at(self.address, parameters)
    }

    /// As `url`, by way of a proxy.
    pub fn url_at(&self, address: SocketAddr, parameters: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let keys = self.keys.path().display();
        // Patient: a loaded machine is no hanging service.
        let stall = if parameters.contains("stall_ms=") { "" } else { "&stall_ms=100000" };
        let patience = format!("open_ms=100000{stall}");
        format!(
            "s3://kvkeep/test/{number}?endpoint=http://{address}&region=us-east-1&credentials={keys}&{patience}{parameters}"
        )
    }

    pub fn kill(&mut self) {
        // Ends with its input, and a server of its own with it.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    /// The answer to a request: its status and body. The path has no query.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u32, String) {
        self.ask_with(method, path, "", body)
    }

    /// As `ask`, with a query whose parameters are encoded and in order.
    fn ask_with(&self, method: &str, path: &str, query: &str, body: &[u8]) -> (u32, String) {
        let mut connection = TcpStream::connect(self.address).unwrap();
        let host = self.address.to_string();
        let signature = sign(method, &host, path, query, body);
        let (mark, length) = (if query.is_empty() { "" } else { "?" }, body.len());
        let head = format!(
            "{method} {path}{mark}{query} HTTP/1.1\r\nHost: {host}\r\n{signature}Connection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        connection.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    /// The names of all objects below the prefix of a URL.
    pub fn names(&self, url: &str) -> Vec<String> {
        let (bucket, prefix) = url.split(['?']).next().unwrap()["s3://".len()..].split_once('/').unwrap();
        let query = format!("list-type=2&prefix={}%2F", prefix.replace('/', "%2F"));
        let (status, page) = self.ask_with("GET", &format!("/{bucket}"), &query, b"");
        assert_eq!(status, 200, "{page}");
        let names = page.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap().to_owned());
        names.collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file of access keys, of which the secret is "hush".
pub fn access_keys() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(file.path(), text).unwrap();
    file
}

/// The header fields of a signature (version 4) over a request, which s3s-fs verifies and moto does not.
fn sign(method: &str, host: &str, path: &str, query: &str, body: &[u8]) -> String {
    let sha256 = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
    let hmac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let (time, payload) = (now(), sha256(body));
    let names = "host;x-amz-content-sha256;x-amz-date";
    let fields = format!("host:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{time}\n");
    let request = format!("{method}\n{path}\n{query}\n{fields}\n{names}\n{payload}");
    let (day, mut key) = (&time[..8], hmac(format!("AWS4{SECRET_KEY}").as_bytes(), &time[..8]));
    for part in ["us-east-1", "s3", "aws4_request"] {
        key = hmac(key.as_ref(), part);
    }
    let scope = format!("{day}/us-east-1/s3/aws4_request");
    let signature = hmac(key.as_ref(), &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(request.as_bytes())));
    let signature = hex(signature.as_ref());
    format!(
        "X-Amz-Content-Sha256: {payload}\r\nX-Amz-Date: {time}\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}\r\n"
    )
}

/// The time in UTC, in the form of signatures.
fn now() -> String {
    let output = Command::new("date").args(["-u", "+%Y%m%dT%H%M%SZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
