//! The preparation of a batch for both databases: each payment ID once, in key order, and then the mapping to one
//! verdict per message.

use crate::database::DatabaseError;
use crate::domain::credit::{Credit, RecordedCredit, Verdict};
use std::collections::HashMap;

/// A batch in the order in which its rows are written.
pub(super) struct Sorted<'a> {
    batch: &'a [Credit],
    /// Indices into the batch, ordered by payment ID and then by position.
    by_payment: Vec<usize>,
}

impl<'a> Sorted<'a> {
    pub(super) fn new(batch: &'a [Credit]) -> Self {
        let mut by_payment: Vec<usize> = (0..batch.len()).collect();
        by_payment.sort_by(|a, b| batch[*a].payment_id.cmp(&batch[*b].payment_id));
        Self { batch, by_payment }
    }

    /// Returns the batch in its own order.
    pub(super) fn batch(&self) -> &'a [Credit] {
        self.batch
    }

    /// Returns the first credit of each payment ID, ordered by payment ID.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &'a Credit> {
        let mut previous: Option<&str> = None;
        self.by_payment.iter().filter_map(move |index| {
            let credit = &self.batch[*index];
            let payment = credit.payment_id.as_str();
            (previous.replace(payment) != Some(payment)).then_some(credit)
        })
    }

    /// Returns one verdict per credit, in the batch's own order.
    ///
    /// `inserted` decides which payment IDs of this batch were new; `standing` contains the ledger's rows of the
    /// others.
    pub(super) fn verdicts(
        &self,
        mut inserted: impl FnMut(&str) -> bool,
        standing: &HashMap<String, RecordedCredit>,
    ) -> Result<Vec<Verdict>, DatabaseError> {
        let mut verdicts = vec![Verdict::Credited; self.batch.len()];
        let same_payment = |a: &usize, b: &usize| self.batch[*a].payment_id == self.batch[*b].payment_id;
        for same in self.by_payment.chunk_by(same_payment) {
            let first = &self.batch[same[0]];
            let payment = first.payment_id.as_str();
            let new = inserted(payment);
            // A new payment is credited by its first message, whose user and points are now in the ledger.
            let compared = if new { &same[1..] } else { same };
            if compared.is_empty() {
                continue;
            }
            // The first message schedules the check.
            let own = RecordedCredit { user_id: first.user_id.to_string(), points: first.points.get(), checked: true };
            let standing = if new { Some(&own) } else { standing.get(payment) };
            // No row is ever deleted, so a payment ID that was not new must be in the ledger.
            let standing = standing.ok_or_else(|| {
                DatabaseError::Database(format!("payment {payment} existed and is now missing in the ledger"))
            })?;
            for index in compared {
                verdicts[*index] = Verdict::of_existing(&self.batch[*index], standing);
            }
        }
        Ok(verdicts)
    }
}
