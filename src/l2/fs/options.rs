//! What an `fs` backend is opened with, and how a URL says it.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::l2::url::Options;
use crate::log::Log;

/// What moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineKind {
    /// io_uring where the kernel allows it, else the pool.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads that read and write.
    Pool,
}

/// How to open a directory of objects.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// The directory; made if it is not there.
    pub dir: PathBuf,
    /// Most bytes of disk to take, 0 for no bound but the disk's.
    pub capacity: u64,
    /// What moves the bytes.
    pub engine: EngineKind,
    /// Name of the eviction policy.
    pub policy: String,
    /// Threads of the engine, 0 for its default.
    pub threads: usize,
    /// Objects under transfer at once (and so open files), 0 for the engine's default.
    pub depth: usize,
    /// Other processes or hosts may write to the directory too.
    pub shared: bool,
    /// Go around the page cache where the file system can.
    pub direct: bool,
    /// Where the backend's log lines go.
    pub log: Log,
    /// How often the directory is tidied up while it is open: what dead writers left is removed, what could not be listed is
    /// tried again.
    pub tidy_every: Duration,
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
            engine: EngineKind::Auto,
            policy: "lru".to_owned(),
            threads: 0,
            depth: 0,
            shared: true,
            direct: true,
            log: Log::none(),
            tidy_every: Duration::from_secs(60),
        }
    }

    /// What the URL `fs://<path>?<params>` says.
    pub fn from_url(path: &str, params: &[(String, String)]) -> Result<FsOptions> {
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "fs: the directory '{path}' is not absolute; write fs:///var/cache/kvkeep"
            )));
        }
        let mut given = Options::new("fs", params);
        let fs = FsOptions::new(path);
        let fs = FsOptions {
            capacity: given.capacity(fs.capacity)?,
            engine: given.read("engine", fs.engine, engine)?,
            policy: given.text("policy")?.map_or(fs.policy, str::to_owned),
            threads: given.read("threads", fs.threads, |text| count(text, THREADS_MAX))?,
            depth: given.read("depth", fs.depth, |text| count(text, DEPTH_MAX))?,
            shared: given.boolean("shared", fs.shared)?,
            direct: given.boolean("direct", fs.direct)?,
            ..fs
        };
        given.finish()?;
        Ok(fs)
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
        assert_eq!(parse("capacity", "5GB").unwrap().capacity, 5 << 30);
        assert_eq!(parse("capacity", "4096").unwrap().capacity, 4096);
        for bad in ["", "0", "GiB", "-1", "1.5GiB", "99999999TiB"] {
            assert!(parse("capacity", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (name, value) in
            [("capcity", "1"), ("engine", "aio"), ("shared", "2"), ("threads", "0"), ("depth", "1e3"), ("direct", "")]
        {
            let error = parse(name, value).unwrap_err();
            assert!(error.message.contains(name), "{error}");
        }
        assert!(FsOptions::from_url("cache", &[]).is_err());
        let twice =
            [("capacity", "1GiB"), ("capacity", "2GiB")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(FsOptions::from_url("/cache", &twice).unwrap_err().message.contains("given twice"));
        assert_eq!(parse("engine", "pool").unwrap().engine, EngineKind::Pool);
        assert!(!parse("shared", "false").unwrap().shared);
        assert_eq!(parse("depth", "8").unwrap().depth, 8);
    }
}
