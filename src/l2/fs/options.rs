//! What an `fs` backend is opened with, and how a URL says it.

use std::path::PathBuf;

use crate::error::{Error, Result};

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
        }
    }

    /// What the URL `fs://<path>?<params>` says.
    pub fn from_url(path: &str, params: &[(String, String)]) -> Result<FsOptions> {
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "fs: the directory '{path}' is not absolute; write fs:///var/cache/kvkeep"
            )));
        }
        let mut options = FsOptions::new(path);
        for (name, value) in params {
            match name.as_str() {
                "capacity" => options.capacity = bytes(value)?,
                "engine" => {
                    options.engine = match value.as_str() {
                        "auto" => EngineKind::Auto,
                        "uring" => EngineKind::Uring,
                        "pool" => EngineKind::Pool,
                        _ => return Err(unfit(name, value, "auto, uring or pool")),
                    }
                }
                "policy" => options.policy = value.clone(),
                "threads" => options.threads = count(name, value, THREADS_MAX)?,
                "depth" => options.depth = count(name, value, DEPTH_MAX)?,
                "shared" => options.shared = flag(name, value)?,
                "direct" => options.direct = flag(name, value)?,
                _ => {
                    return Err(Error::invalid(format!(
                        "fs: unknown parameter '{name}'; there are capacity, engine, policy, threads, depth, shared and \
                         direct"
                    )));
                }
            }
        }
        Ok(options)
    }
}

fn unfit(name: &str, value: &str, wanted: &str) -> Error {
    Error::invalid(format!("fs: {name}={value} is not {wanted}"))
}

fn flag(name: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| unfit(name, value, "true or false"))
}

fn count(name: &str, value: &str, most: u64) -> Result<usize> {
    match value.parse::<u64>() {
        Ok(count) if (1..=most).contains(&count) => Ok(count as usize),
        _ => Err(unfit(name, value, &format!("a number from 1 to {most}"))),
    }
}

/// A number of bytes: digits and an optional unit, B, KiB, MiB, GiB, TiB or KB, MB, GB, TB.
fn bytes(value: &str) -> Result<u64> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(unfit("capacity", value, "a number of bytes such as 200GiB")),
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
        assert_eq!(parse("capacity", "4096").unwrap().capacity, 4096);
        for bad in ["", "0", "GiB", "-1", "1.5GiB", "1gib", "99999999TiB"] {
            assert!(parse("capacity", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (name, value) in
            [("capcity", "1"), ("engine", "aio"), ("shared", "1"), ("threads", "0"), ("depth", "1e3"), ("direct", "")]
        {
            let error = parse(name, value).unwrap_err();
            assert!(error.message.contains(name), "{error}");
        }
        assert!(FsOptions::from_url("cache", &[]).is_err());
        assert_eq!(parse("engine", "pool").unwrap().engine, EngineKind::Pool);
        assert!(!parse("shared", "false").unwrap().shared);
        assert_eq!(parse("depth", "8").unwrap().depth, 8);
    }
}
