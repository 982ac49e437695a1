//! The URLs that name backends: `scheme:path?name=value&…`, percent-encoded, every name checked.

use std::time::Duration;

use crate::error::{Error, Result};

/// A URL in its parts, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    /// The part before the first colon, in lower case.
    pub scheme: String,
    /// The part between the colon (and `//`, if it is there) and the question mark.
    pub path: String,
    /// As `path`, as it was written: where a user and a password may stand in it, it is taken apart before it is decoded.
    pub written: String,
    /// The parameters in their order.
    pub params: Vec<(String, String)>,
}

/// The error of a URL that has a part which must not be shown.
const NOT_ENCODED: &str = "the URL is not percent-encoded UTF-8, or a parameter of it has no value; write the characters %, @, \
                           /, ? and & of a user or a password as %25, %40, %2F, %3F and %26";

/// The scheme in lower case, and everything after its colon; none where `url` does not begin with a scheme.
pub(super) fn split_scheme(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    (!scheme.is_empty() && scheme.bytes().all(fits)).then(|| (scheme.to_ascii_lowercase(), rest))
}

/// A URL as people may see it: without the user and password before its host, and without the values of parameters that are secret
/// by their names.
pub fn without_secrets(url: &str) -> String {
    const SECRET: [&str; 5] = ["key", "secret", "token", "password", "signature"];
    let url = &without_login(url);
    let (base, query) = url.split_once('?').map_or((url.as_str(), None), |(base, query)| (base, Some(query)));
    let mut shown = match base.split_once("//") {
        Some((scheme, rest)) => {
            let host = rest.find('/').unwrap_or(rest.len());
            let from = rest[..host].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}//{}", &rest[from..])
        }
        None => base.to_owned(),
    };
    for (place, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name_is_secret = SECRET.iter().any(|word| name.to_ascii_lowercase().contains(word));
        let value = if name_is_secret { "…" } else { value };
        shown += &format!("{}{name}={value}", if place == 0 { '?' } else { '&' });
    }
    shown
}

/// Leaves out all up to the last `@` of a Redis URL: a password that should have been percent-encoded may have any character.
fn without_login(url: &str) -> String {
    match url.split_once("//") {
        Some((scheme, rest)) if scheme.to_ascii_lowercase().contains("redis") => {
            let from = rest.rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}//{}", &rest[from..])
        }
        _ => url.to_owned(),
    }
}

/// Decodes parameters written as `name=value`.
pub(super) fn parse_pairs<'a>(pairs: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>> {
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((decode(name)?, decode_value(value)?)),
            None => Err(Error::invalid(format!("the URL's parameter {pair:?} has no value; write {pair}=…"))),
        })
        .collect()
}

/// As [`decode`]; a percent sign at the end of a value stands for itself, so that a share can be written as 5%.
fn decode_value(text: &str) -> Result<String> {
    match text.strip_suffix('%') {
        Some(share) => Ok(decode(share)? + "%"),
        None => decode(text),
    }
}

pub(super) fn decode(text: &str) -> Result<String> {
    let wrong = || Error::invalid(format!("{text:?} is not percent-encoded UTF-8; write a percent sign as %25"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let [byte] = pair.and_then(crate::key::unhex).ok_or_else(wrong)?;
        bytes.push(byte);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

impl Url {
    /// Takes a URL apart. No error has a user or a password.
    pub fn parse(url: &str) -> Result<Url> {
        let (scheme, rest) = split_scheme(url).ok_or_else(|| {
            Error::invalid(format!("{:?} is no URL; write scheme:path?name=value", without_secrets(url)))
        })?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let written = path.strip_prefix("//").unwrap_or(path);
        let login = rest.contains('@');
        let hide = |error: Error| if login { Error::invalid(NOT_ENCODED) } else { error };
        let path = decode(written).map_err(hide)?;
        let params = parse_pairs(query.split('&').filter(|pair| !pair.is_empty())).map_err(hide)?;
        Ok(Url { scheme, path, written: written.to_owned(), params })
    }
}

/// A size in bytes as text: a number and, if any, a binary unit (`4096`, `64M`, `200GiB`).
pub fn size(text: &str) -> Result<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1000 * 1000),
        "gb" => Some(1000 * 1000 * 1000),
        "tb" => Some(1000 * 1000 * 1000 * 1000),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        "t" | "tib" => Some(1 << 40),
        _ => None,
    };
    unit.and_then(|unit: u64| number.parse::<u64>().ok()?.checked_mul(unit))
        .ok_or_else(|| Error::invalid(format!("{text:?} is no size; write 4096, 64MiB or 200GiB")))
}

/// True or false as text.
pub fn boolean(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(Error::invalid(format!("{text:?} is neither true nor false"))),
    }
}

/// The parameters of one backend, read by name; [`finish`](Parameters::finish) refuses those that were not read.
pub struct Parameters<'a> {
    of: &'static str,
    pairs: &'a [(String, String)],
    known: Vec<&'static str>,
}

impl<'a> Parameters<'a> {
    /// The parameters of the backend `of`.
    pub fn new(of: &'static str, pairs: &'a [(String, String)]) -> Parameters<'a> {
        Parameters { of, pairs, known: Vec::new() }
    }

    /// The value of `name`, if it is given.
    pub fn text(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        self.known.push(name);
        let mut values = self.pairs.iter().filter(|(given, _)| given == name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(self.wrong(name, "it is given twice; keep one")),
            (value, None) => Ok(value.map(|(_, value)| value.as_str())),
        }
    }

    /// The value of `name` as `read` understands it, or `default`.
    pub fn read<T>(&mut self, name: &'static str, default: T, read: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let Some(text) = self.text(name)? else { return Ok(default) };
        read(text).map_err(|error| self.wrong(name, &error.message))
    }

    /// The bytes that a backend may take: the size that `capacity` gives.
    pub fn capacity(&mut self, default: u64) -> Result<u64> {
        let read = |text: &str| match size(text)? {
            0 => Err(Error::invalid("0 has room for nothing; write a size such as 200GiB, or leave it out")),
            bytes => Ok(bytes),
        };
        self.read("capacity", default, read)
    }

    /// The truth that `name` gives.
    pub fn boolean(&mut self, name: &'static str, default: bool) -> Result<bool> {
        self.read(name, default, boolean)
    }

    /// The whole number that `name` gives.
    pub fn number(&mut self, name: &'static str, default: u64) -> Result<u64> {
        let read = |text: &str| text.parse().map_err(|_| Error::invalid(format!("{text:?} is no whole number")));
        self.read(name, default, read)
    }

    /// The whole number of at most 32 bits that `name` gives.
    pub fn count(&mut self, name: &'static str, default: u32) -> Result<u32> {
        let count = self.number(name, default.into())?;
        u32::try_from(count).map_err(|_| self.wrong(name, &format!("{count} is too large; it is at most {}", u32::MAX)))
    }

    /// The milliseconds that `name` gives.
    pub fn milliseconds(&mut self, name: &'static str, default: u64) -> Result<Duration> {
        Ok(Duration::from_millis(self.number(name, default)?))
    }

    /// The probability, 0 to 1, that `name` gives; 0 by default.
    pub fn chance(&mut self, name: &'static str) -> Result<f64> {
        let read = |text: &str| match text.parse::<f64>() {
            Ok(chance) if (0.0..=1.0).contains(&chance) => Ok(chance),
            _ => Err(Error::invalid(format!("{text:?} is no probability; write a number from 0 to 1"))),
        };
        self.read(name, 0.0, read)
    }

    /// The error that parameter `name` is wrong because of `cause`.
    pub fn wrong(&self, name: &str, cause: &str) -> Error {
        Error::invalid(format!("the parameter {name} of {}: {cause}", self.of))
    }

    /// Fails if a parameter was given that was not asked for.
    pub fn finish(self) -> Result<()> {
        let stray = self.pairs.iter().find(|(name, _)| !self.known.contains(&name.as_str()));
        match stray {
            Some((name, _)) => {
                let known = self.known.join(", ");
                Err(Error::invalid(format!("{} has no parameter {name:?}; it takes {known}", self.of)))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_no_secrets() {
        let plain = "fault:fs:///a@b/c?capacity=1GiB&fault.flip=1";
        assert_eq!(without_secrets(plain), plain);
        assert_eq!(without_secrets("memory:"), "memory:");
        assert_eq!(
            without_secrets("s3://me:pass@host:9000/bucket?region=x&SecretKey=abc&session_token=d"),
            "s3://host:9000/bucket?region=x&SecretKey=…&session_token=…"
        );
        for login in ["u:p4ss@", ":p4s/s@", "u:p@4?s#s@", "u:p&4s=s@"] {
            assert_eq!(without_secrets(&format!("redis://{login}h:1/2?ttl=1")), "redis://h:1/2?ttl=1");
            assert_eq!(without_secrets(&format!("fault:REDIS+unix://{login}/s?ttl=1")), "fault:REDIS+unix:///s?ttl=1");
        }
        for url in ["redis://u:p4ss%zz@h", "redis://:p?4ss@h", "redis ://:p4ss@h", "redis://:%ffp4ss@h?x"] {
            let message = Url::parse(url).unwrap_err().message;
            assert!(!message.contains("4ss"), "{message}");
        }
    }

    fn parts(url: &str) -> (String, String, Vec<(String, String)>) {
        let Url { scheme, path, params, .. } = Url::parse(url).unwrap();
        (scheme, path, params)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_url_comes_apart() {
        assert_eq!(parts("memory:"), ("memory".into(), String::new(), vec![]));
        assert_eq!(parts("FS:///var/cache"), ("fs".into(), "/var/cache".into(), vec![]));
        assert_eq!(parts("redis+cluster://host:6379"), ("redis+cluster".into(), "host:6379".into(), vec![]));
        let (_, path, params) = parts("fs:///a%20b%2f%C3%A4?capacity=1G&name=%3D%26&&x=");
        assert_eq!((path.as_str(), params), ("/a b/ä", pairs(&[("capacity", "1G"), ("name", "=&"), ("x", "")])));
    }

    #[test]
    fn a_share_is_written_with_a_percent_sign_or_an_encoded_one() {
        for url in ["fs:///a?min_free=5%&capacity=1G", "fs:///a?min_free=5%25&capacity=1G"] {
            assert_eq!(parts(url).2, pairs(&[("min_free", "5%"), ("capacity", "1G")]));
        }
        assert!(Url::parse("fs:///a?min_free=5%%").is_err() && Url::parse("fs:///a?min_free=%5&x=1").is_err());
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in ["", "memory", ":x", "a b:c", "memory:?capacity", "fs:///%", "fs:///%2", "fs:///%zz", "fs:///%ff"] {
            assert!(Url::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64M", 64 << 20), ("64MB", 64_000_000), ("3 kB", 3000), ("200GiB", 200 << 30)]
        {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GiB", "-1", "1.5G", "1 X", "16777216TiB", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
