//! A place that cannot be opened is an error with cause and remedy, soon, and without secrets.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{Read, Write};
use std::net::TcpListener;

use kvkeep::ffi::cache::{kvkeep_add_backend, kvkeep_close, kvkeep_open};
use kvkeep::ffi::options::kvkeep_options;
use kvkeep::ffi::version::{KVKEEP_ABI_VERSION, kvkeep_last_error};

use crate::promises::cache::{MIB, watched};
use crate::support::s3::{Service, access_keys, is_s3s};

/// A server that answers every connection with `answer`, and then waits for the client's end; without one it never answers.
fn server(answer: Option<&'static str>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                let _ = client.read(&mut bytes);
                if let Some(answer) = answer {
                    let _ = client.write_all(answer.as_bytes());
                    return;
                }
                while client.read(&mut bytes).is_ok_and(|got| got > 0) {}
            });
        }
    });
    address.to_string()
}

fn page(status: &str, kind: &str, body: &str) -> &'static str {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .leak()
}

/// A server that answers with a page of HTML; gives its address.
pub fn page_server(status: &str, body: &str) -> String {
    server(Some(page(status, "text/html", body)))
}

#[test]
fn a_place_that_cannot_be_opened_is_an_error_with_cause_and_remedy() {
    watched(|| {
        let keys = access_keys();
        let keys = keys.path().display();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let html = server(Some(page("200 OK", "text/html", "<!DOCTYPE html><html><body>Log in</body></html>")));
        let lost = server(Some(page("404 Not Found", "text/html", "<html><body>Not found</body></html>")));
        let empty = server(Some(page("404 Not Found", "text/plain", "")));
        let error = "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIDTEST</AWSAccessKeyId></Error>";
        let refuses = server(Some(page("403 Forbidden", "application/xml", error)));
        let denies = server(Some(page("403 Forbidden", "application/xml", "<Error><Code>AccessDenied</Code></Error>")));
        let region = "<Error><Code>PermanentRedirect</Code></Error>";
        let elsewhere = server(Some(page("301 Moved Permanently", "application/xml", region)));
        let garbage = server(Some("SSH-2.0-OpenSSH_9.2p1\r\n"));
        let hangs = server(None);
        let mut places = vec![
            (format!("http://{closed}"), "cannot be reached (Connection refused"),
            ("http://nowhere.invalid:9000".to_owned(), "cannot be reached"),
            (format!("http://{html}"), "is no S3 service: correct endpoint=, or the proxy before it"),
            (format!("http://{lost}"), "web page: it is no S3 service, or behind a proxy"),
            (format!("http://{empty}"), "is no S3 service"),
            (format!("http://{refuses}"), "refuses the access key (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID"),
            (format!("http://{denies}"), "refuses access (AccessDenied); the access key needs ListBucket"),
            (format!("http://{elsewhere}"), "another region; name it by region="),
            (format!("https://{html}"), "does not speak TLS"),
            (format!("http://{garbage}"), "opening s3://kvkeep/x"),
            (format!("http://{hangs}&open_ms=300"), "no answer in 300ms"),
            (format!("https://{hangs}&open_ms=300"), "no answer in 300ms"),
            ("http://me:hush@localhost".to_owned(), "secrets do not belong into a URL"),
            (format!("http://{closed}&secret_key=hush"), "secrets do not belong into a URL"),
            (format!("http://{closed}&ca=/no/file"), "reading /no/file, which ca= names"),
            (format!("http://{closed}&profile=nobody"), "in a section [nobody]"),
        ];
        let test = "a_place_that_cannot_be_opened_is_an_error_with_cause_and_remedy";
        let service = Service::shared(test);
        let tells_buckets =
            !is_s3s(&format!("{test}: no bucket"), "says of a bucket that is not there what it says of an object");
        if let Some(service) = service.filter(|_| tells_buckets) {
            places.push((format!("http://{}/nowhere", service.address), "opening s3://kvkeep/x"));
        }
        // SAFETY: plain data for which zero is a valid value.
        let mut options: kvkeep_options = unsafe { std::mem::zeroed() };
        (options.struct_size, options.abi_version) = (size_of::<kvkeep_options>() as u32, KVKEEP_ABI_VERSION);
        options.l1_bytes = MIB;
        let mut cache = std::ptr::null_mut();
        // SAFETY: the options and the place of the handle are this test's.
        assert_eq!(unsafe { kvkeep_open(&options, &mut cache) } as i32, 0);
        let open = |url: &str| {
            let url = std::ffi::CString::new(url).unwrap();
            let mut number = 0;
            // SAFETY: the handle is open, the string and the number are this test's.
            let status = unsafe { kvkeep_add_backend(cache, url.as_ptr(), &mut number) };
            // SAFETY: the library's own text, which this thread reads before its next call.
            let message = unsafe { CStr::from_ptr(kvkeep_last_error()) }.to_str().unwrap().to_owned();
            (status as i32, message)
        };
        for (place, part) in places {
            let (status, message) = open(&format!("s3://kvkeep/x?credentials={keys}&retries=0&endpoint={place}"));
            assert!(status < 0 && message.contains(part), "{place}: {status} {message}");
            assert!(!message.contains("hush") && !message.contains("AKIDTEST"), "{message}");
        }
        if let Some(service) = service {
            if tells_buckets {
                let url = format!("s3://nobodys/x?credentials={keys}&endpoint=http://{}", service.address);
                let (status, message) = open(&url);
                assert!(status < 0 && message.contains("there is no such bucket; make it"), "{message}");
            }
            let (status, message) = open(&service.url(""));
            assert_eq!(status, 0, "{message}");
        }
        // SAFETY: the handle is open, and nobody else has it.
        assert_eq!(unsafe { kvkeep_close(cache) } as i32, 0);
    });
}
