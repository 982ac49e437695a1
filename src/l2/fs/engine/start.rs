//! Starting the engine that the options ask for.

use std::sync::Arc;

use super::IoEngine;
use super::syncer::Syncer;
use super::thread_pool::ThreadPool;
use super::uring::Uring;
use crate::error::{Error, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::l2::fs::core::Core;
use crate::l2::fs::fs_options::{EngineKind, FsOptions};
use crate::log::LogLevel;

/// Starts an engine. Gives its name, and whether it stands in for io_uring, which the kernel refuses.
pub fn start(core: &Arc<Core>, options: &FsOptions) -> Result<(&'static str, bool)> {
    let syncer = core.root.durable.then(|| Syncer::start(core)).transpose()?;
    let uring = || Uring::start(core, &syncer, options.threads, options.depth).map(|uring| uring as Arc<dyn IoEngine>);
    let pool = || ThreadPool::start(core, &syncer, options.threads).map(|pool| pool as Arc<dyn IoEngine>);
    let (engine, name, refused) = match options.engine {
        EngineKind::Pool => (pool()?, "pool", false),
        EngineKind::Uring => match uring() {
            Ok(uring) => (uring, "uring", false),
            Err(error) => {
                let why = format!("fs: io_uring cannot be used here ({error}); open with engine=pool or engine=auto");
                return Err(Error::new(KVKEEP_ERR_UNSUPPORTED, why));
            }
        },
        EngineKind::Auto => {
            match uring() {
                Ok(uring) => (uring, "uring", false),
                Err(error) => {
                    core.root.log.write(LogLevel::Warn, || {
                    // Kernels before 5.12 count the memory of a ring as locked.
                    let locked = error.raw_os_error() == Some(libc::ENOMEM);
                    let remedy = if locked { "the limit on locked memory (ulimit -l)" } else { "seccomp, io_uring_disabled" };
                    format!("fs: io_uring is refused here ({error}): threads read and write instead, slower; see {remedy}")
                });
                    (pool()?, "pool", true)
                }
            }
        }
    };
    // Set once: the core was just made.
    let _ = core.engine.set(engine);
    Ok((name, refused))
}
