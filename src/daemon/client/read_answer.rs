//! Reading the answers to requests, each checked against what the caller asked for.

use std::cell::RefCell;

use super::daemon_link::DaemonLink;
use crate::abi::View;
use crate::daemon::wire::{Fields, WireView};
use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_OK, Result, Status};

/// The error of an answer that does not fit its request.
pub fn wrong_answer() -> Error {
    Error::new(KVKEEP_ERR_INTERNAL, "the daemon's answer does not fit the question: use one build for both")
}

/// Reads an answer without fields.
pub fn nothing(_: Status, _: &mut Fields<'_>) -> Result<()> {
    Ok(())
}

/// Reads an answer of one number.
pub fn number(_: Status, fields: &mut Fields<'_>) -> Result<u64> {
    fields.take()
}

/// Reads an answer of one text.
pub fn text(_: Status, fields: &mut Fields<'_>) -> Result<String> {
    Ok(fields.take::<&str>()?.to_owned())
}

/// Copies an array that must be as long as the caller's.
pub fn fill<T: Copy>(into: &mut [T], from: &[T]) -> Result<()> {
    if into.len() != from.len() {
        return Err(wrong_answer());
    }
    into.copy_from_slice(from);
    Ok(())
}

/// Reads a status for each key, if the caller wants them, and gives whether all are OK.
pub fn read_statuses(statuses: Option<&mut [i32]>) -> impl FnOnce(Status, &mut Fields<'_>) -> Result<bool> {
    move |status, fields| {
        let answer: &[i32] = fields.array()?;
        statuses.map_or(Ok(()), |statuses| fill(statuses, answer))?;
        Ok(status == KVKEEP_OK)
    }
}

/// Reads a view for each key, and gives the status of all.
pub fn read_views<'a>(
    link: &'a DaemonLink,
    views: &'a mut [View],
) -> impl FnOnce(Status, &mut Fields<'_>) -> Result<Status> + use<'a> {
    move |status, fields| {
        let places: &[WireView] = fields.array()?;
        if places.len() != views.len() {
            return Err(wrong_answer());
        }
        for (view, place) in views.iter_mut().zip(places) {
            *view = place.view(&link.arena).ok_or_else(wrong_answer)?;
        }
        Ok(status)
    }
}

thread_local! {
    /// Of the last read of this thread that met keys which are not ready: the session that stages the first of them, for people.
    static STAGER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Reads a view for each key as [`read_views`]. If not all are ready, keeps who stages the first one that is not for [`take_stager`].
pub fn read_views_and_stager<'a>(
    link: &'a DaemonLink,
    views: &'a mut [View],
) -> impl FnOnce(Status, &mut Fields<'_>) -> Result<Status> + use<'a> {
    move |status, fields| {
        let status = read_views(link, views)(status, fields)?;
        let stager: &str = fields.take()?;
        if status != KVKEEP_OK {
            // A destructor that reads after that of the text goes without.
            let _ = STAGER.try_with(|kept| kept.replace(stager.to_owned()));
        }
        Ok(status)
    }
}

/// The session that stages the first key that was not ready for the last read of this thread. Told once.
pub fn take_stager() -> Option<String> {
    STAGER.try_with(RefCell::take).ok().filter(|stager| !stager.is_empty())
}
