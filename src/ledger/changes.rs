//! The rows that a step of a check writes, for both databases.

use crate::domain::check::{Check, CheckStep, Checked, LedgerState, OnUnpaid};
use std::borrow::Cow;

/// The row of a payment, as it was found and locked.
pub(super) struct StoredCredit {
    pub(super) user_id: String,
    pub(super) points: i64,
    pub(super) state: LedgerState,
}

/// The changes for one payment.
pub(super) struct Change<'a> {
    pub(super) payment_id: &'a str,
    pub(super) user_id: &'a str,
    /// The new state of the row: a value of the column.
    pub(super) state: &'static str,
    /// Whether the payment was found paid.
    pub(super) verified: bool,
    /// Whether the credit is parked for a person to decide.
    pub(super) asked: bool,
    /// The number of points to add to the user's balance.
    pub(super) balance: i64,
    /// The adjustment to append.
    pub(super) adjustment: Option<Adjustment<'a>>,
}

/// A new row of `points_adjustments`.
pub(super) struct Adjustment<'a> {
    pub(super) kind: &'static str,
    pub(super) points: i64,
    pub(super) reason: Cow<'a, str>,
}

const CREDITED: &str = "credited";
const REVERSED: &str = "reversed";

/// Decides the step for one payment, given its row.
pub(super) fn decide(check: &Check, found: Option<StoredCredit>, on_unpaid: OnUnpaid) -> Checked {
    let before = found.as_ref().map_or(LedgerState::Absent, |found| found.state);
    let step = check.decide(before, on_unpaid);
    let (user_id, points) = match (found, &check.claim) {
        // The ledger's own row takes precedence over the message.
        (Some(found), _) => (found.user_id, found.points),
        (None, Some(claim)) => (claim.user_id.to_string(), claim.points.get()),
        (None, None) => (String::new(), 0),
    };
    Checked { step, state: step.leaves(before), user_id, points }
}

/// Returns the changes for a decision; `None` where there are none.
pub(super) fn change<'a>(check: &'a Check, checked: &'a Checked) -> Option<Change<'a>> {
    let Checked { step, user_id, points, state: after } = checked;
    let adjustment = |kind, points| Some(Adjustment { kind, points, reason: check.reason(*step) });
    let of = |state, verified, balance, adjustment| {
        let payment_id = check.payment_id.as_str();
        Some(Change { payment_id, user_id, state, verified, asked: false, balance, adjustment })
    };
    match step {
        CheckStep::Verify => of(CREDITED, true, 0, None),
        CheckStep::LateCredit => of(CREDITED, true, *points, None),
        CheckStep::Reinstate => of(CREDITED, true, *points, adjustment("reinstatement", *points)),
        CheckStep::Expire | CheckStep::Reverse => of(REVERSED, false, -points, adjustment("reversal", -points)),
        // Credited and reversed at once: the balance is unchanged.
        CheckStep::Void => of(REVERSED, false, 0, adjustment("reversal", -points)),
        CheckStep::Dead(_) if after.counts() => {
            of(CREDITED, false, 0, None).map(|change| Change { asked: true, ..change })
        }
        CheckStep::Recheck | CheckStep::None | CheckStep::Dead(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::check::Resolution;

    #[test]
    fn a_payment_that_was_absent_always_gets_its_row() {
        // PostgreSQL inserts the row before the step is decided.
        for resolution in
            [Resolution::Paid, Resolution::Closed, Resolution::Misspelt, Resolution::Pending, Resolution::Unknown]
        {
            for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                let step = resolution.decide(LedgerState::Absent, on_unpaid);
                assert!(matches!(step, CheckStep::LateCredit | CheckStep::Void), "{resolution:?} {on_unpaid:?}");
            }
        }
    }
}
