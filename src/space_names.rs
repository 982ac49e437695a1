//! The names of a space, which its tag is made of, and the text that tells them to people.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// The names of a space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpaceNames {
    /// The name of the model.
    pub model: String,
    /// What the bytes depend on besides the model.
    #[serde(default)]
    pub layout: String,
    /// The salt of the tenant.
    #[serde(default)]
    pub tenant: String,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// The number of the model's weights.
    #[serde(default)]
    pub generation: u64,
}

impl SpaceNames {
    /// As JSON, a name a line.
    pub fn to_text(&self) -> String {
        // Names and numbers can always be written.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads such a text; none if it is damaged.
    pub fn parse(text: &[u8]) -> Option<SpaceNames> {
        serde_json::from_slice(text).ok()
    }
}

/// For people, without the names that are empty.
impl Display for SpaceNames {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "model {:?}", self.model)?;
        for (what, name) in [("layout", &self.layout), ("tenant", &self.tenant)] {
            if !name.is_empty() {
                write!(to, ", {what} {name:?}")?;
            }
        }
        write!(to, ", {} tokens a chunk", self.chunk_tokens)?;
        if self.generation == 0 { Ok(()) } else { write!(to, ", generation {}", self.generation) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_reads_back_and_a_damaged_one_does_not() {
        let (layout, tenant) = ("fp8 \u{7f}\n".to_owned(), "a \"b\" \\ ü".to_owned());
        let names = SpaceNames { model: "m/7b".to_owned(), layout, tenant, chunk_tokens: 256, generation: u64::MAX };
        let text = names.to_text();
        assert_eq!(SpaceNames::parse(text.as_bytes()).as_ref(), Some(&names));
        assert_eq!(text.lines().count(), 7);
        assert_eq!(SpaceNames::parse(&text.as_bytes()[..text.len() - 3]), None);
        assert_eq!(SpaceNames::parse(&[0xff; 40]), None);
        // A later build may add names, and leave out those that are empty.
        let other = SpaceNames::parse(br#"{"model": "m", "chunk_tokens": 16, "more": [1]}"#).unwrap();
        assert_eq!((other.chunk_tokens, other.layout.as_str(), other.generation), (16, "", 0));
        assert_eq!(other.to_string(), "model \"m\", 16 tokens a chunk");
    }
}
