//! The output of commands: data to standard output, everything else to standard error.

use super::Exit;
use crate::message_file;
use serde::Serialize;
use std::io::{self, Write};

/// The standard streams of a command.
pub(super) struct Output {
    data: io::Stdout,
    remarks: io::Stderr,
    /// With `--json`, the notes for the JSON object at the end.
    notes: Option<Vec<String>>,
}

/// The error of a command for programs: the last line on standard error.
#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
    exit_code: u8,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
}

impl Output {
    /// Returns an output that prints everything as JSON if `json` is set, including errors.
    pub(super) fn new(json: bool) -> Self {
        Self { data: io::stdout(), remarks: io::stderr(), notes: json.then(Vec::new) }
    }

    /// Prints a line of data.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.data, "{text}")
    }

    /// Prints data as JSON.
    pub(super) fn json(&mut self, data: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(data)?;
        Ok(self.line(&message_file::harmless(&text))?)
    }

    /// Reports a line for people, apart from the data.
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

    /// Reports the end of the command with its error, if any. With `--json` prints one object that contains everything
    /// except the data.
    pub(super) fn finish(&mut self, error: Option<&str>, exit: Exit) {
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
        // Strings and numbers are always serializable.
        self.ask(&message_file::harmless(&text.unwrap_or_default()));
    }
}
