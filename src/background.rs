//! Threads of the library that work while the engine works.

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

/// What each does first.
static PRELUDE: OnceLock<fn()> = OnceLock::new();

/// Sets what each such thread does first; once in a process.
pub fn begin_with(prelude: fn()) {
    let _ = PRELUDE.set(prelude);
}

/// Starts one.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(prelude) = PRELUDE.get() {
            prelude();
        }
        body();
    })
}
