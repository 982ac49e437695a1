//! The options of a backend in a bucket, and their form in a URL.

use std::path::PathBuf;
use std::time::Duration;

use super::object_service::ObjectService;
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
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ServerChecksum {
    /// None beside kvkeep's own.
    #[default]
    None,
    /// `x-amz-checksum-sha256`.
    Sha256,
    /// `x-amz-checksum-crc64nvme`.
    Crc64Nvme,
}

/// How to open a prefix of a bucket.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The kind of service.
    pub service: ObjectService,
    /// The storage account of `az:`, if it is given.
    pub account: Option<String>,
    /// The bucket's name.
    pub bucket: String,
    /// What the names of all objects begin with, without slashes at its ends. Empty: the whole bucket.
    pub prefix: String,
    /// The service's URL. None: the provider's own.
    pub endpoint: Option<String>,
    /// The part that only S3 has.
    pub aws: AwsOptions,
    /// A file of access keys, in the usual form of the service.
    pub credentials: Option<PathBuf>,
    /// Requests are not signed.
    pub anonymous: bool,
    /// A PEM file of certificates to trust beside the system's, and the parameter or variable that names it.
    pub ca: Option<(PathBuf, &'static str)>,
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
}

/// The options of S3 alone.
#[derive(Clone, Default, Debug)]
pub struct AwsOptions {
    /// The region that requests are signed for.
    pub region: Option<String>,
    /// The bucket stands in the path of requests, not in the host's name.
    pub path_style: bool,
    /// The section of the file of access keys.
    pub profile: String,
    /// The checksum that the server verifies.
    pub checksum: ServerChecksum,
    /// The signature covers the payload.
    pub sign_payload: bool,
    /// Many objects are deleted by one request.
    pub bulk_delete: bool,
}

/// Least bytes of a part: S3 takes no smaller ones, but for the last.
const PART_MIN: u64 = 5 << 20;
/// Most bytes of a part.
const PART_MAX: u64 = 1 << 30;

impl S3Options {
    /// The options in the URL `s3://bucket/prefix?…`, or in one of `gs:` or `az:`.
    pub fn parse(url: &Url) -> Result<S3Options> {
        let service = ObjectService::of_scheme(&url.scheme);
        let scheme = service.scheme();
        let (bucket, prefix) = url.path.split_once('/').unwrap_or((&url.path, ""));
        let keys = service.ways_to_give_keys();
        if bucket.contains('@') {
            let message = format!("{scheme}: secrets do not belong into a URL: remove the part up to @; {keys}");
            return Err(Error::invalid(message));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(fits) {
            let (word, example) = (service.bucket(), service.example());
            return Err(Error::invalid(format!("{bucket:?} is no {word}'s name; write {example}")));
        }
        let prefix = prefix.trim_matches('/');
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/=+!".contains(&byte);
        if !prefix.bytes().all(fits)
            || prefix.split('/').any(|part| [".", ".."].contains(&part))
            || prefix.contains("//")
        {
            return Err(Error::invalid(format!(
                "the prefix {prefix:?} of {scheme}: write letters, digits and -._/=+! only, and no empty part, . or .."
            )));
        }
        let mut options = Parameters::new(scheme, &url.params);
        for secret in ["access_key", "secret_key", "session_token", "account_key", "sas_token", "bearer_token"] {
            if options.text(secret)?.is_some() {
                return Err(options.wrong(secret, &format!("secrets do not belong into a URL: {keys}")));
            }
        }
        let mut options = Parameters::new(scheme, &url.params);
        let set = |name: &&'static str| Some((*name, std::env::var(name).ok().filter(|url| !url.is_empty())?));
        let endpoint = match options.text("endpoint")? {
            Some(endpoint) => Some(checked_endpoint(endpoint).map_err(|cause| options.wrong("endpoint", cause))?),
            None => match service.endpoint_variables().iter().find_map(set) {
                Some((name, endpoint)) => Some(checked_endpoint(&endpoint).map_err(|cause| {
                    Error::invalid(format!("the environment's {name}, since {scheme} has no endpoint=: {cause}"))
                })?),
                None => None,
            },
        };
        let aws = match service {
            ObjectService::S3 => AwsOptions::parse(&mut options, endpoint.as_deref())?,
            ObjectService::Google | ObjectService::Azure => AwsOptions::default(),
        };
        let account = match service {
            ObjectService::Azure => options.text("account")?.map(str::to_owned),
            ObjectService::S3 | ObjectService::Google => None,
        };
        let parsed = S3Options {
            service,
            account,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint,
            aws,
            credentials: options.text("credentials")?.map(PathBuf::from),
            anonymous: options.boolean("anonymous", false)?,
            ca: match options.text("ca")? {
                Some(file) => Some((PathBuf::from(file), "ca=")),
                None => service.ca_variable().and_then(|name| Some((std::env::var_os(name)?.into(), name))),
            },
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
            retries: bounded(&mut options, "retries", 3, 0..=20)?,
            connect: wait(&mut options, "connect_ms", 3_000)?,
            stall: wait(&mut options, "stall_ms", 10_000)?,
            open: wait(&mut options, "open_ms", 10_000)?,
            index: bounded(&mut options, "index", 1 << 18, 1024..=1 << 26)?,
        };
        options.finish()?;
        Ok(parsed)
    }

    /// The place for people: bucket, prefix, and endpoint or account.
    pub fn place(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let bucket = format!("{}://{}{slash}{}", self.service.scheme(), self.bucket, self.prefix);
        match (&self.endpoint, &self.account) {
            (Some(endpoint), _) => format!("{bucket} at {endpoint}"),
            (None, Some(account)) => format!("{bucket} of the account {account}"),
            (None, None) => bucket,
        }
    }
}

impl AwsOptions {
    fn parse(options: &mut Parameters<'_>, endpoint: Option<&str>) -> Result<AwsOptions> {
        let is_plain = endpoint.is_some_and(|url| url.starts_with("http://"));
        Ok(AwsOptions {
            region: options.text("region")?.map(str::to_owned),
            path_style: options.boolean("path_style", endpoint.is_some())?,
            profile: options.text("profile")?.unwrap_or("default").to_owned(),
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
            bulk_delete: options.boolean("bulk_delete", true)?,
        })
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
