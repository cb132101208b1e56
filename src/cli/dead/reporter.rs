//! The progress of a command on a terminal.

use crate::{cli::Output, dead_letters::Reporter};
use indicatif::{ProgressBar, ProgressStyle};

/// Prints remarks, and draws a progress bar on standard error.
pub(super) struct TerminalReporter<'a> {
    output: &'a mut Output,
    bar: ProgressBar,
}

impl<'a> TerminalReporter<'a> {
    /// Prints remarks to `output`.
    pub(super) fn new(output: &'a mut Output) -> Self {
        Self { output, bar: ProgressBar::hidden() }
    }
}

impl Reporter for TerminalReporter<'_> {
    fn note(&mut self, text: &str) {
        self.output.complain(text);
    }

    fn begin(&mut self, total: u64) {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}");
        self.bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    }

    fn advance(&mut self, done: u64) {
        self.bar.set_position(done);
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}
