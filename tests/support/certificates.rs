//! Certificates for servers of tests.

use std::path::Path;
use std::process::{Command, Stdio};

use super::skip::skipped;

/// Makes an authority and a certificate of this machine in `dir`: ca.pem, cert.pem, key.pem. None where there is no openssl.
pub fn certify(test: &str, dir: &Path) -> Option<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE"];
    let ca = [&["req", "-x509"], &key[..], &["-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca"]];
    let request = [&["req"], &key[..], &["-keyout", "key.pem", "-out", "request", "-subj", "/CN=localhost"], &names];
    let sign = ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    let sign = [&sign[..], &["-out", "cert.pem", "-days", "2", "-copy_extensions", "copy"]].concat();
    for arguments in [ca.concat(), request.concat(), sign] {
        let ran = Command::new("openssl").args(arguments).current_dir(dir).stderr(Stdio::null()).status();
        if !ran.is_ok_and(|status| status.success()) {
            skipped(test, "there is no openssl to make certificates with");
            return None;
        }
    }
    Some(())
}
