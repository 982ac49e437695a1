//! Google Cloud Storage and Azure, which the code for S3 serves too.
//!
//! Azure is Azurite, where it is installed; `make test-azure` installs it. Google's service is moto behind a translation of headers,
//! since there is no emulator of the API that the client speaks.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kvkeep::cache::Cache as _;
use kvkeep::error::{Error, KVKEEP_ERR_INVALID, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION, Status};
use kvkeep::l2::s3::S3Backend;
use kvkeep::l2::url::Url;
use kvkeep::log::Log;

use super::opening::page_server;
use super::round_trip::hits;
use crate::promises::cache::{Cache, KIB, MIB, WATCHDOG, WATCHDOG_MS, key, until, watched};
use crate::support::s3;
use crate::support::skip::skipped;
use crate::support::tcp_proxy::{TcpProxy, Weather};

/// An emulator in a process of its own, which ends with this one.
struct Emulator {
    child: Child,
    scheme: &'static str,
    address: SocketAddr,
    /// What follows the address in the endpoint.
    path: String,
    credentials: tempfile::NamedTempFile,
}

fn script(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Starts a program, whose first line is the endpoint, or a connection string that has it.
fn started(scheme: &'static str, command: &mut Command, credentials: tempfile::NamedTempFile) -> Emulator {
    let mut child = command.arg("kvkeep").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (words, place) = line.trim().split_once("http://").expect("it starts");
    if !words.is_empty() {
        std::fs::write(credentials.path(), &line).unwrap();
    }
    let (address, path) = place.split_once('/').unwrap_or((place, ""));
    Emulator { child, scheme, address: address.parse().unwrap(), path: path.to_owned(), credentials }
}

fn azurite(test: &str) -> Option<Emulator> {
    let output = Command::new(script("azurite.sh")).output().unwrap();
    if !output.status.success() {
        skipped(test, "there is no Azurite; `make test-azure` has npm fetch it");
        return None;
    }
    let azurite = String::from_utf8(output.stdout).unwrap();
    let mut command = Command::new("python3");
    command.arg(script("azure_server.py")).arg(azurite.trim());
    Some(started("az", &mut command, tempfile::NamedTempFile::new().unwrap()))
}

fn google(test: &str) -> Option<Emulator> {
    let Some(python) = s3::python() else {
        skipped(test, "moto cannot be had from PyPI");
        return None;
    };
    let Some(credentials) = service_account() else {
        skipped(test, "there is no openssl to make the key of a service account");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(script("gcs_server.py"));
    Some(started("gs", &mut command, credentials))
}

/// The file of a service account with a key of its own.
fn service_account() -> Option<tempfile::NamedTempFile> {
    let output =
        Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output();
    let key =
        String::from_utf8(output.ok().filter(|output| output.status.success())?.stdout).unwrap().replace('\n', "\\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    let account = format!(
        "{{\"type\": \"service_account\", \"private_key\": \"{key}\", \"private_key_id\": \"1\", \"client_email\": \"kv@example.net\"}}"
    );
    std::fs::write(file.path(), account).unwrap();
    Some(file)
}

impl Emulator {
    /// The URL of a prefix at an address, which may be that of a proxy.
    fn url(&self, prefix: &str, address: SocketAddr, parameters: &str) -> String {
        let (scheme, path, credentials) = (self.scheme, &self.path, self.credentials.path().display());
        let slash = if path.is_empty() { "" } else { "/" };
        format!(
            "{scheme}://kvkeep/{prefix}?endpoint=http://{address}{slash}{path}&credentials={credentials}&open_ms=100000\
             &stall_ms=100000&part_size=5MiB{parameters}"
        )
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Ends with its input, and a server of its own with it.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn open(url: &str) -> Cache {
    Cache::open(64 * MIB, &[url], |config| config.backend_timeout = WATCHDOG)
}

fn serves_a_cache(emulator: &Emulator) {
    let proxy = TcpProxy::start(emulator.address, "GET ");
    let url = emulator.url("one", emulator.address, "&absent_ms=600000");
    let (first, second) = (open(&url), open(&url));
    assert_eq!(first.node.backend_reports()[0].scheme, emulator.scheme);
    // The second remembers for long that they are absent, so that only the service can tell that they are there.
    assert_eq!((hits(&second, 0..4), hits(&first, 0..4)), (0, 0));
    first.store_below(0..16, 64 * KIB);
    // In parts, and read in ranges.
    first.store_below(16..17, 12 * MIB);
    assert_eq!((first.stats().stores, first.stats().stores_dropped), (17, 0));
    second.store_below(0..4, 64 * KIB);
    assert_eq!((second.stats().stores, second.stats().stores_already), (0, 4));
    let listed = open(&emulator.url("one", emulator.address, "&list=on"));
    until("the listing", || listed.stats().l2_objects == 17);
    assert_eq!((hits(&second, 0..4), hits(&listed, 0..20)), (4, 17));
    listed.node.close();
    // A turned bit is no hit; the object moves out of the way, and can be stored again.
    let turned = open(&emulator.url("one", proxy.address, ""));
    proxy.set(Weather::Turn(30_000));
    assert_eq!((hits(&turned, 3..4), turned.stats().corruptions), (0, 1));
    turned.node.close();
    let third = open(&url);
    until("the quarantine", || {
        third.node.clear(0, true).unwrap();
        hits(&third, 3..4) == 0
    });
    third.node.close();
    // Deleted for all, one by one and by the space.
    first.node.delete(first.space, &[key(1), key(2)], None).unwrap();
    first.node.flush(WATCHDOG_MS).unwrap();
    let third = open(&url);
    assert_eq!((hits(&third, 0..4), hits(&third, 4..17)), (1, 13));
    third.node.forget_space(third.space).unwrap();
    third.node.flush(WATCHDOG_MS).unwrap();
    let fourth = open(&url);
    assert_eq!(hits(&fourth, 4..17), 0);
    for cache in [first, second, third, fourth] {
        cache.at_rest();
        cache.node.close();
    }
}

#[test]
fn azure_serves_a_cache() {
    watched(|| {
        if let Some(emulator) = azurite("azure_serves_a_cache") {
            serves_a_cache(&emulator);
        }
    });
}

#[test]
fn google_serves_a_cache() {
    watched(|| {
        if let Some(emulator) = google("google_serves_a_cache") {
            serves_a_cache(&emulator);
        }
    });
}

fn refusal(url: &str) -> Error {
    S3Backend::open_url(&Url::parse(url).unwrap(), &Log::none()).map(|_| ()).unwrap_err()
}

fn refused(url: &str, status: Status, part: &str) {
    let error = refusal(url);
    assert!(error.status == status && error.message.contains(part), "{url}: {error}");
    assert!(!error.message.contains("hush"), "{error}");
}

/// A file with this text, for as long as the test's process lives.
fn file(text: &str) -> String {
    let (_, path) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn places_that_cannot_be_opened_are_errors_with_cause_and_remedy() {
    watched(|| {
        let html = page_server("200 OK", "<!DOCTYPE html><html>Log in</html>");
        let key = "AccountName=one;AccountKey=aHVzaA==";
        let connection = file(key);
        let az = |credentials: &str, endpoint: &str| {
            format!("az://kvkeep/x?credentials={credentials}&retries=0&open_ms=100000&endpoint=http://{endpoint}")
        };
        let gs = |credentials: &str, endpoint: &str| az(credentials, endpoint).replacen("az", "gs", 1);
        for (url, status, part) in [
            (az(&connection, &html), KVKEEP_ERR_IO, "is no Azure Blob Storage"),
            (az(&connection, "127.0.0.1:1"), KVKEEP_ERR_IO, "cannot be reached (Connection refused"),
            (az(&file("hush"), &html), KVKEEP_ERR_INVALID, "no connection string of a storage account"),
            (az(&file("AccountKey=aHVzaA=="), &html), KVKEEP_ERR_INVALID, "write account=NAME"),
            (az(&file("AccountName=one;AccountKey=hush@"), &html), KVKEEP_ERR_INVALID, "access keys cannot be used"),
            (
                az(&file("AccountName=one;SharedAccessSignature=hush"), &html),
                KVKEEP_ERR_INVALID,
                "AZURE_STORAGE_SAS_TOKEN",
            ),
            (az("/no/file", &html), KVKEEP_ERR_IO, "/no/file, which credentials= names"),
            (gs("/no/file", &html), KVKEEP_ERR_IO, "/no/file, which credentials= names"),
            (
                gs(&file("{\"type\": \"hush\"}"), &html),
                KVKEEP_ERR_INVALID,
                "access keys cannot be used; let GOOGLE_APPLICATION_CREDENTIALS",
            ),
            (
                gs("/no/file", &html).replace("credentials=/no/file", "anonymous=on"),
                KVKEEP_ERR_IO,
                "is no Google Cloud Storage",
            ),
        ] {
            refused(&url, status, part);
        }
        let test = "places_that_cannot_be_opened_are_errors_with_cause_and_remedy";
        if let Some(emulator) = azurite(test) {
            let url = emulator.url("x", emulator.address, "&retries=0");
            refused(&url.replacen("kvkeep", "nobodys", 1), KVKEEP_ERR_NOT_FOUND, "there is no such container; make it");
            let wrong = url.replace(
                &*emulator.credentials.path().to_string_lossy(),
                &file("AccountName=devstoreaccount1;AccountKey=aHVzaA=="),
            );
            refused(&wrong, KVKEEP_ERR_PERMISSION, "refuses access (AuthorizationFailure); the account needs the role");
        }
        if let Some(emulator) = google(test) {
            let url = emulator.url("x", emulator.address, "&retries=0");
            refused(&url.replacen("kvkeep", "nobodys", 1), KVKEEP_ERR_NOT_FOUND, "there is no such bucket; make it");
            let wrong = url.replace("&credentials=", "&anonymous=on&credentials=");
            refused(&wrong, KVKEEP_ERR_PERMISSION, "refuses the access key (AuthenticationRequired)");
        }
    });
}
