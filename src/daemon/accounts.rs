//! Users and groups of this machine, given by name or by number.

use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Result};

/// A user, written as a name or a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserId(pub u32);

/// A group, written as a name or a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupId(pub u32);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a user or a group is a name in quotes, or a number")]
enum NumberOrName {
    Number(u32),
    Name(String),
}

fn unknown(kind: &str, name: &str) -> Error {
    Error::invalid(format!("there is no {kind} {name:?} on this machine: create it, or give its number"))
}

macro_rules! account {
    ($name:ident, $kind:literal, $number_of:expr) => {
        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<$name> {
                let number = text.parse().ok().or_else(|| $number_of(text));
                number.map($name).ok_or_else(|| unknown($kind, text))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<$name, D::Error> {
                match NumberOrName::deserialize(deserializer)? {
                    NumberOrName::Number(number) => Ok($name(number)),
                    NumberOrName::Name(name) => name.parse().map_err(D::Error::custom),
                }
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_u32(self.0)
            }
        }
    };
}
account!(UserId, "user", |name| uzers::get_user_by_name(name).map(|user| user.uid()));
account!(GroupId, "group", |name| uzers::get_group_by_name(name).map(|group| group.gid()));
