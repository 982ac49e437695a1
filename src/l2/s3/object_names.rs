//! The names of objects in a bucket: `<prefix>/<space>/<hash>-<rank>-<group>`.

use object_store::path::Path;

use crate::key::{Key, ObjectKey, SpaceTag, hex, unhex};

/// The folder, beside those of spaces, of objects that were found broken.
const QUARANTINE: &str = "quarantine";

/// Makes names, and reads them.
#[derive(Clone, Debug)]
pub struct ObjectNames {
    prefix: Path,
}

fn file_name(key: &Key) -> String {
    format!("{}-{}-{}", hex(&key.hash), key.rank, key.group)
}

impl ObjectNames {
    /// Of objects below `prefix`.
    pub fn new(prefix: &str) -> ObjectNames {
        ObjectNames { prefix: Path::from(prefix) }
    }

    /// The prefix of all names.
    pub fn root(&self) -> &Path {
        &self.prefix
    }

    /// The folder of a space.
    pub fn space(&self, space: SpaceTag) -> Path {
        self.prefix.clone().join(hex(&space.0))
    }

    /// The name of an object.
    pub fn object(&self, key: &ObjectKey) -> Path {
        self.space(key.space).join(file_name(&key.key))
    }

    /// The name of an object that was found broken.
    pub fn quarantined(&self, key: &ObjectKey) -> Path {
        self.prefix.clone().join(QUARANTINE).join(format!("{}-{}", hex(&key.space.0), file_name(&key.key)))
    }

    /// A name that no object has.
    pub fn nobody(&self) -> Path {
        self.prefix.clone().join("kvkeep-asks-whether-it-is-there")
    }

    /// The key of the object with this name, if it is one.
    pub fn key(&self, name: &Path) -> Option<ObjectKey> {
        let mut parts = name.prefix_match(&self.prefix)?;
        let (space, file, end) = (parts.next()?, parts.next()?, parts.next());
        if end.is_some() {
            return None;
        }
        let space = SpaceTag(unhex(space.as_ref())?);
        let (file, mut numbers) = (file.as_ref().split_once('-')?.0, file.as_ref().split('-').skip(1));
        let (rank, group) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let key = ObjectKey { space, key: Key { hash: unhex(file)?, rank, group } };
        // Other ways to write the numbers are other names.
        (self.object(&key) == *name).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_others_are_nobodys() {
        let key = ObjectKey { space: SpaceTag([0xab; 16]), key: Key { hash: [0xcd; 32], rank: 3, group: 12 } };
        for prefix in ["", "kv", "a/b"] {
            let names = ObjectNames::new(prefix);
            let name = names.object(&key);
            let end = format!("{}/{}-3-12", "ab".repeat(16), "cd".repeat(32));
            assert_eq!(name.as_ref(), [prefix, &end].join("/").trim_start_matches('/'));
            assert_eq!(names.key(&name), Some(key));
            assert_eq!(names.key(&names.quarantined(&key)), None);
            assert_eq!(names.key(&names.nobody()), None);
            for other in ["-3-012", "-3", "-3-12-1", "-+3-12"] {
                let other = names.space(key.space).join(format!("{}{other}", "cd".repeat(32)));
                assert_eq!(names.key(&other), None, "{other}");
            }
        }
        assert_eq!(ObjectNames::new("x").key(&ObjectNames::new("y").object(&key)), None);
    }
}
