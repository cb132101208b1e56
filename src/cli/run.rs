//! `pointsd run`

use super::Exit;
use crate::{app, config::Settings, observe::logging};
use anyhow::Context as _;
use std::{os::unix::process::CommandExt, process::Command};

pub(super) async fn run(settings: Settings) -> anyhow::Result<Exit> {
    logging::install(&settings.log).context("log.format = \"journald\": the journal does not answer")?;
    // The daemon's state is large, and moved once.
    Box::pin(app::run(settings)).await?;
    Ok(Exit::Done)
}

/// Read by Rust's standard library when it starts a thread.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Reserved for each thread, not used unless it is needed. A frame of 128 KiB holds at most 26 000 nested values.
const STACK_BYTES: &str = "268435456";

/// Starts the program over, in the same process, with room for deep recursion: lapin reads nested header tables by
/// recursion on a thread of its own, whose size nothing else sets, and a producer decides how deep they are. Does
/// nothing when somebody has set a size already. Must come before any other thread.
pub(super) fn with_deep_stacks() {
    if std::env::var_os(STACK_VARIABLE).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // It returns only when it fails, and then the daemon runs with what there is.
        let _ = Command::new(program).args(std::env::args_os().skip(1)).env(STACK_VARIABLE, STACK_BYTES).exec();
    }
}
