//! A file of recorded messages, read with a progress bar.

use crate::message_file::{Lines, MessageLine};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// So much is read at a time, and the line that goes beyond it.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// RecordedMessage messages, and how far they are read.
pub(super) struct Input {
    lines: Lines<Box<dyn BufRead + Send>>,
    progress: ProgressBar,
    name: String,
}

impl Input {
    /// Opens a file; `-` is standard input.
    pub(super) fn open(file: &Path) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let (input, size): (Box<dyn BufRead + Send>, Option<u64>) = if file == Path::new("-") {
            (Box::new(BufReader::new(io::stdin())), None)
        } else {
            let opened = File::open(file).with_context(|| format!("{name} cannot be read"))?;
            let size = opened.metadata().with_context(|| format!("{name} cannot be read"))?.len();
            (Box::new(BufReader::with_capacity(1 << 20, opened)), Some(size))
        };
        // Drawn on a terminal only; its templates are constants.
        let progress = match size {
            Some(size) => {
                ProgressBar::new(size).with_style(style("{bar:40} {percent:>3}% {binary_bytes_per_sec} {eta}"))
            }
            None => ProgressBar::new_spinner().with_style(style("{spinner} {binary_bytes} {binary_bytes_per_sec}")),
        };
        Ok(Self { lines: Lines::new(input), progress, name })
    }

    /// The next lines, at most `most`; none at the end.
    pub(super) fn lines(&mut self, most: usize) -> anyhow::Result<Vec<MessageLine>> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < most && bytes < MOST_BYTES {
            let Some(line) = self.lines.next_line().with_context(|| format!("{} cannot be read", self.name))? else {
                break;
            };
            self.progress.inc(line.bytes);
            bytes += line.bytes;
            lines.push(line);
        }
        Ok(lines)
    }

    /// Takes the bar away.
    pub(super) fn finish(self) {
        self.progress.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
