//! The options of an `fs` backend, and their form in a URL.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::l2::url::{Parameters, boolean, size};
use crate::log::Log;
use crate::policy::{self, EvictionPolicy};

/// The engine that moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineKind {
    /// io_uring where the kernel allows it, else the pool.
    #[default]
    Auto,
    /// io_uring; opening fails without it.
    Uring,
    /// Threads that read and write.
    Pool,
}

/// What a stored object survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Any end of the process.
    #[default]
    Crash,
    /// A power cut too: it is synced before it is answered.
    Power,
}

/// How much of the file system is to stay free for others.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum MinFree {
    /// 1 % of the file system, at most 1 GiB.
    #[default]
    Auto,
    /// This share of the file system, in percent.
    Percent(f64),
    /// This number of bytes.
    Bytes(u64),
}

impl MinFree {
    /// The value of `min_free=`: a size, or a share in percent.
    fn parse(text: &str) -> Result<MinFree> {
        let Some(percent) = text.strip_suffix('%') else {
            let wrong = |_| Error::invalid(format!("{text:?} is neither a size nor a share; write 10GiB, 5% or 0"));
            return Ok(MinFree::Bytes(size(text).map_err(wrong)?));
        };
        match percent.trim_end().parse::<f64>() {
            Ok(percent) if (0.0..100.0).contains(&percent) => Ok(MinFree::Percent(percent)),
            _ => Err(Error::invalid(format!("{text:?} is no share from 0% to below 100%; write 5%"))),
        }
    }

    /// Its bytes of a file system of `total` bytes.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            MinFree::Auto => (total / 100).min(1 << 30),
            MinFree::Percent(percent) => (total as f64 * percent / 100.0) as u64,
            MinFree::Bytes(bytes) => bytes,
        }
    }
}

/// How to open a directory of objects.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// The directory; made if it is not there.
    pub dir: PathBuf,
    /// Most bytes of disk to take, 0 for no bound but the disk's.
    pub capacity: u64,
    /// The space that the file system is to keep free: below it, new objects take the place of this backend's oldest.
    pub min_free: MinFree,
    /// The engine that moves the bytes.
    pub engine: EngineKind,
    /// Name of the eviction policy.
    pub policy: String,
    /// Threads of the engine, 0 for its default.
    pub threads: usize,
    /// Objects under transfer at once (and so open files), 0 for the engine's default.
    pub depth: usize,
    /// Whether other processes or hosts may write to the directory too. None: the backend finds out.
    pub shared: Option<bool>,
    /// What a stored object survives.
    pub durability: Durability,
    /// Go around the page cache where the file system can.
    pub direct: bool,
    /// Where the backend's log lines go.
    pub log: Log,
    /// Directories count under the capacity too.
    pub count_directories: bool,
    /// How often the maintenance thread removes what dead writers left, and lists again what could not be listed.
    pub cleanup_every: Duration,
}

/// Most threads an engine may be given.
const THREADS_MAX: u64 = 256;
/// Most objects under transfer at once.
const DEPTH_MAX: u64 = 1024;

impl FsOptions {
    /// The defaults, for `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> FsOptions {
        FsOptions {
            dir: dir.into(),
            capacity: 0,
            min_free: MinFree::Auto,
            engine: EngineKind::Auto,
            policy: "lru".to_owned(),
            threads: 0,
            depth: 0,
            shared: None,
            durability: Durability::Crash,
            direct: true,
            log: Log::none(),
            count_directories: true,
            cleanup_every: Duration::from_secs(60),
        }
    }

    /// The eviction policy, empty.
    pub fn policy(&self) -> Result<Box<dyn EvictionPolicy>> {
        policy::by_name(&self.policy).map_err(|error| Error::invalid(format!("fs: {}", error.message)))
    }

    /// The options in the URL `fs://<path>?<params>`.
    pub fn from_url(path: &str, params: &[(String, String)]) -> Result<FsOptions> {
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "fs: the directory '{path}' is not absolute; write fs:///var/cache/kvkeep"
            )));
        }
        let mut given = Parameters::new("fs", params);
        let fs = FsOptions::new(path);
        let fs = FsOptions {
            capacity: given.capacity(fs.capacity)?,
            min_free: given.read("min_free", fs.min_free, MinFree::parse)?,
            engine: given.read("engine", fs.engine, engine)?,
            policy: given.text("policy")?.map_or(fs.policy, str::to_owned),
            threads: given.read("threads", fs.threads, |text| count(text, THREADS_MAX))?,
            depth: given.read("depth", fs.depth, |text| count(text, DEPTH_MAX))?,
            shared: given.read("shared", fs.shared, shared)?,
            durability: given.read("durability", fs.durability, durability)?,
            direct: given.boolean("direct", fs.direct)?,
            ..fs
        };
        given.finish()?;
        Ok(fs)
    }
}

fn shared(text: &str) -> Result<Option<bool>> {
    match text {
        "auto" => Ok(None),
        _ => boolean(text).map(Some).map_err(|_| Error::invalid(format!("{text:?} is not auto, true or false"))),
    }
}

fn engine(text: &str) -> Result<EngineKind> {
    match text {
        "auto" => Ok(EngineKind::Auto),
        "uring" => Ok(EngineKind::Uring),
        "pool" => Ok(EngineKind::Pool),
        _ => Err(Error::invalid(format!("{text:?} is not auto, uring or pool"))),
    }
}

fn durability(text: &str) -> Result<Durability> {
    match text {
        "crash" => Ok(Durability::Crash),
        "power" => Ok(Durability::Power),
        _ => Err(Error::invalid(format!("{text:?} is not crash or power"))),
    }
}

fn count(text: &str, most: u64) -> Result<usize> {
    match text.parse::<u64>() {
        Ok(count) if (1..=most).contains(&count) => Ok(count as usize),
        _ => Err(Error::invalid(format!("{text:?} is no number from 1 to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, value: &str) -> Result<FsOptions> {
        FsOptions::from_url("/cache", &[(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn sizes_carry_units() {
        assert_eq!(parse("capacity", "200GiB").unwrap().capacity, 200 << 30);
        assert_eq!(parse("capacity", "5GB").unwrap().capacity, 5_000_000_000);
        assert_eq!(parse("capacity", "5 g").unwrap().capacity, 5 << 30);
        assert_eq!(parse("capacity", "4096").unwrap().capacity, 4096);
        for bad in ["", "0", "GiB", "-1", "1.5GiB", "99999999TiB"] {
            assert!(parse("capacity", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_stays_free_is_a_size_or_a_share() {
        let of = |text: &str, total| parse("min_free", text).unwrap().min_free.bytes(total);
        assert_eq!(of("5%", 1000), 50);
        assert_eq!(of("0.5 %", 1000), 5);
        assert_eq!(of("10GiB", 1000), 10 << 30);
        assert_eq!(of("0", 1000), 0);
        let auto = FsOptions::new("/cache").min_free;
        assert_eq!([1000, 1 << 40].map(|total| auto.bytes(total)), [10, 1 << 30]);
        for bad in ["", "%", "100%", "-1%", "5 percent", "1e9GiB", "NaN%"] {
            let message = parse("min_free", bad).unwrap_err().message;
            assert!(message.contains("min_free") && message.contains("write"), "{message}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (name, value) in [
            ("capcity", "1"),
            ("engine", "aio"),
            ("shared", "2"),
            ("threads", "0"),
            ("depth", "1e3"),
            ("direct", ""),
            ("durability", "disk"),
        ] {
            let error = parse(name, value).unwrap_err();
            assert!(error.message.contains(name), "{error}");
        }
        assert!(FsOptions::from_url("cache", &[]).is_err());
        let twice =
            [("capacity", "1GiB"), ("capacity", "2GiB")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(FsOptions::from_url("/cache", &twice).unwrap_err().message.contains("given twice"));
        assert_eq!(parse("engine", "pool").unwrap().engine, EngineKind::Pool);
        assert_eq!(parse("shared", "auto").unwrap().shared, None);
        assert_eq!(parse("shared", "false").unwrap().shared, Some(false));
        assert_eq!(parse("durability", "power").unwrap().durability, Durability::Power);
        assert_eq!(parse("depth", "8").unwrap().depth, 8);
    }
}
