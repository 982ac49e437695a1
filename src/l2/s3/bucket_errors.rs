//! What a service's failures mean for people, and how many of them make a backend unhealthy. No text of a service is passed on but
//! the code of its error, since services repeat keys and signatures.

use std::error::Error as _;
use std::sync::atomic::{AtomicU32, Ordering};

use object_store::Error as ServiceError;
use parking_lot::Mutex;

use super::object_service::ObjectService;
use crate::error::{
    Error, KVKEEP_ERR_CLOSED, KVKEEP_ERR_IO, KVKEEP_ERR_LIMIT, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_PERMISSION,
    KVKEEP_ERR_TIMEOUT, Status,
};

/// Failures in a row that make the backend unhealthy: fewer may be a few bad objects.
const FAILURES_MAX: u32 = 8;
/// Most bytes of the last cause in a chain of errors.
const CAUSE_MAX: usize = 160;
/// The codes of a bucket, or container, that is not there.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

/// The answer to a request after close.
pub fn closed() -> Error {
    Error::new(KVKEEP_ERR_CLOSED, "the backend of the bucket is closed")
}

/// The answer to a request that the service did not answer in its time.
pub fn late() -> Error {
    Error::new(
        KVKEEP_ERR_TIMEOUT,
        "the deadline passed before the service of the bucket answered: it hangs, or is overloaded",
    )
}

/// The answer to a request that would make the queue too long.
pub fn full(most: usize) -> Error {
    Error::new(KVKEEP_ERR_LIMIT, format!("the backend of the bucket has {most} keys waiting already; try again later"))
}

/// The service's own code of an error (`NoSuchBucket`), if it gave one.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 60 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.')).then_some(code)
}

/// Whether a text is a web page.
pub fn is_page(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("<html") || text.contains("<!doctype html")
}

/// The last error of a chain, as far as it is short and none of the service's text.
fn root_cause(error: &ServiceError) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut source = error.source();
    while let Some(next) = source {
        last = next;
        source = next.source();
    }
    let text = last.to_string();
    let text = text.split(['\n', '<', '{']).next().unwrap_or("");
    text[..text.floor_char_boundary(CAUSE_MAX)].trim_end().to_owned()
}

/// Whether an error says that there is no such bucket.
pub fn names_no_bucket(text: &str) -> bool {
    code(text).is_some_and(|code| NO_BUCKET.contains(&code))
}

/// The cause where something else than the service answers.
pub fn is_none(service: ObjectService) -> String {
    let label = service.label();
    format!("the endpoint answers, but is no {label}: correct endpoint=, or the proxy before it")
}

/// Whether the service does not know the precondition of a store.
pub fn knows_no_condition(error: &ServiceError) -> bool {
    matches!(error, ServiceError::NotImplemented { .. } | ServiceError::NotSupported { .. })
        || code(&error.to_string()).is_some_and(|code| code == "NotImplemented")
}

/// A failure of the service at `what`: cause, remedy, place.
pub fn service_error(service: ObjectService, what: &str, place: &str, error: &ServiceError) -> Error {
    let text = error.to_string();
    let (status, cause) = cause_of(service, error, &text);
    Error::new(status, format!("{cause}: {what} {place}"))
}

fn cause_of(service: ObjectService, error: &ServiceError, text: &str) -> (Status, String) {
    /// The codes of access keys that are not accepted.
    const BAD_KEYS: [&str; 8] = [
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "ExpiredToken",
        "AuthenticationFailed",
        "InvalidAuthenticationInfo",
        "InvalidIdentityToken",
        "AuthenticationRequired",
    ];
    let keys = service.ways_to_give_keys();
    let code = code(text);
    match code {
        Some(code) if NO_BUCKET.contains(&code) => {
            let bucket = service.bucket();
            return (KVKEEP_ERR_NOT_FOUND, format!("there is no such {bucket}; make it, or name another"));
        }
        Some(code) if BAD_KEYS.contains(&code) => {
            return (KVKEEP_ERR_PERMISSION, format!("the service refuses the access key ({code}); {keys}"));
        }
        Some(code @ ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")) => {
            return (KVKEEP_ERR_IO, format!("the bucket is in another region ({code}); name it by region="));
        }
        Some("RequestTimeTooSkewed") => {
            return (
                KVKEEP_ERR_PERMISSION,
                "the clocks of this host and of the service differ; set this host's".into(),
            );
        }
        _ => {}
    }
    if is_page(text) {
        let label = service.label();
        let cause = format!(
            "the endpoint answers with a web page: it is no {label}, or behind a proxy; correct endpoint=, or set NO_PROXY"
        );
        return (KVKEEP_ERR_IO, cause);
    }
    // Each answer of the service has some.
    if text.contains("Header missing from response") {
        return (KVKEEP_ERR_IO, is_none(service));
    }
    let root = root_cause(error);
    const INSTANCE: [&str; 3] = ["169.254.169.254", "metadata.google", "InstanceCredentials"];
    if INSTANCE.iter().any(|word| text.contains(word)) {
        let cause = format!(
            "there is no access key in the environment, and no instance that gives one; {keys}, or write anonymous=on"
        );
        return (KVKEEP_ERR_PERMISSION, cause);
    }
    if text.contains("normally indicates an incorrectly configured region") {
        return (KVKEEP_ERR_IO, "the bucket is in another region; name it by region=".into());
    }
    let lower = root.to_ascii_lowercase();
    if lower.contains("token file") {
        let cause =
            format!("the token of the web identity cannot be read ({root}); correct AWS_WEB_IDENTITY_TOKEN_FILE");
        return (KVKEEP_ERR_PERMISSION, cause);
    }
    if lower.contains("invalidcontenttype") || lower.contains("corrupt message") {
        return (KVKEEP_ERR_IO, format!("the endpoint does not speak TLS ({root}); write endpoint=http://…"));
    }
    if lower.contains("certificate") || lower.contains("unknownissuer") {
        return (
            KVKEEP_ERR_IO,
            format!("the endpoint's certificate is not trusted ({root}); name its authority by ca=FILE"),
        );
    }
    let named = code.map_or(String::new(), |code| format!(" ({code})"));
    match error {
        ServiceError::NotFound { .. } => (KVKEEP_ERR_NOT_FOUND, format!("the service has no such object{named}")),
        ServiceError::PermissionDenied { .. } | ServiceError::Unauthenticated { .. } => {
            (KVKEEP_ERR_PERMISSION, format!("the service refuses access{named}; {}", service.permissions()))
        }
        _ if lower.contains("timed out") || lower.contains("timeout") => (
            KVKEEP_ERR_TIMEOUT,
            "the service does not answer in time; it hangs, or endpoint= names another host".into(),
        ),
        _ if lower.contains("refused")
            || lower.contains("lookup")
            || lower.contains("unreachable")
            || lower.contains("dns") =>
        {
            (KVKEEP_ERR_IO, format!("the endpoint cannot be reached ({root}); start the service, or correct endpoint="))
        }
        _ => match code {
            Some(code) => (KVKEEP_ERR_IO, format!("the service fails with {code}")),
            None => (KVKEEP_ERR_IO, root),
        },
    }
}

/// Failures without a success in between.
#[derive(Default)]
pub struct ServiceHealth {
    failures: AtomicU32,
    last: Mutex<String>,
}

impl ServiceHealth {
    /// A request failed for another reason than a missing object.
    pub fn failed(&self, error: &Error) {
        self.last.lock().clone_from(&error.message);
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    /// The service answered a request.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Release);
        }
    }

    /// The last failure, if there were many in a row.
    pub fn trouble(&self) -> Option<String> {
        (self.failures.load(Ordering::Acquire) >= FAILURES_MAX).then(|| self.last.lock().clone())
    }
}
