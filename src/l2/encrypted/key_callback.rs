//! The function of the host program that gives master keys.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::error::{Error, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_OK, Result, Status};

/// Most keys of one name.
const KEYS_MAX: u32 = 255;

/// Writes the key with this number under this name, and returns a [`Status`] as a number.
type GiveKey = dyn Fn(&CStr, u32, &mut [u8; 32]) -> i32 + Send + Sync;

/// The host's function, if it has one. It blocks, and runs on the thread that opens a backend.
#[derive(Clone, Default)]
pub struct KeyCallback(Option<Arc<GiveKey>>);

impl KeyCallback {
    /// Wraps the host's function.
    pub fn new(give: impl Fn(&CStr, u32, &mut [u8; 32]) -> i32 + Send + Sync + 'static) -> KeyCallback {
        KeyCallback(Some(Arc::new(give)))
    }

    /// Asks for the keys under a name, from the newest on. `takes` gets each of them, and says which of the earlier ones is the same.
    /// The memory in which they come is cleared.
    pub fn ask(&self, name: &str, mut takes: impl FnMut(&[u8; 32]) -> std::result::Result<(), usize>) -> Result<()> {
        let known_by = CString::new(name).ok().filter(|_| !name.is_empty()).ok_or_else(|| {
            let why = "key_from= has no name, or a NUL in it: write the name that key_callback knows the keys by";
            Error::invalid(why)
        })?;
        let Some(give) = &self.0 else {
            return Err(Error::invalid(format!(
                "key_from={name} asks the host program for keys, and the cache was opened without key_callback: set it in \
                 kvkeep_options, or write key_file= or key_env= (a daemon of kvkeep serve has these alone)"
            )));
        };
        let mut key = Zeroizing::new([0; 32]);
        // One is asked for beyond those that there may be, to learn that there is none.
        for number in 0..=KEYS_MAX {
            key.fill(0);
            let status = give(&known_by, number, &mut key);
            if status == KVKEEP_ERR_NOT_FOUND as i32 && number > 0 {
                return Ok(());
            }
            if status != KVKEEP_OK as i32 {
                return Err(refused(name, number, status));
            }
            if *key == [0; 32] {
                return Err(Error::invalid(format!(
                    "key_callback returned KVKEEP_OK for key {number} of {name:?} and wrote no key: it must write 32 random \
                     bytes, or return KVKEEP_ERR_NOT_FOUND"
                )));
            }
            takes(&key).map_err(|first| {
                Error::invalid(format!(
                    "key_callback gave one key as {first} and {number} of {name:?}: it must give each key once, and return \
                     KVKEEP_ERR_NOT_FOUND after the oldest"
                ))
            })?;
        }
        Err(Error::invalid(format!(
            "key_callback gave more than {KEYS_MAX} keys for {name:?}: it must return KVKEEP_ERR_NOT_FOUND after the oldest key"
        )))
    }
}

/// The error of a key that was not given.
fn refused(name: &str, number: u32, status: i32) -> Error {
    match Status::from_number(status).filter(|_| status < 0) {
        Some(KVKEEP_ERR_NOT_FOUND) => Error::new(
            KVKEEP_ERR_NOT_FOUND,
            format!(
                "key_callback has no key for {name:?}: correct key_from= in the URL, or give it a key of this name"
            ),
        ),
        // INTERNAL is for bugs of kvkeep.
        Some(status) => Error::new(
            if status == KVKEEP_ERR_INTERNAL { KVKEEP_ERR_IO } else { status },
            format!(
                "key_callback gave no key {number} for {name:?} and returned {status:?}: look for the cause in the host program, \
                 then open the backend again"
            ),
        ),
        None => Error::invalid(format!(
            "key_callback returned {status} for key {number} of {name:?}: it must return KVKEEP_OK or an error of kvkeep_status"
        )),
    }
}
