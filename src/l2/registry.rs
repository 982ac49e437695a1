//! Opens backends by the scheme of their URL.

use std::sync::Arc;

use super::backend::Backend;
use super::common_options::CommonOptions;
use super::encrypted::{EncryptedBackend, EncryptionKeys, KeyCallback};
use super::fault::{FaultBackend, FaultOptions};
use super::fs::{Fs, FsOptions};
use super::memory::MemoryBackend;
use super::plugin::{PluginBackend, PluginSource};
use super::redis::{RedisBackend, RedisOptions};
use super::url::{Url, parse_pairs, split_scheme, without_secrets};
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::log::Log;

/// Opens the backend of one scheme.
type Open = fn(&Url, &Log, &Arena) -> Result<Arc<dyn Backend>>;
/// Checks a URL of one scheme, and opens nothing.
type Check = fn(&Url) -> Result<()>;

/// Every scheme that stands for itself, with an example. `fault:` is not among them: it wraps another URL.
const SCHEMES: [(&str, &str, Open, Check); 13] = [
    (
        "fs",
        "fs:///var/cache/kvkeep?capacity=200GiB",
        |url, log, _| Ok(Fs::open_url(&url.path, &url.params, log)?),
        |url| FsOptions::from_url(&url.path, &url.params)?.policy().map(drop),
    ),
    ("memory", "memory:?capacity=1GiB", |url, _, _| Ok(open_memory(url)?), |url| open_memory(url).map(drop)),
    ("s3", "s3://bucket/prefix?endpoint=https://host:port", |url, log, _| open_bucket(url, log), check_bucket),
    ("gs", "gs://bucket/prefix", |url, log, _| open_bucket(url, log), check_bucket),
    ("az", "az://container/prefix?account=name", |url, log, _| open_bucket(url, log), check_bucket),
    (
        "plugin",
        "plugin:/path/to/library.so",
        |url, log, arena| Ok(PluginBackend::open(&PluginSource::of_library(&url.path, &url.params)?, arena, log)?),
        |url| PluginSource::of_library(&url.path, &url.params).map(drop),
    ),
    ("redis", "redis://host:6379", open_redis, check_redis),
    ("rediss", "rediss://host:6379", open_redis, check_redis),
    ("redis+cluster", "redis+cluster://host1,host2", open_redis, check_redis),
    ("rediss+cluster", "rediss+cluster://host1,host2", open_redis, check_redis),
    ("redis+sentinel", "redis+sentinel://host1,host2/master", open_redis, check_redis),
    ("rediss+sentinel", "rediss+sentinel://host1,host2/master", open_redis, check_redis),
    ("redis+unix", "redis+unix:///run/redis.sock", open_redis, check_redis),
];

fn open_memory(url: &Url) -> Result<Arc<MemoryBackend>> {
    if !url.path.is_empty() {
        return Err(Error::invalid(format!("memory: takes no path, but was given {:?}; write memory:?…", url.path)));
    }
    MemoryBackend::open_url(&url.params)
}

fn open_redis(url: &Url, log: &Log, _arena: &Arena) -> Result<Arc<dyn Backend>> {
    Ok(RedisBackend::open_url(url, log)?)
}

fn check_redis(url: &Url) -> Result<()> {
    RedisOptions::from_url(url).map(drop)
}

#[cfg(feature = "s3")]
fn check_bucket(url: &Url) -> Result<()> {
    super::s3::S3Options::parse(url).map(drop)
}

#[cfg(not(feature = "s3"))]
fn check_bucket(url: &Url) -> Result<()> {
    Err(without_s3(url))
}

#[cfg(feature = "s3")]
fn open_bucket(url: &Url, log: &Log) -> Result<Arc<dyn Backend>> {
    Ok(super::s3::S3Backend::open_url(url, log)?)
}

#[cfg(not(feature = "s3"))]
fn open_bucket(url: &Url, _log: &Log) -> Result<Arc<dyn Backend>> {
    Err(without_s3(url))
}

#[cfg(not(feature = "s3"))]
fn without_s3(url: &Url) -> Error {
    let message = format!(
        "this kvkeep was built without {0}: build it with cargo's feature {0} (on by default), or CMake's \
         KVKEEP_S3=ON",
        url.scheme
    );
    Error::new(crate::error::KVKEEP_ERR_UNSUPPORTED, message)
}

/// A backend that was opened by its URL.
pub struct OpenBackend {
    /// The backend itself.
    pub backend: Arc<dyn Backend>,
    /// Its URL, without secrets.
    pub url: String,
    /// How the cache is to treat it.
    pub options: CommonOptions,
}

/// Opens the backend that a URL names, below the L1 in `arena`. The backend logs to `log` while it is open. `callback` may be
/// asked for its keys, on this thread.
pub fn open(url: &str, log: &Log, arena: &Arena, callback: &KeyCallback) -> Result<OpenBackend> {
    let (inner, common) = split_parameters(url, |name| CommonOptions::NAMES.contains(&name))?;
    let options = CommonOptions::parse(&common)?;
    open_with(url, options, callback, || open_inner(&inner, log, arena))
}

/// Opens the backend whose functions the host program has.
pub fn open_plugin(source: &PluginSource, log: &Log, arena: &Arena, callback: &KeyCallback) -> Result<OpenBackend> {
    let (inner, common) = source.split_parameters(|name| CommonOptions::NAMES.contains(&name));
    let options = CommonOptions::parse(&common)?;
    open_with(&source.url(), options, callback, || Ok(PluginBackend::open(&inner, arena, log)?))
}

/// Opens a backend, and encrypts what goes there where its options say so.
fn open_with(
    url: &str,
    options: CommonOptions,
    callback: &KeyCallback,
    open: impl FnOnce() -> Result<Arc<dyn Backend>>,
) -> Result<OpenBackend> {
    // Read before the backend opens, so that a wrong key opens nothing.
    let keys = options.keys.as_ref().map(|keys| EncryptionKeys::read(keys, callback)).transpose()?;
    let backend = open()?;
    let backend = match keys {
        Some(keys) => EncryptedBackend::wrap(backend, keys)?,
        None => backend,
    };
    Ok(OpenBackend { backend, url: without_secrets(url), options })
}

/// Checks the URL of a backend and reads its keys, where they are in a file or the environment. Opens nothing.
pub fn check(url: &str) -> Result<()> {
    let (inner, common) = split_parameters(url, |name| CommonOptions::NAMES.contains(&name))?;
    if let Some(keys) = &CommonOptions::parse(&common)?.keys {
        EncryptionKeys::read(keys, &KeyCallback::default())?;
    }
    let inner = match split_fault(&inner)? {
        Some((inner, _)) => inner,
        None => inner,
    };
    let url = Url::parse(&inner)?;
    (scheme_of(&url)?.3)(&url)
}

fn scheme_of(url: &Url) -> Result<&'static (&'static str, &'static str, Open, Check)> {
    SCHEMES.iter().find(|(scheme, ..)| *scheme == url.scheme).ok_or_else(|| {
        let known: Vec<_> = SCHEMES.iter().map(|(_, example, ..)| *example).chain(["fault:<URL>"]).collect();
        Error::invalid(format!("no backend has the scheme {:?}; known are {}", url.scheme, known.join(", ")))
    })
}

/// The URL inside a `fault:` URL without common parameters, and its failures; none of a URL of another scheme.
fn split_fault(url: &str) -> Result<Option<(String, FaultOptions)>> {
    let Some((scheme, inner)) = split_scheme(url) else { return Ok(None) };
    if scheme != "fault" {
        return Ok(None);
    }
    let (inner, faults) = split_parameters(inner, |name| name.starts_with("fault."))?;
    if split_scheme(&inner).is_some_and(|(scheme, _)| scheme == "fault") {
        return Err(Error::invalid("fault: wraps another backend, but was given fault: again; write it once"));
    }
    if faults.is_empty() {
        let message =
            "fault: was given nothing that goes wrong; write fault:memory:?fault.load_error=0.2, or leave fault: out";
        return Err(Error::invalid(message));
    }
    Ok(Some((inner, FaultOptions::parse(&faults)?)))
}

/// Opens the backend of a URL without common parameters.
fn open_inner(url: &str, log: &Log, arena: &Arena) -> Result<Arc<dyn Backend>> {
    if let Some((inner, faults)) = split_fault(url)? {
        return Ok(FaultBackend::wrap(open_inner(&inner, log, arena)?, faults)?);
    }
    let url = Url::parse(url)?;
    (scheme_of(&url)?.2)(&url, log, arena)
}

/// Takes the parameters whose names `takes` chooses out of a URL and leaves the rest as it is written.
fn split_parameters(url: &str, takes: impl Fn(&str) -> bool) -> Result<(String, Vec<(String, String)>)> {
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), Vec::new())) };
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    let (taken, rest): (Vec<_>, Vec<_>) =
        query.split('&').filter(|pair| !pair.is_empty()).partition(|pair| takes(&name(pair)));
    let inner = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((inner, parse_pairs(taken.into_iter())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::MapOptions;

    fn opened(url: &str) -> Result<OpenBackend> {
        open(url, &Log::none(), &Arena::map(4096, MapOptions::default()).unwrap(), &KeyCallback::default())
    }

    /// Why a URL cannot be opened, for which the check has the same reason.
    fn refusal(url: &str) -> String {
        let why = opened(url).map(|_| ()).unwrap_err().message;
        assert_eq!(check(url).unwrap_err().message, why, "{url}");
        why
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_error_names_the_cause_and_the_remedy() {
        assert_eq!(
            refusal("nfs:///x"),
            "no backend has the scheme \"nfs\"; known are fs:///var/cache/kvkeep?capacity=200GiB, memory:?capacity=1GiB, \
             s3://bucket/prefix?endpoint=https://host:port, gs://bucket/prefix, az://container/prefix?account=name, \
             plugin:/path/to/library.so, redis://host:6379, rediss://host:6379, redis+cluster://host1,host2, \
             rediss+cluster://host1,host2, redis+sentinel://host1,host2/master, \
             rediss+sentinel://host1,host2/master, redis+unix:///run/redis.sock, fault:<URL>"
        );
        assert_eq!(refusal("memory:?size=1"), "memory has no parameter \"size\"; it takes capacity, policy, lookup");
        assert!(refusal("memory:?capacity=1&capacity=2").contains("given twice"));
        assert!(refusal("memory:?capacity=0").contains("room for nothing"));
        assert!(refusal("memory:/x").contains("takes no path"));
        assert!(refusal("fault:memory:?fault.what=1").contains("fault.load_error"));
        assert!(refusal("fault:memory:?fault.flip=2").contains("0 to 1"));
        assert!(refusal("fault:?fault.torn=1").contains("is no URL"));
        assert!(refusal("fault:memory:").contains("nothing that goes wrong"));
        assert!(refusal(&format!("{}memory:", "fault:".repeat(60_000))).contains("write it once"));
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn a_library_without_the_feature_names_it() {
        for scheme in ["s3", "gs", "az"] {
            let error = opened(&format!("{scheme}://kv/x")).map(drop).unwrap_err();
            assert_eq!(error.status, crate::error::KVKEEP_ERR_UNSUPPORTED);
            let part = format!("without {scheme}: build it with cargo's feature {scheme} (on by default)");
            assert!(error.message.contains(&part), "{}", error.message);
        }
    }

    #[test]
    fn faults_are_taken_out_and_the_rest_is_the_inner_url() {
        let url = "fs:///a%20b?fault.seed=7&capacity=1G&fault.flip=0.5";
        let (inner, faults) = split_parameters(url, |name| name.starts_with("fault.")).unwrap();
        assert_eq!(inner, "fs:///a%20b?capacity=1G");
        assert_eq!(faults, pairs(&[("fault.seed", "7"), ("fault.flip", "0.5")]));
        let backend = opened("fault:memory:?fault.seed=7&capacity=1MiB").unwrap().backend;
        assert_eq!((backend.name(), backend.usage().capacity), ("fault", 1 << 20));
    }

    #[test]
    fn common_parameters_are_for_every_scheme_and_reach_no_backend() {
        for url in
            ["memory:?capacity=1MiB&breaker_errors=3", "fault:memory:?breaker_errors=3&fault.seed=1&capacity=1MiB"]
        {
            let opened = opened(url).unwrap();
            assert_eq!((opened.options.breaker_errors, opened.backend.usage().capacity), (3, 1 << 20), "{url}");
            assert_eq!(opened.url, url);
        }
        assert!(refusal("memory:?breaker_errors=x").contains("the parameter breaker_errors of a backend"));
        assert!(refusal("memory:?deadline_ms").contains("has no value"));
    }
}
