//! The settings of the log, the endpoints and the health checks.

use std::{net::SocketAddr, time::Duration};

/// `[health]`
#[derive(Debug, Clone)]
pub struct HealthSettings {
    /// How long credits may wait for a commit before `/readyz` answers 503.
    pub stalled_after: Duration,
}

/// `[http]`
#[derive(Debug, Clone, Copy)]
pub struct HttpSettings {
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug, Clone, Copy)]
pub struct LogSettings {
    /// What is logged.
    pub level: LogLevel,
    /// How.
    pub format: LogFormat,
}

/// The least grave events that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what fails.
    Error,
    /// Also what a person should look at.
    Warn,
    /// Also what changes the daemon's state.
    Info,
    /// Also every batch.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people, on standard error.
    Text,
    /// A JSON object a line, on standard error.
    Json,
    /// Structured, to the systemd journal.
    Journald,
}

impl LogFormat {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Journald => "journald",
        }
    }
}
