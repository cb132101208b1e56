//! The log: one line for each event, written to standard error or to the journal.

use crate::observe::settings::{LogFormat, LogSettings};
use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Installs the log of this process, once. Fails only if the journal is configured and not available.
pub fn install(settings: &LogSettings) -> io::Result<()> {
    // lapin logs returned messages with their payload (target lapin::returned_messages), and logs errors that it also
    // returns to its caller: its lines are disabled. Other libraries log at WARN and above. The audit log is
    // independent of the level.
    let filter = EnvFilter::new(format!("warn,lapin=off,pointsd={},pointsd::audit=info", settings.level.as_str()));
    let registry = tracing_subscriber::registry();
    let stderr = || tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match settings.format {
        LogFormat::Text => {
            let layer = stderr().with_ansi(io::stderr().is_terminal()).with_target(false);
            registry.with(layer.with_filter(filter)).init();
        }
        LogFormat::Json => registry.with(stderr().json().flatten_event(true).with_filter(filter)).init(),
        LogFormat::Journald => registry.with(tracing_journald::layer()?.with_filter(filter)).init(),
    }
    Ok(())
}
