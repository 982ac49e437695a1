//! The functions of the library that a plug-in calls, by the pointers in its host.

use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::foreign_struct::{ABI_VERSION, array, text};
use super::open_request::own_key;
use super::plugin_state::{PluginState, find, find_by_request};
use super::vtable::{BackendAnswer, BackendHost, BackendKey};
use crate::abi::KVKEEP_KEYS_MAX;
use crate::arena::Arena;
use crate::error::{KVKEEP_ERR_INTERNAL, KVKEEP_ERR_INVALID, KVKEEP_OK, Status};
use crate::l2::Change;
use crate::log::LogLevel;

/// Most bytes of a plug-in's line of log.
const LINE_MAX: usize = 1024;

/// The host of a plug-in.
pub(super) fn host(plugin: &PluginState, arena: &Arena) -> BackendHost {
    BackendHost {
        struct_size: size_of::<BackendHost>() as u32,
        abi_version: ABI_VERSION,
        backend: plugin.number,
        arena: arena.at(0).cast(),
        arena_bytes: arena.bytes() as u64,
        complete: Some(complete),
        log: Some(log),
        lost: Some(lost),
    }
}

unsafe extern "C" fn complete(request: u64, answer: *const BackendAnswer) -> Status {
    let Some(plugin) = find_by_request(request) else { return KVKEEP_ERR_INVALID };
    let taken = match plugin.take(request) {
        Ok(taken) => taken,
        Err(what) => {
            plugin.refuse(&format!("completed {what}"));
            return KVKEEP_ERR_INVALID;
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| plugin.end(taken, answer)));
    plugin.forget_if_over();
    match ended {
        Ok(Ok(())) => KVKEEP_OK,
        Ok(Err(error)) => error.status,
        Err(_) => {
            plugin.log.write(LogLevel::Error, || "a bug was caught while a plug-in completed a request".to_owned());
            KVKEEP_ERR_INTERNAL
        }
    }
}

unsafe extern "C" fn log(backend: u64, level: i32, message: *const c_char) {
    let Some(plugin) = find(backend) else { return };
    let level = match level {
        1 => LogLevel::Error,
        3 => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    // A plug-in's lines are of one kind each level: their number is bounded, however much it says.
    let kind = match level {
        LogLevel::Error => "error of a plug-in",
        LogLevel::Warn => "warning of a plug-in",
        LogLevel::Info => "note of a plug-in",
    };
    plugin.log.often(kind, level, || format!("plug-in {}: {}", plugin.name, text(message, LINE_MAX)));
}

unsafe extern "C" fn lost(backend: u64, keys: *const BackendKey, key_count: usize) {
    let Some(plugin) = find(backend) else { return };
    let keys = if key_count > KVKEEP_KEYS_MAX { Ok(None) } else { array(keys, key_count, "keys") };
    match keys {
        Ok(Some(keys)) => keys.iter().for_each(|key| plugin.notify(Change::Vanished, &own_key(key), 0)),
        _ => plugin.refuse("told of lost objects and named none"),
    }
}
