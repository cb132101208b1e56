//! The state of a run.

use super::{options::RequeueOptions, pending::Pending, rate::SendRate, report::RequeueReport, targets::Targets};
use crate::{
    config::Settings,
    dead_letters::groups::Groups,
    domain::{dead_letter::DeadLetter, printable::printable},
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) settings: &'a Settings,
    pub(super) options: &'a RequeueOptions,
    /// Ends the run between two steps.
    pub(super) stop: CancellationToken,
    /// The time that ages are measured at.
    pub(super) now: Timestamp,
    /// The numbers so far.
    pub(super) report: RequeueReport,
    /// The counts of the selected messages.
    pub(super) groups: Groups,
    /// What the first round has selected and is not sent yet.
    pub(super) pending: Pending,
    /// The queues that messages return to.
    pub(super) targets: Targets,
    pub(super) rate: SendRate,
    /// The number of messages of this run that this round has seen in the dead queue.
    returned_in_round: u64,
}

impl<'a> Run<'a> {
    /// Begins a run.
    pub(super) fn new(
        settings: &'a Settings,
        options: &'a RequeueOptions,
        now: Timestamp,
        stop: CancellationToken,
        report: RequeueReport,
    ) -> Self {
        Self {
            settings,
            options,
            stop,
            now,
            report,
            groups: Groups::default(),
            pending: Pending::default(),
            targets: Targets::default(),
            rate: SendRate::new(options),
            returned_in_round: 0,
        }
    }

    /// Returns the numbers of the run.
    pub(super) fn finish(self) -> RequeueReport {
        RequeueReport { groups: self.groups.sorted(), ..self.report }
    }

    /// Begins a round, which sees returned messages again.
    pub(super) fn begin_round(&mut self) {
        self.returned_in_round = 0;
    }

    /// Returns whether this run has sent the message. If so, counts it as returned and stops the run, unless it is to continue.
    pub(super) fn note_if_returned(&mut self, letter: &DeadLetter) -> bool {
        if letter.requeue_id.as_deref() != Some(&self.report.requeue_id) {
            return false;
        }
        self.returned_in_round += 1;
        self.report.returned = self.report.returned.max(self.returned_in_round);
        if !self.options.keep_going {
            let error = letter.error.as_deref().unwrap_or_default();
            let (reason, error) = (printable(&letter.reason), printable(error));
            self.report.stopped = Some(format!("a message that was sent comes back: {reason}: {error}"));
        }
        true
    }

    /// Whether nothing more may be sent.
    pub(super) fn is_over(&self) -> bool {
        self.report.stopped.is_some() || self.stop.is_cancelled()
    }
}
