//! The options of a backend in a bucket, and their form in a URL.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::l2::url::{Parameters, Url, size};

/// How a store keeps an object that another process has stored meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conditional {
    /// `If-None-Match: *`, until the server says that it does not know that.
    Auto,
    /// `If-None-Match: *` always.
    On,
    /// The later store replaces the object.
    Off,
}

/// The checksum that the server is asked to verify and keep with an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServerChecksum {
    /// None beside kvkeep's own.
    None,
    /// `x-amz-checksum-sha256`.
    Sha256,
    /// `x-amz-checksum-crc64nvme`.
    Crc64Nvme,
}

/// How to open a prefix of a bucket.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What the names of all objects begin with, without slashes at its ends. Empty: the whole bucket.
    pub prefix: String,
    /// The service's URL. None: the one of AWS.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// The bucket stands in the path of requests, not in the host's name.
    pub path_style: bool,
    /// A file of access keys, in the form of `~/.aws/credentials`.
    pub credentials: Option<PathBuf>,
    /// The section of that file.
    pub profile: String,
    /// Requests are not signed.
    pub anonymous: bool,
    /// A PEM file of certificates to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// Objects above this size are written in parts and read in ranges of this size.
    pub part_bytes: u64,
    /// Loads, and stores, under way at once.
    pub depth: usize,
    /// Questions for single objects under way at once.
    pub lookups: usize,
    /// Threads that move the bytes.
    pub threads: usize,
    /// How long an object that was not there is taken for absent without asking.
    pub absent: Duration,
    /// List the prefix after opening.
    pub list: bool,
    /// Other processes store under the prefix too.
    pub shared: bool,
    /// How a store treats an object that is there.
    pub conditional: Conditional,
    /// The checksum that the server verifies.
    pub checksum: ServerChecksum,
    /// The signature covers the payload.
    pub sign_payload: bool,
    /// Times a request is tried again.
    pub retries: usize,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest time without a byte from the server.
    pub stall: Duration,
    /// Longest wait for the first answer.
    pub open: Duration,
    /// Most objects that are remembered as present.
    pub index: usize,
    /// Many objects are deleted by one request.
    pub bulk_delete: bool,
}

/// Least bytes of a part: S3 takes no smaller ones, but for the last.
const PART_MIN: u64 = 5 << 20;
/// Most bytes of a part.
const PART_MAX: u64 = 1 << 30;

impl S3Options {
    /// The options in the URL `s3://bucket/prefix?…`.
    pub fn parse(url: &Url) -> Result<S3Options> {
        let (bucket, prefix) = url.path.split_once('/').unwrap_or((&url.path, ""));
        if bucket.contains('@') {
            return Err(Error::invalid(
                "s3: secrets do not belong into a URL: remove the part up to @; set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, or name a file by credentials=",
            ));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(fits) {
            return Err(Error::invalid(format!("{bucket:?} is no bucket's name; write s3://bucket/prefix?endpoint=…")));
        }
        let prefix = prefix.trim_matches('/');
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/=+!".contains(&byte);
        if !prefix.bytes().all(fits)
            || prefix.split('/').any(|part| [".", ".."].contains(&part))
            || prefix.contains("//")
        {
            return Err(Error::invalid(format!(
                "the prefix {prefix:?} of s3: write letters, digits and -._/=+! only, and no empty part, . or .."
            )));
        }
        let mut options = Parameters::new("s3", &url.params);
        for secret in ["access_key", "secret_key", "session_token"] {
            if options.text(secret)?.is_some() {
                return Err(options.wrong(
                    secret,
                    "secrets do not belong into a URL: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, \
                     or name a file by credentials=",
                ));
            }
        }
        let mut options = Parameters::new("s3", &url.params);
        let environment = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
        let of_environment = environment.iter().find_map(|name| std::env::var(name).ok().filter(|url| !url.is_empty()));
        let endpoint = match options.text("endpoint")? {
            Some(endpoint) => Some(checked_endpoint(endpoint).map_err(|cause| options.wrong("endpoint", cause))?),
            None => match of_environment {
                Some(endpoint) => Some(checked_endpoint(&endpoint).map_err(|cause| {
                    Error::invalid(format!("the environment's AWS_ENDPOINT_URL, since s3 has no endpoint=: {cause}"))
                })?),
                None => None,
            },
        };
        let is_plain = endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
        let parsed = S3Options {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region: options.text("region")?.map(str::to_owned),
            path_style: options.boolean("path_style", endpoint.is_some())?,
            endpoint,
            credentials: options.text("credentials")?.map(PathBuf::from),
            profile: options.text("profile")?.unwrap_or("default").to_owned(),
            anonymous: options.boolean("anonymous", false)?,
            ca: options.text("ca")?.map(PathBuf::from),
            part_bytes: options.read("part_size", 8 << 20, |text| match size(text)? {
                bytes @ PART_MIN..=PART_MAX => Ok(bytes),
                _ => Err(Error::invalid(format!("{text:?} is not from 5MiB to 1GiB"))),
            })?,
            depth: bounded(&mut options, "depth", 32, 1..=1024)?,
            lookups: bounded(&mut options, "lookups", 64, 1..=1024)?,
            threads: bounded(&mut options, "threads", 2, 1..=64)?,
            absent: options.milliseconds("absent_ms", 100)?,
            list: options.boolean("list", false)?,
            shared: options.boolean("shared", true)?,
            conditional: match options.text("conditional")?.unwrap_or("auto") {
                "auto" => Conditional::Auto,
                "on" => Conditional::On,
                "off" => Conditional::Off,
                other => return Err(options.wrong("conditional", &format!("{other:?} is neither auto, on nor off"))),
            },
            checksum: match options.text("checksum")?.unwrap_or("none") {
                "none" => ServerChecksum::None,
                "sha256" => ServerChecksum::Sha256,
                "crc64nvme" => ServerChecksum::Crc64Nvme,
                other => {
                    let cause = format!("{other:?} is neither none, sha256 nor crc64nvme");
                    return Err(options.wrong("checksum", &cause));
                }
            },
            sign_payload: options.boolean("sign_payload", is_plain)?,
            retries: bounded(&mut options, "retries", 3, 0..=20)?,
            connect: wait(&mut options, "connect_ms", 3_000)?,
            stall: wait(&mut options, "stall_ms", 10_000)?,
            open: wait(&mut options, "open_ms", 10_000)?,
            index: bounded(&mut options, "index", 1 << 18, 1024..=1 << 26)?,
            bulk_delete: options.boolean("bulk_delete", true)?,
        };
        options.finish()?;
        Ok(parsed)
    }

    /// The place for people: bucket, prefix and endpoint.
    pub fn place(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        match &self.endpoint {
            Some(endpoint) => format!("s3://{}{slash}{} at {endpoint}", self.bucket, self.prefix),
            None => format!("s3://{}{slash}{}", self.bucket, self.prefix),
        }
    }
}

/// The whole number that `name` gives, if it is in `range`.
fn bounded(
    options: &mut Parameters<'_>,
    name: &'static str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<usize> {
    let number = options.number(name, default)?;
    if !range.contains(&number) {
        return Err(options.wrong(name, &format!("{number} is not from {} to {}", range.start(), range.end())));
    }
    Ok(number as usize)
}

/// The milliseconds that `name` gives, from 1 to an hour.
fn wait(options: &mut Parameters<'_>, name: &'static str, default: u64) -> Result<Duration> {
    Ok(Duration::from_millis(bounded(options, name, default, 1..=3_600_000)? as u64))
}

/// An endpoint without a slash at its end, or the reason why it is none. The reason does not repeat it: there may be secrets in it.
fn checked_endpoint(endpoint: &str) -> std::result::Result<String, &'static str> {
    let endpoint = endpoint.trim_end_matches('/');
    let Some(rest) = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")) else {
        return Err("it is no URL of a service; write http://host:port or https://host:port");
    };
    if rest.contains('@') {
        return Err("secrets do not belong into a URL: remove the part up to @");
    }
    let host = rest.split('/').next().unwrap_or("");
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]/~".contains(&byte);
    if host.is_empty() || host.starts_with(':') || !rest.bytes().all(fits) {
        return Err("it has no host, or signs that belong to none; write http://host:port or https://host:port");
    }
    let port = match host.rsplit_once(']') {
        Some((_, after)) => after.strip_prefix(':'),
        None => host.split_once(':').map(|(_, port)| port),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("its port is no number up to 65535; write http://host:port or https://host:port");
    }
    Ok(endpoint.to_owned())
}

#[cfg(test)]
#[path = "../tests/s3_options.rs"]
mod tests;
