//! An S3 service for a test, and URLs of buckets in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::skip::skipped;

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

impl Service {
    /// Starts one for a test, unless it cannot be had: that is counted as skipped.
    pub fn start(test: &str) -> Option<Service> {
        Service::start_with(test, &[])
    }

    /// Starts one under TLS, whose certificate and key are in `dir`.
    pub fn start_under_tls(test: &str, dir: &Path) -> Option<Service> {
        let file = |name| dir.join(name).to_str().unwrap().to_owned();
        Service::start_with(test, &["--tls", &file("cert.pem"), &file("key.pem")])
    }

    fn start_with(test: &str, arguments: &[&str]) -> Option<Service> {
        let Some(python) = python() else {
            skipped(test, "moto cannot be had from PyPI");
            return None;
        };
        let mut child = Command::new(python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/s3_server.py"))
            .args(arguments)
            .arg("kvkeep")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        let address = endpoint.trim().split_once("://").expect("moto starts").1.parse().unwrap();
        Some(Service { child, address, keys: access_keys() })
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
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The answer to a request whose signature moto does not verify: its status and body.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u32, String) {
        let mut connection = TcpStream::connect(self.address).unwrap();
        let (address, length) = (self.address, body.len());
        let signer =
            "AWS4-HMAC-SHA256 Credential=AKIDTEST/20261130/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {signer}\r\nConnection: close\r\n\
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
        let (status, page) = self.ask("GET", &format!("/{bucket}?list-type=2&prefix={prefix}/"), b"");
        assert_eq!(status, 200);
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
    std::fs::write(file.path(), "[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = hush\n").unwrap();
    file
}
