//! The result of a requeue.

use crate::dead_letters::{error::DeadLetterError, groups::Group};
use serde::Serialize;
use std::collections::BTreeMap;

/// The numbers of a run.
#[derive(Debug, Default, Serialize)]
pub struct RequeueReport {
    /// The run, as in `x-pointsd-requeue-id`.
    pub requeue_id: String,
    /// The number of selected messages that have a queue to return to.
    pub selected: u64,
    /// The number of messages whose copy is confirmed and that are certain to be removed from the dead queue.
    pub sent: u64,
    /// The number of messages whose copy was published and that may still be in the dead queue.
    pub uncertain: u64,
    /// The number of sent messages that were seen in the dead queue again.
    pub returned: u64,
    /// The number of messages that cannot be sent, because their queue is unknown, does not exist or does not accept them.
    pub not_sendable: u64,
    /// The number of those messages by the reason.
    pub not_sendable_reasons: BTreeMap<String, u64>,
    /// The number of messages that were in the dead queue and were not seen.
    pub unseen: u64,
    /// Whether another reader held messages at the start, which were not seen.
    pub other_readers: bool,
    /// The number of messages that the dead queue should have after the run and does not have.
    pub vanished: u64,
    /// The number of messages that were inspected before and could not be renewed by a copy.
    pub not_renewed: u64,
    /// Why the run stopped before its end.
    pub stopped: Option<String>,
    /// Whether nothing was to be sent.
    pub dry_run: bool,
    /// The selected messages by reason and error, the largest group first.
    #[serde(skip)]
    pub groups: Vec<Group>,
    /// Why the run failed.
    #[serde(skip)]
    pub failure: Option<DeadLetterError>,
}

impl RequeueReport {
    /// Whether every message was seen, every selected message was sent, and none returned.
    pub fn is_complete(&self) -> bool {
        self.failure.is_none()
            && self.stopped.is_none()
            && self.not_sendable == 0
            && self.returned == 0
            && self.unseen == 0
            && self.vanished == 0
            && self.not_renewed == 0
            && !self.other_readers
    }

    /// Counts a message that cannot be sent.
    pub(super) fn count_not_sendable(&mut self, reason: String) {
        self.not_sendable += 1;
        *self.not_sendable_reasons.entry(reason).or_default() += 1;
    }

    /// Adds the numbers that are certain to an error.
    pub(super) fn failed_with(&self, error: DeadLetterError) -> DeadLetterError {
        DeadLetterError::Requeue { sent: self.sent, uncertain: self.uncertain, error: Box::new(error) }
    }

    /// Describes how the run ended, for the audit.
    pub(super) fn end(&self) -> String {
        match (&self.failure, &self.stopped) {
            (Some(error), _) => error.to_string(),
            (None, Some(stopped)) => stopped.clone(),
            (None, None) if self.dry_run => "dry run".into(),
            (None, None) => "done".into(),
        }
    }
}
