//! What commands print: data to standard output, everything else to standard error.

use crate::recorded;
use serde::Serialize;
use std::io::{self, Write};

/// Where a command prints to.
pub(super) struct Output {
    data: io::Stdout,
    remarks: io::Stderr,
}

impl Default for Output {
    fn default() -> Self {
        Self { data: io::stdout(), remarks: io::stderr() }
    }
}

impl Output {
    /// A line of data.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.data, "{text}")
    }

    /// Data as JSON.
    pub(super) fn json(&mut self, data: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(data)?;
        Ok(self.line(&recorded::harmless(&text))?)
    }

    /// A line for the person. When standard error is gone there is nobody to tell.
    pub(super) fn complain(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{text}");
    }
}
