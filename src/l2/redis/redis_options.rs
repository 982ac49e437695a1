//! The URL of a Redis server: where it is, who we are there, and how it is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tls::{TlsSettings, tls_settings};
use crate::error::{Error, Result};
use crate::l2::url::{Parameters, Url, decode, size};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;
const CONNECTIONS_MAX: u64 = 64;
const DEPTH_MAX: u64 = 1024;
/// The largest value that Redis takes, less room for a header.
const PART_MAX: u64 = 511 << 20;
const PART_MIN: u64 = 1 << 20;
const WINDOW_MAX: u64 = 1 << 30;
const WINDOW_MIN: u64 = 64 << 10;

/// Where one server listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ServerAddress {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// A password. No message shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// The options of the `redis` backend.
pub struct RedisOptions {
    /// The server; of a cluster, those that are asked first; or Sentinels.
    pub servers: Vec<ServerAddress>,
    pub cluster: bool,
    /// The name of the master that the servers watch, which are Sentinels then.
    pub master: Option<String>,
    /// TLS, if connections are under it.
    pub tls: Option<TlsSettings>,
    /// The ACL user; empty for the server's default user.
    pub user: String,
    pub password: Option<Secret>,
    pub database: u32,
    /// Values are read from replicas where these can be used.
    pub read_from_replica: bool,
    /// Begins the name of every key.
    pub prefix: String,
    /// Seconds after its last use that an object lives, 0 for no end.
    pub ttl: u64,
    /// Connections that values move on. One more is for what has no value.
    pub connections: usize,
    /// Requests under way on one of them.
    pub depth: usize,
    /// Bytes of payloads under way on one of them above which no third request begins. A server lays all replies of a deep
    /// pipeline out in its memory before the client takes the first. Few bytes stay in the processor's caches.
    pub window: usize,
    /// Bytes of a payload above which an object is stored in parts.
    pub part: usize,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Longest silence of a server that owes answers.
    pub timeout: Duration,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ServerAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            ServerAddress::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid(format!("redis: {what}; write redis://user:password@host:6379/0 or redis+unix:///path/of/the.sock"))
}

impl ServerAddress {
    /// `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.
    pub fn parse(text: &str, default_port: u16) -> Result<ServerAddress> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) =
                    rest.split_once(']').ok_or_else(|| wrong("an IPv6 address has no closing bracket"))?;
                let inner: std::result::Result<std::net::Ipv6Addr, _> = host.split('%').next().unwrap_or(host).parse();
                inner.map_err(|_| wrong("the address in brackets is no IPv6 address"))?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")))
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(wrong("an IPv6 address stands in brackets")),
                Some((host, port)) => (host, Some(port).filter(|port| !port.is_empty())),
                None => (text, Some("")),
            },
        };
        let port = match port {
            Some("") => Some(default_port),
            Some(port) => port.parse().ok().filter(|&port| port > 0),
            None => None,
        };
        let port = port.ok_or_else(|| wrong("the port is no number from 1 to 65535"))?;
        match decode(host)? {
            host if host.is_empty() => Err(wrong("there is no host")),
            host => Ok(ServerAddress::Tcp { host, port }),
        }
    }
}

fn count(text: &str, most: u64) -> Result<usize> {
    match text.parse::<u64>() {
        Ok(count) if (1..=most).contains(&count) => Ok(count as usize),
        _ => Err(Error::invalid(format!("{text:?} is no number from 1 to {most}"))),
    }
}

/// Seconds as a number, or with a unit: `90`, `15m`, `12h`, `7d`.
fn seconds(text: &str) -> Result<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let each = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    // The server counts in milliseconds, in 63 bits.
    let seconds = each.and_then(|each: u64| number.parse::<u64>().ok()?.checked_mul(each));
    let seconds = seconds.filter(|&seconds| (1..=u64::from(u32::MAX)).contains(&seconds));
    seconds.ok_or_else(|| Error::invalid(format!("{text:?} is no time; write 3600, 90m, 12h or 7d")))
}

fn milliseconds(text: &str) -> Result<Duration> {
    Ok(Duration::from_millis(count(text, 600_000)? as u64))
}

fn part(text: &str) -> Result<usize> {
    match size(text)? {
        bytes if (PART_MIN..=PART_MAX).contains(&bytes) => Ok(bytes as usize),
        _ => Err(Error::invalid(format!("{text:?} is no size from 1MiB to 511MiB"))),
    }
}

fn window(text: &str) -> Result<usize> {
    match size(text)? {
        bytes if (WINDOW_MIN..=WINDOW_MAX).contains(&bytes) => Ok(bytes as usize),
        _ => Err(Error::invalid(format!("{text:?} is no size from 64KiB to 1GiB"))),
    }
}

fn is_replica(text: &str) -> Result<bool> {
    match text {
        "master" => Ok(false),
        "replica" => Ok(true),
        _ => Err(Error::invalid(format!("{text:?} is neither master nor replica"))),
    }
}

fn database(text: &str) -> Result<u32> {
    text.parse().map_err(|_| Error::invalid(format!("{text:?} is no number of a database")))
}

impl RedisOptions {
    /// The options in `redis://[user:password@]host[:port][/database]?…`, the same with `rediss://`, `redis+cluster://` and `rediss+cluster://` (with several
    /// hosts, by commas), `redis+sentinel://…host,host/master[/database]`, or `redis+unix://[user:password@]/path?…`.
    pub fn from_url(url: &Url) -> Result<RedisOptions> {
        let (authority, tail) = url
            .written
            .split_once('/')
            .map_or((url.written.as_str(), None), |(authority, tail)| (authority, Some(tail)));
        let (login, host) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
        let mut given = Parameters::new("redis", &url.params);
        let mut numbered = given.read("db", None, |text| database(text).map(Some))?;
        let (cluster, watched) = (url.scheme.ends_with("+cluster"), url.scheme.ends_with("+sentinel"));
        let (master, tail) = match (watched, tail) {
            (true, Some(tail)) => {
                let (name, rest) = tail.split_once('/').map_or((tail, None), |(name, rest)| (name, Some(rest)));
                (Some(decode(name)?).filter(|name| !name.is_empty()), rest)
            }
            (_, tail) => (None, tail),
        };
        if watched && master.is_none() {
            return Err(wrong(
                "behind the Sentinels stands the name of the master, redis+sentinel://host1,host2/master",
            ));
        }
        let servers = if url.scheme == "redis+unix" {
            match tail {
                Some(path) if host.is_empty() && !path.is_empty() => {
                    vec![ServerAddress::Unix(PathBuf::from(format!("/{}", decode(path)?)))]
                }
                _ => return Err(wrong("a Unix socket has an absolute path and no host")),
            }
        } else {
            if let Some(tail) = tail.filter(|tail| !tail.is_empty()) {
                if numbered.is_some() {
                    return Err(wrong("the database is given twice, behind the host and as db="));
                }
                numbered = Some(database(tail).map_err(|_| wrong("behind the host stands the number of a database"))?);
            }
            let hosts: Vec<&str> = host.split(',').collect();
            if hosts.len() > 1 && !cluster && !watched {
                return Err(wrong("only a cluster or Sentinels have several hosts"));
            }
            let port = if watched { SENTINEL_PORT } else { PORT };
            hosts.into_iter().map(|host| ServerAddress::parse(host, port)).collect::<Result<_>>()?
        };
        if cluster && numbered.is_some_and(|number| number != 0) {
            return Err(wrong("a cluster has no databases but 0"));
        }
        let (user, password) = login.map_or(Ok((String::new(), None)), read_login)?;
        let password = match given.text("password_file")? {
            Some(_) if password.is_some() => return Err(wrong("there is a password and a password_file=")),
            Some(file) => Some(read_password(file)?),
            None => password,
        };
        if password.is_none() && !user.is_empty() {
            return Err(wrong("there is a user and no password"));
        }
        let options = RedisOptions {
            servers,
            cluster,
            master,
            tls: read_tls(url.scheme.starts_with("rediss"), &mut given)?,
            user,
            password,
            database: numbered.unwrap_or(0),
            read_from_replica: given.read("read_from", false, is_replica)?,
            prefix: given.text("prefix")?.unwrap_or("kvkeep:").to_owned(),
            ttl: given.read("ttl", 0, seconds)?,
            connections: given.read("connections", 4, |text| count(text, CONNECTIONS_MAX))?,
            depth: given.read("depth", 64, |text| count(text, DEPTH_MAX))?,
            window: given.read("window", 512 << 10, window)?,
            part: given.read("part", 64 << 20, part)?,
            connect_timeout: given.read("connect_ms", Duration::from_secs(5), milliseconds)?,
            timeout: given.read("timeout_ms", Duration::from_secs(5), milliseconds)?,
        };
        given.finish()?;
        Ok(options)
    }
}

/// The settings of TLS; without TLS, the parameters of it are refused as unknown ones.
fn read_tls(on: bool, given: &mut Parameters<'_>) -> Result<Option<TlsSettings>> {
    if !on {
        return Ok(None);
    }
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| given.text(name));
    let own = match (cert?, key?) {
        (Some(cert), Some(key)) => Some((Path::new(cert), Path::new(key))),
        (None, None) => None,
        _ => return Err(wrong("of cert= and key= only one is given")),
    };
    tls_settings(ca?.map(Path::new), own).map(Some)
}

fn read_login(login: &str) -> Result<(String, Option<Secret>)> {
    let hide = |_| wrong("the user or the password is not percent-encoded");
    match login.split_once(':') {
        Some((user, password)) => Ok((decode(user).map_err(hide)?, Some(Secret(decode(password).map_err(hide)?)))),
        None => Err(wrong("before the @ stands no user:password")),
    }
}

/// The first line of a file.
fn read_password(file: &str) -> Result<Secret> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error::io(format!("redis: reading password_file={file}"), &error))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Secret(line.to_owned())),
        _ => Err(Error::invalid(format!("redis: the first line of password_file={file} is empty"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Result<RedisOptions> {
        RedisOptions::from_url(&Url::parse(url)?)
    }

    fn refusal(url: &str) -> String {
        options(url).map(|_| ()).unwrap_err().message
    }

    fn tcp(host: &str, port: u16) -> ServerAddress {
        ServerAddress::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn a_url_names_a_server_and_who_we_are_there() {
        for (url, server, shown) in [
            ("redis://host", tcp("host", 6379), "host:6379"),
            ("redis://1.2.3.4:7000/", tcp("1.2.3.4", 7000), "1.2.3.4:7000"),
            ("redis://[::1]:7000/3", tcp("::1", 7000), "[::1]:7000"),
            ("redis://[fe80::1]", tcp("fe80::1", 6379), "[fe80::1]:6379"),
            ("redis+unix:///run/a%20b.sock?db=3", ServerAddress::Unix("/run/a b.sock".into()), "/run/a b.sock"),
        ] {
            let options = options(url).unwrap();
            assert_eq!(options.servers[0].to_string(), shown);
            assert_eq!(options.servers, [server]);
            assert_eq!(options.database, if url.ends_with('3') { 3 } else { 0 }, "{url}");
        }
        let cluster = options("redis+cluster://a,[::1]:7000,b:1/").unwrap();
        assert_eq!((cluster.cluster, cluster.servers), (true, vec![tcp("a", 6379), tcp("::1", 7000), tcp("b", 1)]));
        let watched = options("redis+sentinel://a,b:1/main/3").unwrap();
        assert_eq!((watched.master.as_deref(), watched.database), (Some("main"), 3));
        assert_eq!(watched.servers, [tcp("a", 26_379), tcp("b", 1)]);
        let login = options("redis://me:p%40s%2Fs%3A@host:1/2").unwrap();
        assert_eq!((login.user.as_str(), login.password), ("me", Some(Secret("p@s/s:".to_owned()))));
        let login = options("redis://:pass@host").unwrap();
        assert_eq!((login.user.as_str(), login.password), ("", Some(Secret("pass".to_owned()))));
        assert_eq!(format!("{:?}", Secret("pass".to_owned())), "…");
    }

    #[test]
    fn a_password_may_stand_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "p4ss w\n").unwrap();
        let url = format!("redis://host?password_file={}", file.display());
        assert_eq!(options(&url).unwrap().password, Some(Secret("p4ss w".to_owned())));
        std::fs::write(&file, "\n").unwrap();
        assert!(refusal(&url).contains("is empty"));
        assert!(refusal("redis://host?password_file=/nowhere/x").contains("/nowhere/x"));
        assert!(refusal("redis://:a@host?password_file=/nowhere/x").contains("and a password_file"));
    }

    #[test]
    fn options_have_defaults_and_bounds() {
        let all = "redis://h?prefix=a:&ttl=12h&connections=8&depth=3&window=4MiB&part=8MiB&connect_ms=7&timeout_ms=9";
        let all = options(all).unwrap();
        assert_eq!((all.prefix.as_str(), all.ttl, all.connections, all.depth), ("a:", 43_200, 8, 3));
        assert_eq!((all.window, all.part), (4 << 20, 8 << 20));
        assert_eq!((all.connect_timeout, all.timeout), (Duration::from_millis(7), Duration::from_millis(9)));
        assert!(options("redis+cluster://h?read_from=replica").unwrap().read_from_replica);
        let none = options("redis://h?read_from=master").unwrap();
        assert!(!none.read_from_replica);
        assert_eq!((none.prefix.as_str(), none.ttl, none.connections, none.window), ("kvkeep:", 0, 4, 512 << 10));
        for (name, value) in [
            ("ttl", "0"),
            ("ttl", "1w"),
            ("connections", "0"),
            ("connections", "65"),
            ("depth", "x"),
            ("window", "63KiB"),
            ("window", "2GiB"),
            ("part", "1"),
            ("part", "512MiB"),
            ("timeout_ms", "0"),
            ("db", "-1"),
            ("read_from", "any"),
            ("prefx", "a"),
        ] {
            let message = refusal(&format!("redis://h?{name}={value}"));
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_with_the_right_form_and_without_its_secret() {
        for url in [
            "redis:",
            "redis://",
            "redis://:p4ss@",
            "redis://p4ss@host",
            "redis://host:x",
            "redis://host:0",
            "redis://host:",
            "redis://host:70000",
            "redis://::1",
            "redis://[::1",
            "redis://[::1]x",
            "redis://[host]:1",
            "redis://host/x",
            "redis://host/1?db=1",
            "redis://a,b",
            "redis+sentinel://a",
            "redis+sentinel://a//1",
            "redis+cluster://a,",
            "redis+cluster://a/1",
            "redis+unix://host/path",
            "redis+unix://",
            "redis+unix:///",
        ] {
            let message = refusal(url);
            assert!(message.contains("write redis://") && !message.contains("p4ss"), "{url}: {message}");
        }
    }
}
