//! The parameters that the URL of every backend may carry. The cache obeys them above the backend, which never sees them.

use std::time::Duration;

use super::encrypted::KeyLocation;
use super::url::Parameters;
use crate::error::{Error, Result};

/// How a cache treats one backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommonOptions {
    /// Requests that fail in a row before the backend is not asked for a while; 0: it is always asked.
    pub breaker_errors: u32,
    /// How long it is not asked at first. Each probe that fails doubles the pause.
    pub breaker_pause: Duration,
    /// When a request to it is late, if not after the cache's `backend_timeout_ms`.
    pub deadline: Option<Duration>,
    /// Which of the objects that are to be written are written to it.
    pub write: WriteChoice,
    /// Whether it gets what other backends gave.
    pub promote: bool,
    /// New writes to it are dropped while others take longer.
    pub store_latency_max: Option<Duration>,
    /// The keys that its objects are encrypted with, if they are.
    pub keys: Option<KeyLocation>,
}

/// Which objects are written to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteChoice {
    /// All that the cache's store mode has written.
    On,
    /// None, unless it promotes.
    Off,
    /// Those that were used by so many sessions.
    AfterUses(u32),
}

/// The uses of `write=after-uses`, unless they are given: by the session that stored the object, and by one more.
const DEFAULT_USES: u32 = 2;

impl Default for CommonOptions {
    fn default() -> CommonOptions {
        CommonOptions {
            breaker_errors: 16,
            breaker_pause: Duration::from_secs(1),
            deadline: None,
            write: WriteChoice::On,
            promote: false,
            store_latency_max: None,
            keys: None,
        }
    }
}

impl CommonOptions {
    /// The names of the parameters.
    pub const NAMES: [&'static str; 10] = [
        "breaker_errors",
        "breaker_pause_ms",
        "deadline_ms",
        "write",
        "write_uses",
        "promote",
        "store_latency_max_ms",
        "key_file",
        "key_env",
        "key_from",
    ];

    /// Reads the parameters named by [`NAMES`](CommonOptions::NAMES), all others taken out.
    pub fn parse(pairs: &[(String, String)]) -> Result<CommonOptions> {
        let default = CommonOptions::default();
        let mut options = Parameters::new("a backend", pairs);
        let breaker_errors = options.count("breaker_errors", default.breaker_errors)?;
        let pause_ms = options.count("breaker_pause_ms", default.breaker_pause.as_millis() as u32)?;
        let deadline_ms = options.count("deadline_ms", 0)?;
        let uses = options.count("write_uses", 0)?;
        let write = options.read("write", WriteChoice::On, |text| match text {
            "on" => Ok(WriteChoice::On),
            "off" => Ok(WriteChoice::Off),
            "after-uses" => Ok(WriteChoice::AfterUses(if uses == 0 { DEFAULT_USES } else { uses })),
            _ => Err(Error::invalid(format!("{text:?} is not known; write on, off or after-uses"))),
        })?;
        if uses > 0 && !matches!(write, WriteChoice::AfterUses(_)) {
            return Err(options.wrong("write_uses", "it goes with write=after-uses"));
        }
        let latency_ms = options.count("store_latency_max_ms", 0)?;
        let places = [
            options.text("key_file")?.map(|path| KeyLocation::File(path.into())),
            options.text("key_env")?.map(|variable| KeyLocation::Environment(variable.to_owned())),
            options.text("key_from")?.map(|name| KeyLocation::Callback(name.to_owned())),
        ];
        let mut places = places.into_iter().flatten();
        let keys = places.next();
        if places.next().is_some() {
            return Err(Error::invalid(
                "a backend has keys from two places: keep one of key_file, key_env and key_from",
            ));
        }
        let common = CommonOptions {
            keys,
            write,
            promote: options.boolean("promote", false)?,
            store_latency_max: (latency_ms > 0).then(|| Duration::from_millis(latency_ms.into())),
            breaker_errors,
            breaker_pause: Duration::from_millis(pause_ms.into()),
            deadline: (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms.into())),
        };
        if pause_ms == 0 {
            return Err(
                options.wrong("breaker_pause_ms", "0 is no pause; write breaker_errors=0 to always ask the backend")
            );
        }
        options.finish()?;
        Ok(common)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<CommonOptions> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        CommonOptions::parse(&pairs)
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        assert_eq!(parse(&[]).unwrap(), CommonOptions::default());
        let given = parse(&[("breaker_errors", "3"), ("breaker_pause_ms", "20"), ("deadline_ms", "500")]).unwrap();
        assert_eq!((given.breaker_errors, given.breaker_pause), (3, Duration::from_millis(20)));
        assert_eq!(given.deadline, Some(Duration::from_millis(500)));
        assert_eq!(parse(&[("deadline_ms", "0")]).unwrap().deadline, None);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_remedy() {
        let message = |pairs| parse(pairs).unwrap_err().message;
        assert!(message(&[("breaker_errors", "many")]).contains("no whole number"));
        assert!(message(&[("breaker_errors", "4294967296")]).contains("at most 4294967295"));
        assert!(message(&[("breaker_pause_ms", "0")]).contains("write breaker_errors=0"));
        assert!(message(&[("deadline_ms", "1"), ("deadline_ms", "2")]).contains("given twice"));
        assert!(message(&[("write", "never")]).contains("write on, off or after-uses"));
        assert!(message(&[("write_uses", "3")]).contains("goes with write=after-uses"));
        assert!(message(&[("key_env", "A"), ("key_from", "b")]).contains("keep one of key_file, key_env and key_from"));
        assert!(message(&[("promote", "maybe")]).contains("neither true nor false"));
    }

    #[test]
    fn uses_belong_to_the_choice_of_writes() {
        let write = |pairs| parse(pairs).unwrap().write;
        assert_eq!(write(&[("write", "off")]), WriteChoice::Off);
        assert_eq!(write(&[("write", "after-uses")]), WriteChoice::AfterUses(DEFAULT_USES));
        assert_eq!(write(&[("write_uses", "5"), ("write", "after-uses")]), WriteChoice::AfterUses(5));
    }
}
