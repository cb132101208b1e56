//! Entries that are looked up and committed together, and what became of each.

use super::{
    look_up::{Judged, validate},
    parse::Entry,
};
use crate::{
    domain::{
        check::{CheckStep, Resolution},
        check_outcome::CheckOutcome,
        ids::PaymentId,
    },
    pipeline::ports::Payment,
};
use std::time::Instant;

/// A finding of which the ledger must know.
#[derive(Clone)]
pub(super) struct Candidate {
    /// Whose it is: the entry's index.
    pub(super) entry: usize,
    pub(super) resolution: Resolution,
    pub(super) payment: Payment,
    /// When the source said so.
    pub(super) at: Instant,
}

/// Entries, and what became of each.
pub(super) struct Group<'a> {
    pub(super) entries: &'a [Entry],
    pub(super) outcomes: &'a mut [Option<CheckOutcome>],
}

impl Group<'_> {
    pub(super) fn decide(&mut self, entry: usize, outcome: CheckOutcome) {
        self.outcomes[entry] = Some(outcome);
    }

    /// Decides an entry, or keeps what the ledger must know of it.
    pub(super) fn sort_in(
        &mut self,
        entry: usize,
        payment: Payment,
        at: Instant,
        candidates: &mut Vec<Candidate>,
        to_be_closed: &mut Vec<usize>,
    ) {
        match validate(&self.entries[entry], payment) {
            Judged::Resolution(resolution, payment) => candidates.push(Candidate { entry, resolution, payment, at }),
            Judged::Again(status) => {
                let next = Some(self.entries[entry].attempt.next());
                self.decide(entry, CheckOutcome::Checked { status, step: CheckStep::Recheck, next });
            }
            Judged::ToBeClosed => to_be_closed.push(entry),
            Judged::Outcome(outcome) => self.decide(entry, outcome),
        }
    }

    /// The entries that have no outcome yet.
    pub(super) fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().zip(&*self.outcomes).filter(|(_, outcome)| outcome.is_none()).map(|(entry, _)| entry)
    }

    /// The open entries of one payment.
    pub(super) fn open_of(&self, payment_id: &PaymentId) -> Vec<usize> {
        let of = |index: &usize| {
            self.outcomes[*index].is_none()
                && self.entries[*index].check().is_some_and(|check| check.payment_id == *payment_id)
        };
        (0..self.entries.len()).filter(of).collect()
    }
}
