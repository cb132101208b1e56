//! The options of a requeue.

use crate::dead_letters::selection::Selection;
use std::{num::NonZeroU32, time::Duration};

/// The maximum of [`RequeueOptions::canary_wait`]: deliveries are held meanwhile, and the broker takes deliveries back that are
/// held for half an hour.
pub const MAX_CANARY_WAIT: Duration = Duration::from_secs(300);

/// What to send back, and how.
#[derive(Debug, Clone, Default)]
pub struct RequeueOptions {
    /// Which dead letters.
    pub selection: Selection,
    /// Whether to report only what would be sent.
    pub dry_run: bool,
    /// The maximum number of messages.
    pub limit: Option<u64>,
    /// The maximum number of messages per second; `None` for as many as the broker confirms.
    pub rate: Option<NonZeroU32>,
    /// The number of messages that are sent first, to see whether they return to the dead queue; 0 for none.
    pub canary: u64,
    /// How long to wait for the first messages to return, at most [`MAX_CANARY_WAIT`].
    pub canary_wait: Duration,
    /// Whether to continue when a message returns to the dead queue.
    pub keep_going: bool,
}
