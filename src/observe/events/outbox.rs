//! What becomes of the outbox.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use crate::observe::metrics as names;
use ::metrics::gauge;
use tracing::{debug, info, warn};

/// This daemon has the turn, and a broker that takes its messages.
pub struct Relaying;

impl Relaying {
    /// Tells of it.
    pub fn emit(self) {
        info!("relaying the outbox");
    }
}

/// The outbox was counted.
pub struct OutboxCounted {
    /// Its rows, up to a million.
    pub rows: i64,
    /// The age of the first one.
    pub oldest_seconds: Option<f64>,
}

impl OutboxCounted {
    /// Tells of it.
    pub fn emit(self) {
        #[allow(clippy::cast_precision_loss, reason = "at most a million")]
        gauge!(names::OUTBOX_ROWS).set(self.rows as f64);
        gauge!(names::OUTBOX_OLDEST_SECONDS).set(self.oldest_seconds.unwrap_or(0.0));
    }
}

/// Rows of the outbox could not be delivered, and are held.
pub struct OutboxHeld<'a> {
    /// Where they were to go.
    pub exchange: &'a str,
    /// How many.
    pub rows: u64,
    /// The first of them.
    pub first_id: i64,
    /// Whether there are some among them that were not tried before.
    pub anew: bool,
    /// What the broker said of that one.
    pub error: &'a str,
}

impl OutboxHeld<'_> {
    /// Tells of it: as a warning where it is news.
    pub fn emit(self) {
        let Self { exchange, rows, first_id, anew, error } = self;
        if anew {
            warn!(exchange, rows, first_id, error, "outbox rows held; `pointsd outbox list` shows them");
        } else {
            debug!(exchange, rows, first_id, error, "outbox rows still held");
        }
    }
}
