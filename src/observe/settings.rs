//! The settings of the log, the endpoints and the health checks.

use std::{net::SocketAddr, time::Duration};

/// Settings of the health checks: `[health]`.
#[derive(Debug, Clone)]
pub struct HealthSettings {
    /// The time that credits may wait for a commit before `/readyz` answers 503.
    pub stalled_after: Duration,
}

/// Settings of the endpoints: `[http]`.
#[derive(Debug, Clone, Copy)]
pub struct HttpSettings {
    /// The address of `/metrics`, `/healthz` and `/readyz`.
    pub listen: SocketAddr,
}

/// Settings of the log: `[log]`.
#[derive(Debug, Clone, Copy)]
pub struct LogSettings {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The format of the log lines.
    pub format: LogFormat,
}

/// The least severe level of events that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Errors only.
    Error,
    /// Also warnings, which need attention.
    Warn,
    /// Also changes of the daemon's state.
    Info,
    /// Also one line for every batch.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The value in the configuration.
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

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, on standard error.
    Text,
    /// One JSON object per line, on standard error.
    Json,
    /// Structured fields, in the systemd journal.
    Journald,
}

impl LogFormat {
    /// The value in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Journald => "journald",
        }
    }
}
