//! The events of the daemon: one struct for each occurrence, which emits its log line and its metric together.
//!
//! A log line can be understood alone, has units in the names of its fields, and identifies messages and payments. It never
//! contains a body or a secret.

mod checks;
mod commits;
mod daemon;
mod messages;
mod outbox;

pub use checks::*;
pub use commits::*;
pub use daemon::*;
pub use messages::*;
pub use outbox::*;
use std::time::Duration;

/// An occurrence that an operator can see in the log, in the metrics, or in both.
pub trait Event {
    /// Writes the log line and updates the metric.
    fn emit(self);
}

/// Logs the numbers of suppressed lines that no later line has reported. Call it once a second.
pub fn report_suppressed() {
    commits::report_suppressed();
    messages::report_suppressed();
}

/// A duration as a number of seconds for a log field, to the millisecond.
#[allow(clippy::cast_precision_loss, reason = "exact for 285 000 years")]
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// The number of occurrences of each item, in the order of their first occurrence.
fn tally<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<(T, u64)> {
    let mut counts: Vec<(T, u64)> = Vec::new();
    for item in items {
        match counts.iter_mut().find(|(counted, _)| *counted == item) {
            Some((_, count)) => *count += 1,
            None => counts.push((item, 1)),
        }
    }
    counts
}
