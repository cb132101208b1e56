//! Entries that are looked up and committed together, and their outcomes.

use super::{
    look_up::{Interpretation, interpret_answer},
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

/// A resolution that must be applied to the ledger.
#[derive(Clone)]
pub(super) struct Candidate {
    /// Index of the entry.
    pub(super) entry: usize,
    pub(super) resolution: Resolution,
    pub(super) payment: Payment,
    /// Time at which the source answered.
    pub(super) at: Instant,
}

/// Entries and their outcomes.
pub(super) struct Group<'a> {
    pub(super) entries: &'a [Entry],
    pub(super) outcomes: &'a mut [Option<CheckOutcome>],
}

impl Group<'_> {
    /// Sets the outcome of an entry.
    pub(super) fn decide(&mut self, entry: usize, outcome: CheckOutcome) {
        self.outcomes[entry] = Some(outcome);
    }

    /// Interprets the answer for an entry: decides the entry, or adds it to `candidates` or `to_be_closed`.
    pub(super) fn classify_answer(
        &mut self,
        entry: usize,
        payment: Payment,
        at: Instant,
        candidates: &mut Vec<Candidate>,
        to_be_closed: &mut Vec<usize>,
    ) {
        match interpret_answer(&self.entries[entry], payment) {
            Interpretation::Resolved(resolution, payment) => {
                candidates.push(Candidate { entry, resolution, payment, at });
            }
            Interpretation::Recheck(status) => {
                let next = Some(self.entries[entry].attempt.next());
                self.decide(entry, CheckOutcome::Checked { status, step: CheckStep::Recheck, next });
            }
            Interpretation::ToBeClosed => to_be_closed.push(entry),
            Interpretation::Decided(outcome) => self.decide(entry, outcome),
        }
    }

    /// Returns the entries without an outcome.
    pub(super) fn open_entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().zip(&*self.outcomes).filter(|(_, outcome)| outcome.is_none()).map(|(entry, _)| entry)
    }

    /// Returns the indices of the entries of one payment without an outcome.
    pub(super) fn open_entries_of(&self, payment_id: &PaymentId) -> Vec<usize> {
        let is_open = |index: &usize| {
            self.outcomes[*index].is_none()
                && self.entries[*index].check().is_some_and(|check| check.payment_id == *payment_id)
        };
        (0..self.entries.len()).filter(is_open).collect()
    }
}
