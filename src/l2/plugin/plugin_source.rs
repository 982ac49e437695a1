//! Where a plug-in's functions come from: a vtable of the host program, or a shared library that exports one.

use std::ffi::{CStr, CString, c_void};

use super::foreign_struct::{read, text};
use super::vtable::{BackendVtable, kvkeep_plugin_entry};
use crate::error::{Error, KVKEEP_ERR_IO, Result};
use crate::l2::url::parse_pairs;

/// Longest name of a plug-in.
const NAME_MAX: usize = 63;
/// The function that a shared library exports.
const ENTRY: &CStr = c"kvkeep_plugin";

/// A checked vtable, and the parameters to open it with.
pub struct PluginSource {
    /// The name of the store, for people.
    pub(super) name: String,
    pub(super) vtable: BackendVtable,
    pub(super) parameters: Vec<(String, String)>,
}

// SAFETY: the userdata is never dereferenced here, and a plug-in's functions may be called from any thread.
unsafe impl Send for PluginSource {}
// SAFETY: as above.
unsafe impl Sync for PluginSource {}

impl PluginSource {
    /// The functions of the host program. `parameters` are written as in a URL: `name=value&…`.
    ///
    /// # Safety
    ///
    /// `vtable` is NULL, or points to as many bytes as its first field says, and its functions have the signatures of the header.
    pub unsafe fn of_host(vtable: *const BackendVtable, parameters: &str) -> Result<PluginSource> {
        let parameters = parse_pairs(parameters.split('&').filter(|pair| !pair.is_empty()))?;
        PluginSource::checked(vtable, parameters)
    }

    /// The source without the parameters whose names `takes` chooses, and those.
    pub fn split_parameters(&self, takes: impl Fn(&str) -> bool) -> (PluginSource, Vec<(String, String)>) {
        let (taken, parameters) = self.parameters.iter().cloned().partition(|(name, _)| takes(name));
        (PluginSource { name: self.name.clone(), vtable: self.vtable, parameters }, taken)
    }

    /// The functions of the shared library at `path`, which stays loaded.
    pub fn of_library(path: &str, parameters: &[(String, String)]) -> Result<PluginSource> {
        if path.is_empty() {
            return Err(Error::invalid("plugin: names no library; write plugin:/path/to/library.so"));
        }
        let Ok(name) = CString::new(path) else {
            return Err(Error::invalid("the path of a plug-in's library has a NUL; write plugin:/path/to/library.so"));
        };
        let entry = find_entry(&name).map_err(|why| {
            let message =
                format!("loading the plug-in {path}: {why}; name a shared library that exports kvkeep_plugin");
            Error::new(KVKEEP_ERR_IO, message)
        })?;
        // SAFETY: a function of this signature, by the promise of a library that exports this name.
        let vtable = unsafe { entry() };
        PluginSource::checked(vtable, parameters.to_vec())
            .map_err(|error| Error { message: format!("the plug-in {path}: {}", error.message), ..error })
    }

    /// The URL that people see. A vtable of the host has the name of its store in place of a path.
    pub fn url(&self) -> String {
        let query: Vec<String> = self.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        format!("plugin:{}{mark}{}", self.name, query.join("&"))
    }

    fn checked(vtable: *const BackendVtable, parameters: Vec<(String, String)>) -> Result<PluginSource> {
        let vtable = read(vtable, "vtable")?;
        let name = text(vtable.name, NAME_MAX + 1);
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::invalid(format!("vtable->name has {} bytes: give it 1 to {NAME_MAX}", name.len())));
        }
        let required = [
            ("open", vtable.open.is_some()),
            ("lookup", vtable.lookup.is_some()),
            ("load", vtable.load.is_some()),
            ("store", vtable.store.is_some()),
            ("remove", vtable.remove.is_some()),
            ("close", vtable.close.is_some()),
        ];
        if let Some((function, _)) = required.iter().find(|(_, given)| !given) {
            return Err(Error::invalid(format!(
                "the plug-in {name} has no function {function}: only touch, unpin, list, usage and health may be NULL"
            )));
        }
        if let Some((parameter, _)) =
            parameters.iter().find(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            return Err(Error::invalid(format!("the parameter {parameter:?} of a plug-in has a NUL: leave it out")));
        }
        Ok(PluginSource { name, vtable, parameters })
    }
}

/// Loads a library and finds its entry, or says why not.
fn find_entry(path: &CStr) -> std::result::Result<unsafe extern "C" fn() -> *const BackendVtable, String> {
    // SAFETY: NUL-terminated texts. Loading runs the library's own initialisers: it is code that the caller chose to run.
    let (library, symbol) = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        let symbol = if library.is_null() { std::ptr::null_mut() } else { libc::dlsym(library, ENTRY.as_ptr()) };
        (library, symbol)
    };
    if symbol.is_null() {
        // SAFETY: gives NULL, or a text that stays until this thread's next call of the dynamic linker.
        let why = text(unsafe { libc::dlerror() }, 512);
        if !library.is_null() {
            // SAFETY: loaded above, and nothing of it is in use.
            unsafe { libc::dlclose(library) };
        }
        return Err(if why.is_empty() { "it has no function kvkeep_plugin".to_owned() } else { why });
    }
    // SAFETY: dlsym gives functions as data; both are pointers of one size, and this one is not NULL.
    let entry = unsafe { std::mem::transmute::<*mut c_void, kvkeep_plugin_entry>(symbol) };
    entry.ok_or_else(String::new)
}
