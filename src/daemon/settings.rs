//! The settings of a daemon: flags, and a TOML file of the same names. Flags win over the file.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use super::accounts::{GroupId, UserId};
use super::server::{Access, Limits};
use super::trace_file::check_trace;
use crate::config::{NodeConfig, StoreMode};
use crate::error::{Error, Result};
use crate::l2::url;
use crate::log::{Log, LogLevel};
use crate::memory_bounds::MemoryBounds;

/// Most bytes of a recording, unless another number is given.
const TRACE_BYTES: Size = Size(1 << 30);

/// A number of bytes, written like `64MiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = Error;
    fn from_str(text: &str) -> Result<Size> {
        url::size(text).map(Size)
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The size of L1: bytes, written like `8GiB`, or a share of the memory that the process may use, written like `70%`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L1Size {
    /// A number of bytes.
    Bytes(u64),
    /// So many percent of what the machine has, or of the control group's limit where that is less.
    Percent(u32),
}

impl FromStr for L1Size {
    type Err = Error;
    fn from_str(text: &str) -> Result<L1Size> {
        let Some(number) = text.strip_suffix('%') else { return url::size(text).map(L1Size::Bytes) };
        match number.trim_end().parse() {
            Ok(percent @ 1..=100) => Ok(L1Size::Percent(percent)),
            _ => Err(Error::invalid(format!("{text:?} is no share of the memory; write 1% to 100%"))),
        }
    }
}

impl Display for L1Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            L1Size::Bytes(bytes) => Size(bytes).fmt(f),
            L1Size::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A file's mode, written in octal like `0660`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = Error;
    fn from_str(text: &str) -> Result<FileMode> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(FileMode(mode)),
            _ => Err(Error::invalid(format!("{text:?} is no file mode; write three octal digits like 0660"))),
        }
    }
}

impl Display for FileMode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// Users who alone may open a tenant's spaces, written like `acme=alice,1001`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tenant(String, Vec<UserId>);

impl FromStr for Tenant {
    type Err = Error;
    fn from_str(text: &str) -> Result<Tenant> {
        let wrong = || Error::invalid(format!("{text:?} is no tenant with its users; write acme=alice,1001"));
        let (name, users) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Tenant(name.to_owned(), users.split(',').map(str::parse).collect::<Result<_>>()?))
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}
as_text!(Size);
as_text!(L1Size);
as_text!(FileMode);

/// How much the log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What a person should look at.
    Error,
    /// Also what was refused, dropped or retried.
    Warn,
    /// Also what was opened, closed, added and removed.
    Info,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> LogLevel {
        match level {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
        }
    }
}

/// When a committed object is written to L2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum StoreSetting {
    /// After its commit.
    WriteThrough,
    /// When background eviction chooses it.
    WriteBack,
    /// After so many reads as store-after-uses says.
    AfterUses,
    /// Never.
    Never,
}

/// Everything that may be set, by flag or in the file. What is not set has its default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Size of L1, like 8GiB, or like 70% of the machine's memory or of the control group's limit, whichever is less
    #[arg(long, value_name = "SIZE")]
    pub l1: Option<L1Size>,
    /// A backend below L1, like fs:///var/cache/kvkeep?capacity=200GiB; give it again for more, in the order they are asked
    #[arg(long, value_name = "URL")]
    pub l2: Vec<String>,
    /// The Unix socket that engines connect to
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where to answer HTTP, like 127.0.0.1:9400. Not given: nowhere
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// How much to log [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<Level>,
    /// Record the requests in this file, for kvkeep replay: salted hashes, sizes and times, no tokens. Not given: nowhere
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Most bytes of the recording: its older half is FILE.1, and what is older is gone [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub trace_bytes: Option<Size>,

    /// Eviction policy of L1: lru, s3fifo, mq or none [default: lru]
    #[arg(long, value_name = "NAME", help_heading = "L1")]
    pub policy: Option<String>,
    /// Background eviction starts above this share of L1; 100 is never [default: 80]
    #[arg(long, value_name = "PERCENT", help_heading = "L1")]
    pub watermark_high_percent: Option<u32>,
    /// Background eviction stops at this share of L1 [default: 60]
    #[arg(long, value_name = "PERCENT", help_heading = "L1")]
    pub watermark_low_percent: Option<u32>,
    /// Back L1 with reserved huge pages
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "L1")]
    pub huge_pages: Option<bool>,
    /// Bind L1 to this NUMA node
    #[arg(long, value_name = "NODE", help_heading = "L1")]
    pub numa_node: Option<u32>,
    /// Do not touch L1's pages ahead of their first use
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "L1")]
    pub no_prefault: Option<bool>,

    /// When objects are written to L2 [default: write-through]
    #[arg(long, value_name = "MODE", help_heading = "L2")]
    pub store: Option<StoreSetting>,
    /// For --store after-uses: reads before an object is written [default: 2]
    #[arg(long, value_name = "COUNT", help_heading = "L2")]
    pub store_after_uses: Option<u32>,
    /// Neither make nor verify checksums of objects in L2
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "L2")]
    pub no_checksum: Option<bool>,
    /// Deadline of one request to a backend [default: 30000]
    #[arg(long, value_name = "MS", help_heading = "L2")]
    pub backend_timeout_ms: Option<u32>,
    /// Most bytes being loaded from L2 at once [default: a quarter of L1, at most 1GiB]
    #[arg(long, value_name = "SIZE", help_heading = "L2")]
    pub loading_bytes_max: Option<Size>,
    /// Most objects waiting to be written to L2 [default: 65536]
    #[arg(long, value_name = "COUNT", help_heading = "L2")]
    pub writes_pending_max: Option<u32>,
    /// How long a client's reservation waits for writes under way before L1 evicts what no backend has yet, unless the client says
    /// otherwise; 0 is not at all [default: 0]
    #[arg(long, value_name = "MS", help_heading = "L2")]
    pub store_wait_ms: Option<u32>,

    /// Most live sessions [default: 65536]
    #[arg(long, value_name = "COUNT", help_heading = "Sessions and jobs")]
    pub sessions_max: Option<u32>,
    /// Most jobs not yet released [default: 65536]
    #[arg(long, value_name = "COUNT", help_heading = "Sessions and jobs")]
    pub jobs_max: Option<u32>,
    /// Deadline of a session, renewed by any use, unless it has one of its own [default: 300000]
    #[arg(long, value_name = "MS", help_heading = "Sessions and jobs")]
    pub session_timeout_ms: Option<u32>,

    /// Mode of the socket [default: 0600]
    #[arg(long, value_name = "OCTAL", help_heading = "Clients")]
    pub socket_mode: Option<FileMode>,
    /// A user who may connect, besides root and this one; the socket's mode must let it too
    #[arg(long, value_name = "USER", value_delimiter = ',', help_heading = "Clients")]
    pub allow_users: Vec<UserId>,
    /// A group whose members may connect
    #[arg(long, value_name = "GROUP", value_delimiter = ',', help_heading = "Clients")]
    pub allow_groups: Vec<GroupId>,
    /// A user who may connect and only read
    #[arg(long, value_name = "USER", value_delimiter = ',', help_heading = "Clients")]
    pub read_only_users: Vec<UserId>,
    /// Users who alone may open a tenant's spaces, like acme=alice,1001
    #[arg(long, value_name = "TENANT=USERS", help_heading = "Clients")]
    #[serde(skip)]
    pub tenant: Vec<Tenant>,
    /// In the file, the same as a table.
    #[arg(skip)]
    pub tenants: BTreeMap<String, Vec<UserId>>,
    /// Most clients at once [default: 256]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    pub clients_max: Option<usize>,
    /// Most calls of one client at once [default: 64]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    pub connections_per_client_max: Option<usize>,
    /// Most live sessions of one client [default: 65536]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    pub sessions_per_client_max: Option<usize>,
    /// Most jobs of one client that are not released [default: 65536]
    #[arg(long, value_name = "COUNT", help_heading = "Clients")]
    pub jobs_per_client_max: Option<usize>,
    /// Most bytes that one client stages [default: no bound but L1]
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    pub staged_bytes_per_client_max: Option<Size>,
    /// Most bytes of one message of a client
    #[arg(long, value_name = "SIZE", help_heading = "Clients")]
    pub message_bytes_max: Option<Size>,
}

fn any<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() { second } else { first }
}

impl Settings {
    /// Reads the file of `--config`.
    pub fn read(path: &Path) -> Result<Settings> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::io(format!("reading {}, the file of --config", path.display()), &error))?;
        Settings::parse(&text, &path.display().to_string())
    }

    /// What is in force where nothing is set.
    pub fn defaults() -> Settings {
        let (node, access, limits) = (NodeConfig::new(0), Access::default(), Limits::default());
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).ok();
        Settings {
            log: Some(Level::Info),
            trace_bytes: Some(TRACE_BYTES),
            policy: Some(node.eviction_policy),
            watermark_high_percent: Some(node.watermark_high_percent),
            watermark_low_percent: Some(node.watermark_low_percent),
            huge_pages: Some(node.huge_pages),
            no_prefault: Some(!node.prefault),
            store: Some(StoreSetting::WriteThrough),
            no_checksum: Some(!node.checksum),
            backend_timeout_ms: milliseconds(node.backend_timeout),
            writes_pending_max: Some(node.writes_pending_max),
            store_wait_ms: milliseconds(node.store_wait),
            sessions_max: Some(node.sessions_max),
            jobs_max: Some(node.jobs_max),
            session_timeout_ms: milliseconds(node.session_timeout),
            socket_mode: Some(FileMode(access.mode)),
            clients_max: Some(limits.clients_max),
            connections_per_client_max: Some(limits.connections_per_client_max),
            sessions_per_client_max: Some(limits.sessions_per_client_max),
            jobs_per_client_max: Some(limits.jobs_per_client_max),
            message_bytes_max: Some(Size(limits.message_bytes_max.into())),
            ..Settings::default()
        }
    }

    /// Parses `text`, which errors call `name`.
    pub fn parse(text: &str, name: &str) -> Result<Settings> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::invalid(format!(
                "{name}, line {line}: {}; kvkeep serve --help lists what may be set",
                error.message().trim()
            ))
        })
    }

    /// These settings, and those of `file` where these are not set.
    pub fn over(self, file: Settings) -> Settings {
        Settings {
            l1: self.l1.or(file.l1),
            l2: any(self.l2, file.l2),
            socket: self.socket.or(file.socket),
            http: self.http.or(file.http),
            log: self.log.or(file.log),
            trace: self.trace.or(file.trace),
            trace_bytes: self.trace_bytes.or(file.trace_bytes),
            policy: self.policy.or(file.policy),
            watermark_high_percent: self.watermark_high_percent.or(file.watermark_high_percent),
            watermark_low_percent: self.watermark_low_percent.or(file.watermark_low_percent),
            huge_pages: self.huge_pages.or(file.huge_pages),
            numa_node: self.numa_node.or(file.numa_node),
            no_prefault: self.no_prefault.or(file.no_prefault),
            store: self.store.or(file.store),
            store_after_uses: self.store_after_uses.or(file.store_after_uses),
            no_checksum: self.no_checksum.or(file.no_checksum),
            backend_timeout_ms: self.backend_timeout_ms.or(file.backend_timeout_ms),
            loading_bytes_max: self.loading_bytes_max.or(file.loading_bytes_max),
            store_wait_ms: self.store_wait_ms.or(file.store_wait_ms),
            writes_pending_max: self.writes_pending_max.or(file.writes_pending_max),
            sessions_max: self.sessions_max.or(file.sessions_max),
            jobs_max: self.jobs_max.or(file.jobs_max),
            session_timeout_ms: self.session_timeout_ms.or(file.session_timeout_ms),
            socket_mode: self.socket_mode.or(file.socket_mode),
            allow_users: any(self.allow_users, file.allow_users),
            allow_groups: any(self.allow_groups, file.allow_groups),
            read_only_users: any(self.read_only_users, file.read_only_users),
            tenant: self.tenant,
            tenants: file.tenants,
            clients_max: self.clients_max.or(file.clients_max),
            connections_per_client_max: self.connections_per_client_max.or(file.connections_per_client_max),
            sessions_per_client_max: self.sessions_per_client_max.or(file.sessions_per_client_max),
            jobs_per_client_max: self.jobs_per_client_max.or(file.jobs_per_client_max),
            staged_bytes_per_client_max: self.staged_bytes_per_client_max.or(file.staged_bytes_per_client_max),
            message_bytes_max: self.message_bytes_max.or(file.message_bytes_max),
        }
    }

    /// The file that requests are recorded in, if they are, and its most bytes.
    pub fn trace(&self) -> Result<Option<(&Path, u64)>> {
        let Some(path) = &self.trace else { return Ok(None) };
        let Size(bytes) = self.trace_bytes.unwrap_or(TRACE_BYTES);
        check_trace(path, bytes)?;
        Ok(Some((path, bytes)))
    }

    /// The socket, which must be given.
    pub fn socket(&self) -> Result<PathBuf> {
        let missing = || Error::invalid("there is no socket to serve: give --socket, like --socket /run/kvkeep.sock");
        self.socket.clone().ok_or_else(missing)
    }

    /// How the node is opened, by the run `boot` of its socket.
    pub fn node(&self, boot: u16, log: Log) -> Result<NodeConfig> {
        let l1 = self
            .l1
            .ok_or_else(|| Error::invalid("the size of L1 is not given: give --l1, like --l1 8GiB or --l1 70%"))?;
        let l1_bytes = match l1 {
            L1Size::Bytes(bytes) => bytes,
            L1Size::Percent(percent) => MemoryBounds::of_process(self.huge_pages.unwrap_or(false)).percent(percent)?,
        };
        let defaults = NodeConfig::new(l1_bytes);
        let high = self.watermark_high_percent.unwrap_or(defaults.watermark_high_percent);
        let low = self.watermark_low_percent.unwrap_or(defaults.watermark_low_percent.min(high));
        if high > 100 || low > high {
            return Err(Error::invalid(format!(
                "watermarks are {high} and {low} percent: the high one must be at most 100 and the low one not above it"
            )));
        }
        if self.store_after_uses.is_some() && self.store != Some(StoreSetting::AfterUses) {
            return Err(Error::invalid("store-after-uses is given without store after-uses: give both, or neither"));
        }
        let milliseconds = |name, given: Option<u32>, default| match given {
            Some(0) => Err(Error::invalid(format!("{name} is 0: give it at least a millisecond"))),
            given => Ok(given.map_or(default, |ms| Duration::from_millis(u64::from(ms)))),
        };
        Ok(NodeConfig {
            huge_pages: self.huge_pages.unwrap_or(defaults.huge_pages),
            numa_node: self.numa_node,
            prefault: !self.no_prefault.unwrap_or(!defaults.prefault),
            checksum: !self.no_checksum.unwrap_or(!defaults.checksum),
            eviction_policy: self.policy.clone().unwrap_or(defaults.eviction_policy),
            watermark_high_percent: high,
            watermark_low_percent: low,
            store_mode: match self.store {
                None | Some(StoreSetting::WriteThrough) => StoreMode::WriteThrough,
                Some(StoreSetting::WriteBack) => StoreMode::WriteBack,
                Some(StoreSetting::AfterUses) => StoreMode::AfterUses(self.store_after_uses.unwrap_or(2).max(1)),
                Some(StoreSetting::Never) => StoreMode::Never,
            },
            backend_urls: self.l2.clone(),
            sessions_max: self.sessions_max.unwrap_or(defaults.sessions_max),
            jobs_max: self.jobs_max.unwrap_or(defaults.jobs_max),
            writes_pending_max: self.writes_pending_max.unwrap_or(defaults.writes_pending_max),
            session_timeout: milliseconds("session-timeout-ms", self.session_timeout_ms, defaults.session_timeout)?,
            backend_timeout: milliseconds("backend-timeout-ms", self.backend_timeout_ms, defaults.backend_timeout)?,
            loading_bytes_max: self.loading_bytes_max.map_or(defaults.loading_bytes_max, |size| size.0),
            store_wait: Duration::from_millis(self.store_wait_ms.unwrap_or(0).into()),
            boot,
            log,
            ..defaults
        })
    }

    /// The users who may connect.
    pub fn access(&self) -> Access {
        let uids = |users: &[UserId]| users.iter().map(|user| user.0).collect::<Vec<u32>>();
        let of_flags = self.tenant.iter().map(|Tenant(name, users)| (name.clone(), uids(users)));
        let of_file = self.tenants.iter().map(|(name, users)| (name.clone(), uids(users)));
        let tenants: BTreeMap<String, Vec<u32>> = of_file.chain(of_flags).collect();
        Access {
            mode: self.socket_mode.map_or(Access::default().mode, |mode| mode.0),
            uids: uids(&self.allow_users),
            gids: self.allow_groups.iter().map(|group| group.0).collect(),
            read_only_uids: uids(&self.read_only_users),
            tenants: tenants.into_iter().collect(),
        }
    }

    /// The bounds of one client.
    pub fn limits(&self) -> Result<Limits> {
        let defaults = Limits::default();
        let message = self.message_bytes_max.map_or(u64::from(defaults.message_bytes_max), |size| size.0);
        let message_bytes_max =
            u32::try_from(message).ok().filter(|&bytes| (4096..=defaults.message_bytes_max).contains(&bytes));
        Ok(Limits {
            clients_max: self.clients_max.unwrap_or(defaults.clients_max),
            connections_per_client_max: self.connections_per_client_max.unwrap_or(defaults.connections_per_client_max),
            sessions_per_client_max: self.sessions_per_client_max.unwrap_or(defaults.sessions_per_client_max),
            jobs_per_client_max: self.jobs_per_client_max.unwrap_or(defaults.jobs_per_client_max),
            staged_bytes_per_client_max: self
                .staged_bytes_per_client_max
                .map_or(defaults.staged_bytes_per_client_max, |size| size.0),
            message_bytes_max: message_bytes_max.ok_or_else(|| {
                Error::invalid(format!(
                    "message-bytes-max is {message}, it must be 4096 to {}: a message holds one batch of keys",
                    defaults.message_bytes_max
                ))
            })?,
        })
    }
}
