//! Reading a file of recorded messages with a progress bar.

use crate::message_file::{Lines, MessageLine};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// Number of bytes after which a read ends with the current line.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// A file of recorded messages, and the progress of reading it.
pub(super) struct Input {
    lines: Lines<Box<dyn BufRead + Send>>,
    progress: ProgressBar,
    name: String,
}

impl Input {
    /// Opens a file; `-` means standard input.
    pub(super) fn open(file: &Path) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let (input, size): (Box<dyn BufRead + Send>, Option<u64>) = if file == Path::new("-") {
            (Box::new(BufReader::new(io::stdin())), None)
        } else {
            let opened = File::open(file).with_context(|| format!("{name} cannot be read"))?;
            let size = opened.metadata().with_context(|| format!("{name} cannot be read"))?.len();
            (Box::new(BufReader::with_capacity(1 << 20, opened)), Some(size))
        };
        // The progress bar is drawn only on a terminal; its templates are constants.
        let progress = match size {
            Some(size) => {
                ProgressBar::new(size).with_style(style("{bar:40} {percent:>3}% {binary_bytes_per_sec} {eta}"))
            }
            None => ProgressBar::new_spinner().with_style(style("{spinner} {binary_bytes} {binary_bytes_per_sec}")),
        };
        Ok(Self { lines: Lines::new(input), progress, name })
    }

    /// Reads the next lines, at most `max`; returns none at the end of the file.
    pub(super) fn read_lines(&mut self, max: usize) -> anyhow::Result<Vec<MessageLine>> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < max && bytes < MAX_BYTES {
            let Some(line) = self.lines.next_line().with_context(|| format!("{} cannot be read", self.name))? else {
                break;
            };
            self.progress.inc(line.bytes);
            bytes += line.bytes;
            lines.push(line);
        }
        Ok(lines)
    }

    /// Removes the progress bar.
    pub(super) fn finish(self) {
        self.progress.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
