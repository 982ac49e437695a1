//! Keys and certificates that the environment names: each process has its own.

use std::path::Path;

use kvkeep::cache::Cache as _;
use kvkeep::config::NodeConfig;
use kvkeep::node::Node;
use serde::{Deserialize, Serialize};

use crate::promises::cache::{Cache, KIB, MIB, WATCHDOG, spec, watched};
use crate::support::certificates::certify;
use crate::support::process::{Part, Process, part, say};
use crate::support::s3::Service;

/// A process that opens a bucket and stores there.
#[derive(Serialize, Deserialize)]
struct OpenPart {
    url: String,
}

impl Part for OpenPart {
    const MODULE: &str = module_path!();
}

#[test]
#[ignore = "the other tests start it in processes"]
fn plays_its_part() {
    let OpenPart { url } = part();
    let mut config = NodeConfig::new(16 * MIB);
    (config.backend_urls, config.backend_timeout) = (vec![url], WATCHDOG);
    match Node::open(config) {
        Ok(node) => {
            let space = node.open_space(spec(0)).unwrap();
            let cache = Cache { node, space };
            cache.store_below(0..4, KIB);
            let stats = cache.stats();
            say(&format!("{} are there", stats.stores + stats.stores_already));
            cache.node.close();
        }
        Err(error) => say(&format!("{:?} {}", error.status, error.message.replace('\n', " "))),
    }
}

/// What becomes of a bucket that a process with these variables opens.
fn opened(url: &str, variables: &[(&str, &str)]) -> String {
    let home = tempfile::tempdir().unwrap();
    let part = OpenPart { url: url.to_owned() };
    let mut process = Process::start_with(&part, |command| {
        command.env("HOME", home.path()).envs(variables.iter().copied());
    });
    let line = process.hear().unwrap();
    process.wait();
    line
}

fn refused(url: &str, variables: &[(&str, &str)], words: &[&str]) {
    let line = opened(url, variables);
    assert!(words.iter().all(|word| line.contains(word)), "{url} {variables:?}: {line}");
}

fn is_there(url: &str, variables: &[(&str, &str)]) {
    assert_eq!(opened(url, variables), "4 are there", "{url} {variables:?}");
}

fn file(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_service_under_tls_is_trusted_if_its_authority_is_named() {
    watched(|| {
        let test = "a_service_under_tls_is_trusted_if_its_authority_is_named";
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        if certify(test, dir.path()).and_then(|()| certify(test, other.path())).is_none() {
            return;
        }
        let Some(service) = Service::start_under_tls(test, dir.path()) else { return };
        let url = service.url("").replace("endpoint=http:", "endpoint=https:") + "&retries=0";
        let (ca, other) = (file(dir.path(), "ca.pem"), file(other.path(), "ca.pem"));
        let untrusted = ["certificate is not trusted", "name its authority by ca=FILE"];
        refused(&url, &[], &untrusted);
        refused(&format!("{url}&ca={other}"), &[], &untrusted);
        is_there(&format!("{url}&ca={ca}"), &[]);
        is_there(&url, &[("AWS_CA_BUNDLE", &ca)]);
        is_there(&url, &[("SSL_CERT_FILE", &ca)]);
        refused(&url, &[("AWS_CA_BUNDLE", "/no/file")], &["/no/file, which AWS_CA_BUNDLE names"]);
        refused(&url.replace("https:", "http:"), &[], &["opening s3://kvkeep/"]);
    });
}

#[test]
fn a_web_identity_gives_the_keys() {
    watched(|| {
        let test = "a_web_identity_gives_the_keys";
        let dir = tempfile::tempdir().unwrap();
        if certify(test, dir.path()).is_none() {
            return;
        }
        // The service that gives keys for tokens is asked under TLS only.
        let Some(service) = Service::start_under_tls(test, dir.path()) else { return };
        let (ca, token, endpoint) =
            (file(dir.path(), "ca.pem"), file(dir.path(), "token"), format!("https://{}", service.address));
        std::fs::write(&token, "hush").unwrap();
        let url = format!("s3://kvkeep/identity?endpoint={endpoint}&retries=0&open_ms=100000&stall_ms=100000");
        let variables = |token, keys| {
            [
                ("AWS_CA_BUNDLE", &*ca),
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/kvkeep"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
                ("AWS_ENDPOINT_URL_STS", keys),
                ("AWS_REGION", "us-east-1"),
            ]
        };
        is_there(&url, &variables(&*token, &*endpoint));
        let line = opened(&url, &variables("/no/token", &*endpoint));
        assert!(line.contains("the token of the web identity cannot be read") && line.contains("/no/token"), "{line}");
        let line = opened(&url, &variables(&*token, "https://127.0.0.1:1"));
        assert!(line.contains("cannot be reached (Connection refused") && !line.contains("hush"), "{line}");
    });
}
