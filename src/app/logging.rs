//! The log: one event, one line, to standard error or the journal.

use crate::observe::settings::{LogFormat, LogSettings};
use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Sets up the log of this process. Once a process; an error only when the journal is asked for and not there.
pub fn install(settings: &LogSettings) -> io::Result<()> {
    // lapin logs messages that come back with their payload (target lapin::returned_messages), and repeats at ERROR
    // what its callers are told anyway: its own lines are silenced. So are the other libraries' below WARN.
    // The audit is not a matter of levels.
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
