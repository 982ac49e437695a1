//! The message of a call that returns PARTIAL: how much fell short, the reason of the first, and the remedy.

use std::fmt::Write as _;

use super::text::partial;
use crate::error::{
    KVKEEP_ERR_CANCELLED, KVKEEP_ERR_EXISTS, KVKEEP_ERR_EXPIRED, KVKEEP_ERR_INVALID, KVKEEP_ERR_LIMIT,
    KVKEEP_ERR_LOCKED, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_NOT_HELD, KVKEEP_OK, Result, Status,
};
use crate::key::Key;

/// What a batch call returns. `statuses` are those of its keys, where the caller asked for them; `absent` says what NOT_FOUND means of
/// a key.
#[inline]
pub(super) fn batch_status(
    all_ok: Result<bool>,
    keys: &[Key],
    statuses: Option<&[i32]>,
    absent: impl FnOnce(&Key) -> String,
) -> Result<Status> {
    if all_ok? { Ok(KVKEEP_OK) } else { explain(keys, statuses.map(|all| all.iter().copied()), absent) }
}

/// Returns PARTIAL for a batch with these statuses.
#[cold]
pub(super) fn explain(
    keys: &[Key],
    statuses: Option<impl Iterator<Item = i32>>,
    absent: impl FnOnce(&Key) -> String,
) -> Result<Status> {
    let count = keys.len();
    let Some(statuses) = statuses else {
        return partial(&format!("some of the {count} keys were not OK: pass statuses to learn which, and why"));
    };
    let (mut short, mut first) = (0, None);
    for (i, status) in statuses.enumerate().filter(|(_, status)| *status != KVKEEP_OK as i32) {
        short += 1;
        first.get_or_insert((i, status));
    }
    let mut message = format!("{short} of {count} keys fell short");
    if let Some((i, number)) = first {
        let (key, status) = (&keys[i], Status::from_number(number));
        let why = match status {
            Some(KVKEEP_ERR_NOT_FOUND) => absent(key),
            Some(status) => reason(status).to_owned(),
            None => String::new(),
        };
        let name = status.map_or_else(|| number.to_string(), |status| format!("{status:?}"));
        // Writing to a string cannot fail.
        let _ = write!(message, "; the first is keys[{i}], {key}: {name}: {why}");
    }
    partial(&message)
}

/// What a key's status means, and the remedy.
fn reason(status: Status) -> &'static str {
    match status {
        KVKEEP_ERR_EXISTS => "it is ready already, or staged by this session: it need not be written",
        KVKEEP_ERR_INVALID => "its size is 0: an object has at least one byte",
        KVKEEP_ERR_NOT_HELD => "the session holds fewer shares of it: return only what was taken, once",
        KVKEEP_ERR_EXPIRED => {
            "its shares were taken back after the session's deadline: use the session in time, or renew it by kvkeep_renew_session"
        }
        KVKEEP_ERR_LOCKED => "it is in use: kvkeep_explain_key says by whom",
        KVKEEP_ERR_LIMIT => "it would have 2^24 shares: return some",
        KVKEEP_ERR_CANCELLED => "its space was forgotten since it was staged: compute it anew, and write it",
        _ => "kvkeep_explain_key says more",
    }
}
