//! Events of the outbox and its relay.

use super::Event;
use crate::observe::metrics;
use tracing::{debug, info, warn};

/// This daemon has started to relay the outbox.
pub struct Relaying;

impl Event for Relaying {
    fn emit(self) {
        info!("relaying the outbox");
    }
}

/// The rows of the outbox were counted.
pub struct OutboxCounted {
    /// The number of rows, up to a million.
    pub rows: i64,
    /// The age of the oldest row; `None` without rows.
    pub oldest_seconds: Option<f64>,
}

impl Event for OutboxCounted {
    fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most a million")]
        metrics::OUTBOX_ROWS.set([], self.rows as f64);
        metrics::OUTBOX_OLDEST.set([], self.oldest_seconds.unwrap_or(0.0));
    }
}

/// Rows of the outbox could not be delivered and are held.
pub struct OutboxHeld<'a> {
    /// The exchange of the rows.
    pub exchange: &'a str,
    /// The number of rows.
    pub rows: u64,
    /// The ID of the first row.
    pub first_id: i64,
    /// Whether one of the rows was tried for the first time.
    pub is_new: bool,
    /// The error of the first row.
    pub error: &'a str,
}

impl Event for OutboxHeld<'_> {
    /// Logs rows that are held for the first time as a warning, others at DEBUG.
    fn emit(self) {
        let Self { exchange, rows, first_id, is_new, error } = self;
        if is_new {
            warn!(exchange, rows, first_id, error, "outbox rows held; `pointsd outbox list` shows them");
        } else {
            debug!(exchange, rows, first_id, error, "outbox rows still held");
        }
    }
}
