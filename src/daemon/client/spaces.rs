//! The spaces of a client, opened again at each new run of the daemon, so that their numbers stay good.

use parking_lot::Mutex;

use crate::config::SpaceSpec;
use crate::error::Result;
use crate::hash::space_tag;

struct OpenedSpace {
    spec: SpaceSpec,
    /// Whether it was opened once.
    opened: bool,
}

/// All spaces that a client opened, or is opening.
#[derive(Default)]
pub struct Spaces {
    known: Mutex<Vec<OpenedSpace>>,
}

fn same(one: &SpaceSpec, other: &SpaceSpec) -> bool {
    let identity = |spec: &SpaceSpec| (spec.chunk_tokens, spec.generation);
    (&one.model, &one.layout, &one.tenant, identity(one))
        == (&other.model, &other.layout, &other.tenant, identity(other))
}

impl Spaces {
    /// Opens a space by `open`. The space is known before it is opened: the daemon may stop as soon as it has answered, and the
    /// spaces may
    /// be opened again before its answer is read.
    pub fn open(&self, spec: &SpaceSpec, open: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let former = self.note(spec, false);
        let opened = open();
        if opened.is_ok() {
            self.note(spec, true);
        } else {
            self.forget(spec, former);
        }
        opened
    }

    /// The spaces to open at a new run of the daemon.
    pub fn all(&self) -> Vec<SpaceSpec> {
        self.known.lock().iter().map(|known| known.spec.clone()).collect()
    }

    /// The next run of the daemon does not open it.
    pub fn close(&self, number: u64) {
        self.known.lock().retain(|known| space_tag(&known.spec).number() != number);
    }

    /// The next run of the daemon opens it with this quota.
    pub fn set_quota(&self, number: u64, quota_bytes: u64) {
        let mut known = self.known.lock();
        if let Some(known) = known.iter_mut().find(|known| space_tag(&known.spec).number() == number) {
            known.spec.quota_bytes = quota_bytes;
        }
    }

    /// Notes a space. Returns the options that it was known by before.
    fn note(&self, spec: &SpaceSpec, opened: bool) -> Option<SpaceSpec> {
        let mut known = self.known.lock();
        if let Some(known) = known.iter_mut().find(|known| same(&known.spec, spec)) {
            known.opened |= opened;
            // As in the daemon, opening a space without a quota leaves the quota that it has.
            let quota_bytes = if spec.quota_bytes == 0 { known.spec.quota_bytes } else { spec.quota_bytes };
            return Some(std::mem::replace(&mut known.spec, SpaceSpec { quota_bytes, ..spec.clone() }));
        }
        known.push(OpenedSpace { spec: spec.clone(), opened });
        None
    }

    fn forget(&self, spec: &SpaceSpec, former: Option<SpaceSpec>) {
        let mut known = self.known.lock();
        // Another call may have opened it meanwhile.
        known.retain(|known| known.opened || !same(&known.spec, spec));
        if let (Some(known), Some(former)) = (known.iter_mut().find(|known| same(&known.spec, spec)), former) {
            known.spec = former;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn spec(model: &str, quota_bytes: u64) -> SpaceSpec {
        let (layout, tenant) = (String::new(), String::new());
        SpaceSpec { generation: 0, model: model.to_owned(), layout, tenant, chunk_tokens: 16, quota_bytes }
    }

    fn known(spaces: &Spaces) -> Vec<(String, u64)> {
        spaces.all().into_iter().map(|spec| (spec.model, spec.quota_bytes)).collect()
    }

    #[test]
    fn a_space_is_known_before_it_is_opened_and_forgotten_when_it_cannot_be() {
        let spaces = Spaces::default();
        let refused = || Err(Error::invalid("refused"));
        assert!(spaces.open(&spec("a", 0), refused).is_err());
        assert_eq!(known(&spaces), []);
        let opened = spaces.open(&spec("a", 1), || {
            assert_eq!(known(&spaces), [("a".to_owned(), 1)]);
            Ok(7)
        });
        assert_eq!(opened.unwrap(), 7);
        // The options that it was opened with stay, though other calls fail to open it otherwise, or open it meanwhile.
        assert!(spaces.open(&spec("a", 2), refused).is_err());
        assert_eq!(known(&spaces), [("a".to_owned(), 1)]);
        let opened_meanwhile = || {
            spaces.open(&spec("b", 3), || Ok(8)).unwrap();
            refused()
        };
        assert!(spaces.open(&spec("b", 3), opened_meanwhile).is_err());
        assert_eq!(known(&spaces), [("a".to_owned(), 1), ("b".to_owned(), 3)]);
        // Opening without a quota leaves the quota that there is.
        spaces.open(&spec("b", 0), || Ok(8)).unwrap();
        assert_eq!(known(&spaces), [("a".to_owned(), 1), ("b".to_owned(), 3)]);
    }
}
