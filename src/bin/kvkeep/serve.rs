//! `kvkeep serve`: the daemon, from its settings to its last write.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use kvkeep::cache::Cache as _;
use kvkeep::daemon::server::LockFile;
use kvkeep::daemon::server::descriptors;
use kvkeep::daemon::service::{Service, ServiceOptions};
use kvkeep::daemon::settings::{Level, Settings};
use kvkeep::daemon::settings_in_force::settings_in_force;
use kvkeep::daemon::trace_recorder::TraceRecorder;
use kvkeep::error::Error;
use kvkeep::l2::registry;
use kvkeep::log::{Log, LogLevel};
use kvkeep::memory_bounds::MemoryBounds;
use kvkeep::node::Node;
use kvkeep::policy;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::{Outcome, text};

/// Serve one cache to many processes
///
/// Owns L1, the backends and the sessions. Engines open it with connect = "unix:///PATH" and the same library. SIGTERM or
/// SIGINT writes out what was accepted, and ends; a second one ends at once. What systemd wants to be told, it is told.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  kvkeep serve --l1 8GiB --l2 'fs:///var/cache/kvkeep?capacity=200GiB' --socket /run/kvkeep.sock --http 127.0.0.1:9400\n  kvkeep serve --config /etc/kvkeep.toml --log warn\n\nThe file has the names of the flags with _ for -, and flags win over it:\n  l1 = \"8GiB\"\n  l2 = [\"fs:///var/cache/kvkeep?capacity=200GiB\"]\n  socket = \"/run/kvkeep.sock\"\n\nExit status: 0 ended when told to, 1 something accepted was not written, 2 could not start, 128 + signal ended at once."
)]
pub struct ServeArgs {
    /// A TOML file with the same settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print what is in force and where it comes from, as a file for --config, and end
    #[arg(long)]
    print_config: bool,
    /// Check the settings, the size of L1 and the URLs of backends, and end. It opens nothing, and leaves a daemon that runs alone
    #[arg(long, conflicts_with = "print_config")]
    check: bool,
    #[command(flatten)]
    settings: Settings,
}

fn sentence(error: impl Display) -> String {
    error.to_string()
}

/// Log lines on the standard error: with the time for people, with the importance for systemd's journal, which knows the time.
fn log(level: LogLevel) -> Log {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    Log::new(level, move |level, line| {
        let line = match (journal, level) {
            (true, LogLevel::Error) => format!("<3>{line}\n"),
            (true, LogLevel::Warn) => format!("<4>{line}\n"),
            (true, LogLevel::Info) => format!("<6>{line}\n"),
            (false, level) => {
                let name = format!("{level:?}").to_lowercase();
                format!("{} {name:<5} {line}\n", text::date(SystemTime::now()))
            }
        };
        // A failed write means that no reader is left.
        let _ = std::io::stderr().write_all(line.as_bytes());
    })
}

/// Notifies systemd, if it asked for that; a failure is no reason to stop.
fn notify_systemd(log: &Log, state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        log.write(LogLevel::Warn, || format!("telling systemd failed: {error}"));
    }
}

/// Signals to end: the first is waited for, a second ends the process at once.
fn signals() -> Result<Signals, String> {
    let ending = Arc::new(AtomicBool::new(false));
    let register = |signal| {
        flag::register_conditional_shutdown(signal, 128 + signal, ending.clone())?;
        flag::register(signal, ending.clone())
    };
    for signal in [SIGTERM, SIGINT] {
        register(signal).map_err(|error| format!("taking signal {signal} failed: {error}"))?;
    }
    Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("taking signals failed: {error}"))
}

/// Lets this process open as many files as it may: each client needs some, and each load.
fn raise_limit(log: &Log) {
    match descriptors::raise_limit() {
        Ok((before, now)) if before == now => {}
        Ok((before, now)) => {
            log.write(LogLevel::Info, || format!("the limit on open files was raised from {before} to {now}"));
        }
        Err(error) => {
            log.write(LogLevel::Warn, || format!("the limit on open files cannot be raised to the hard one: {error}"));
        }
    }
}

/// Whether a daemon could start with these settings, as far as that shows without opening anything.
fn check(settings: &Settings) -> kvkeep::error::Result<()> {
    settings.limits()?;
    settings.trace()?;
    let socket = settings.socket()?;
    let directory = socket.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        let directory = directory.display();
        return Err(Error::invalid(format!("{directory} is no directory, so there can be no socket in it: make it")));
    }
    let config = settings.node(1, Log::none())?;
    MemoryBounds::of_process(config.huge_pages).check("l1", "L1", config.l1_bytes)?;
    policy::by_name(&config.eviction_policy)?;
    config.backend_urls.iter().try_for_each(|url| registry::check(url))
}

/// Serves until a signal comes. False if accepted writes were not written.
pub fn run(args: &ServeArgs) -> Outcome {
    let file = args.config.as_deref().map(Settings::read).transpose().map_err(sentence)?;
    if args.print_config {
        let name = args.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let file = file.as_ref().map(|file| (name.as_str(), file));
        text::print(&settings_in_force(&args.settings, file).map_err(sentence)?);
        return Ok(true);
    }
    let settings = args.settings.clone().over(file.unwrap_or_default());
    if args.check {
        check(&settings).map_err(sentence)?;
        text::print("the settings are well\n");
        return Ok(true);
    }
    let log = log(settings.log.unwrap_or(Level::Info).into());
    let mut signals = signals()?;
    raise_limit(&log);
    let (access, limits) = (settings.access(), settings.limits().map_err(sentence)?);
    let trace = settings.trace().map_err(sentence)?;
    let socket = settings.socket().map_err(sentence)?;
    // Everything that may be refused is asked for before L1 is mapped, but for the socket's lock, which gives this run its number.
    let lock_file = LockFile::take(&socket).map_err(sentence)?;
    let start = |(path, bytes)| TraceRecorder::start(path, bytes, log.clone());
    let recorder = trace.map(start).transpose().map_err(sentence)?;
    let config = settings.node(lock_file.boot, log.clone()).map_err(sentence)?;
    let timeout_ms = u32::try_from(config.backend_timeout.as_millis()).unwrap_or(u32::MAX);
    let node = Node::open(config).map_err(sentence)?;
    let options = ServiceOptions { access, limits, http: settings.http, recorder };
    let service = match Service::start(&node, lock_file, options, &log) {
        Ok(service) => service,
        Err(error) => {
            node.close();
            return Err(sentence(error));
        }
    };
    let status = format!("serving {}", socket.display());
    notify_systemd(&log, &[NotifyState::Ready, NotifyState::Status(&status)]);

    let signal = signals.forever().next().unwrap_or(SIGTERM);
    log.write(LogLevel::Info, || {
        format!("signal {signal}: writing out what was accepted; another signal ends at once")
    });
    notify_systemd(&log, &[NotifyState::Stopping, NotifyState::Status("writing out what was accepted")]);
    let http = service.stop_clients();
    let drained = node.flush(timeout_ms);
    if let Err(error) = &drained {
        log.write(LogLevel::Error, || format!("not everything was written: {error}"));
    }
    if let Some(http) = http {
        http.stop();
    }
    node.close();
    Ok(drained.is_ok())
}
