//! What commands print: data to standard output, everything else to standard error.

use super::Exit;
use crate::message_file;
use serde::Serialize;
use std::io::{self, Write};

/// Where a command prints to.
pub(super) struct Output {
    data: io::Stdout,
    remarks: io::Stderr,
    /// With `--json`: what there is to say besides the data, for the one object at the end.
    notes: Option<Vec<String>>,
}

/// Why a command failed, for programs: one line, the last one on standard error.
#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    exit_code: u8,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

impl Output {
    /// `json`: whether everything is JSON, errors too.
    pub(super) fn new(json: bool) -> Self {
        Self { data: io::stdout(), remarks: io::stderr(), notes: json.then(Vec::new) }
    }

    /// A line of data.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.data, "{text}")
    }

    /// Data as JSON.
    pub(super) fn json(&mut self, data: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(data)?;
        Ok(self.line(&message_file::harmless(&text))?)
    }

    /// A line for the person, besides the data.
    pub(super) fn complain(&mut self, text: &str) {
        match &mut self.notes {
            Some(notes) => notes.push(text.to_owned()),
            None => self.ask(text),
        }
    }

    /// Prints a line to standard error at once. An error is ignored: there is no other place to report it.
    pub(super) fn ask(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{text}");
    }

    /// How the command ended: its error, if it has one. With `--json` one object with everything that was not data.
    pub(super) fn end(&mut self, error: Option<&str>, exit: Exit) {
        let Some(notes) = self.notes.take() else {
            if let Some(error) = error {
                self.ask(error);
            }
            return;
        };
        let exit_code = exit as u8;
        let together = notes.join("; ");
        let text = match (error, exit) {
            (Some(error), _) => serde_json::to_string(&Failure { error, exit_code, notes: &notes }),
            (None, _) if notes.is_empty() => return,
            (None, Exit::Done) => serde_json::to_string(&serde_json::json!({ "notes": notes })),
            (None, _) => serde_json::to_string(&Failure { error: &together, exit_code, notes: &[] }),
        };
        // Texts and numbers are always written.
        self.ask(&message_file::harmless(&text.unwrap_or_default()));
    }
}
