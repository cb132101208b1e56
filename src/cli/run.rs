//! `pointsd run`: run the daemon.

use super::Exit;
use crate::{
    app,
    app::logging,
    config::Settings,
    observe::events::{self, Event as _},
};
use anyhow::Context as _;
use std::{os::unix::process::CommandExt, process::Command};

pub(super) async fn run(settings: Settings) -> anyhow::Result<Exit> {
    logging::install(&settings.log).context("log.format = \"journald\": the journal does not answer")?;
    let ignored = &settings.read_from.ignored_environment;
    if !ignored.is_empty() {
        events::EnvironmentIgnored { variables: ignored }.emit();
    }
    // The future of the daemon is large; boxing avoids moving it.
    Box::pin(app::run(settings)).await?;
    Ok(Exit::Done)
}

/// Environment variable from which the standard library reads the default stack size of threads.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Stack size in bytes of the threads that read header tables: the lapin thread of each connection, and the threads
/// that process messages. A frame of 128 KiB contains at most 26 000 nested values; parsing them took 64 MiB, and 256
/// MiB without optimisation.
pub(super) const DEEP_STACK: usize = if cfg!(debug_assertions) { 256 } else { 96 } * 1024 * 1024;

/// Executes the program again in the same process, with a deep default stack for threads.
///
/// lapin reads nested header tables by recursion on a thread whose stack size pointsd cannot set otherwise, and a
/// producer determines their depth. All other threads have explicit stack sizes. Does nothing if the variable is
/// already set. Must be called before any other thread starts.
pub(super) fn restart_with_deep_stacks() {
    if std::env::var_os(STACK_VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` returns only if it fails; the program then continues with the default stack size.
        let arguments = std::env::args_os().skip(1);
        let _ = Command::new(program).args(arguments).env(STACK_VARIABLE, DEEP_STACK.to_string()).exec();
    }
}
