//! `pointsd run`

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
    // The daemon's state is large, and moved once.
    Box::pin(app::run(settings)).await?;
    Ok(Exit::Done)
}

/// Read by Rust's standard library when it starts a thread.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// The stack of the threads that read header tables, in bytes: lapin's one for each connection, and ours that handle messages.
/// A frame of 128 KiB holds at most 26 000 nested values; to parse them took 64 MiB, and 256 MiB without optimisation.
pub(super) const DEEP_STACK: usize = if cfg!(debug_assertions) { 256 } else { 96 } * 1024 * 1024;

/// Starts the program over, in the same process, with deep stacks for the threads whose size nothing else sets: lapin reads
/// nested header tables by recursion on a thread of its own, and a producer decides how deep they are. All other threads have
/// sizes of their own. Does nothing when somebody has set a size already. Must come before any other thread.
pub(super) fn with_deep_stacks() {
    if std::env::var_os(STACK_VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // It returns only when it fails, and then the daemon runs with what there is.
        let arguments = std::env::args_os().skip(1);
        let _ = Command::new(program).args(arguments).env(STACK_VARIABLE, DEEP_STACK.to_string()).exec();
    }
}
