//! The check of a payment against the ledger: the decision table and its steps (`docs/concepts/checks.md`).

use super::{
    credit::{Credit, Points},
    dead_letter::Reason,
    ids::{PaymentId, UserId},
    status::PaymentStatus,
};
use std::borrow::Cow;

/// The state of a payment in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerState {
    /// The ledger has no row for the payment.
    Absent,
    /// The points count, and no check has found the payment paid.
    Credited,
    /// The points count, and a check has found the payment paid before.
    Verified,
    /// The points were reversed.
    Reversed,
}

impl LedgerState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Credited, Self::Verified, Self::Reversed];

    /// Returns the state for a row of `points_credits`: every `state` but `reversed` counts, and `verified` is whether
    /// `verified_at` is set.
    pub fn of_row(state: &str, verified: bool) -> Self {
        match (state, verified) {
            ("reversed", _) => Self::Reversed,
            (_, true) => Self::Verified,
            (_, false) => Self::Credited,
        }
    }

    /// Returns whether the points count.
    pub fn counts(self) -> bool {
        matches!(self, Self::Credited | Self::Verified)
    }
}

/// The action for a credit whose payment is not paid (`compensation.on_unpaid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnpaid {
    /// The credit is reversed.
    Reverse,
    /// The message is parked for a person to decide. The credit is unchanged.
    Dead,
}

/// The step of a check: the `step` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStep {
    /// The payment is paid and credited: the credit is marked verified.
    Verify,
    /// The payment is paid and absent: it is credited and marked verified.
    LateCredit,
    /// The payment is paid and reversed: it is reinstated and marked verified.
    Reinstate,
    /// The payment has no final status: it is checked again after the next delay.
    Recheck,
    /// The payment was not paid in time: the credit is reversed, and checked once more.
    Expire,
    /// The payment is closed: the credit is reversed.
    Reverse,
    /// The payment is not paid and absent: it is credited and reversed at once, so that a later copy of the message is
    /// a duplicate.
    Void,
    /// No change is needed.
    None,
    /// The message is moved to the dead queue, and the ledger is unchanged.
    Dead(Reason),
}

impl CheckStep {
    /// Returns the step's label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::LateCredit => "late_credit",
            Self::Reinstate => "reinstate",
            Self::Recheck => "recheck",
            Self::Expire => "expire",
            Self::Reverse => "reverse",
            Self::Void => "void",
            Self::None => "none",
            Self::Dead(_) => "dead",
        }
    }

    /// Returns the state of the payment in the ledger after the step.
    pub fn leaves(self, before: LedgerState) -> LedgerState {
        match self {
            Self::Verify | Self::LateCredit | Self::Reinstate => LedgerState::Verified,
            Self::Expire | Self::Reverse | Self::Void => LedgerState::Reversed,
            Self::Recheck | Self::None | Self::Dead(_) => before,
        }
    }

    /// Returns whether the step takes points back or voids a payment. The brake counts these steps.
    pub fn is_reversal(self) -> bool {
        matches!(self, Self::Expire | Self::Reverse | Self::Void)
    }
}

/// The decision table: returns the step for the status of the payment, its state in the ledger, and whether this check
/// is the last one (`used_up`). No other input decides.
pub fn decide(status: PaymentStatus, state: LedgerState, used_up: bool, on_unpaid: OnUnpaid) -> CheckStep {
    match Resolution::of(status, used_up) {
        Some(resolution) => resolution.decide(state, on_unpaid),
        None => CheckStep::Recheck,
    }
}

/// Returns every status with every step that it can lead to: the label pairs of `pointsd_checks_total`.
pub fn possible() -> Vec<(PaymentStatus, CheckStep)> {
    let mut possible: Vec<(PaymentStatus, CheckStep)> = Vec::new();
    for status in PaymentStatus::ALL {
        let resolutions = [false, true].map(|used_up| Resolution::of(status, used_up));
        // A payment without a record has no other spelling.
        let misspelt = (status != PaymentStatus::Unknown).then_some(Some(Resolution::Misspelt));
        for resolution in resolutions.into_iter().chain(misspelt) {
            for state in LedgerState::ALL {
                for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                    let step = resolution.map_or(CheckStep::Recheck, |resolution| resolution.decide(state, on_unpaid));
                    if !possible.contains(&(status, step)) {
                        possible.push((status, step));
                    }
                }
            }
        }
    }
    possible
}

/// The finding of a check that the ledger must act on. Every other status leaves the ledger unchanged. Ordered by
/// precedence, the highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// The payment is paid.
    Paid,
    /// The payment is closed.
    Closed,
    /// The message has the payment ID in another spelling than the payment's own record.
    Misspelt,
    /// The payment is pending, and its checks are used up.
    Pending,
    /// The payment is unknown to the source, and its checks are used up.
    Unknown,
    /// A person must decide, for this reason.
    ForPerson(Reason),
}

impl Resolution {
    /// Returns `None` when the ledger does not affect the decision: the payment is checked again.
    pub fn of(status: PaymentStatus, used_up: bool) -> Option<Self> {
        match (status, used_up) {
            (PaymentStatus::Paid, _) => Some(Self::Paid),
            (PaymentStatus::Closed, _) => Some(Self::Closed),
            (PaymentStatus::Pending, true) => Some(Self::Pending),
            (PaymentStatus::Unknown, true) => Some(Self::Unknown),
            (PaymentStatus::Unrecognised, true) => Some(Self::ForPerson(Reason::Unrecognised)),
            (PaymentStatus::Pending | PaymentStatus::Unknown | PaymentStatus::Unrecognised, false) => None,
        }
    }

    /// Returns the step of the decision table for this resolution.
    pub fn decide(self, state: LedgerState, on_unpaid: OnUnpaid) -> CheckStep {
        use LedgerState::{Absent, Credited, Reversed, Verified};
        let unless_a_person_decides = |step, reason| match on_unpaid {
            OnUnpaid::Reverse => step,
            OnUnpaid::Dead => CheckStep::Dead(reason),
        };
        match (self, state) {
            (Self::Paid, Credited | Verified) => CheckStep::Verify,
            (Self::Paid, Absent) => CheckStep::LateCredit,
            (Self::Paid, Reversed) => CheckStep::Reinstate,
            (Self::Closed, Credited | Verified) => unless_a_person_decides(CheckStep::Reverse, Reason::Unpaid),
            (Self::Misspelt, Credited | Verified) => unless_a_person_decides(CheckStep::Reverse, Reason::Conflict),
            (Self::Pending | Self::Unknown, Credited) => unless_a_person_decides(CheckStep::Expire, Reason::Expired),
            // The payment was paid once, and is pending again.
            (Self::Pending, Verified) => CheckStep::Dead(Reason::Expired),
            // No user has these points, so no decision of a person is needed.
            (Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown, Absent) => CheckStep::Void,
            // An unknown payment that was verified was paid once, and its record was archived.
            (Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown, Reversed) | (Self::Unknown, Verified) => {
                CheckStep::None
            }
            (Self::ForPerson(reason), _) => CheckStep::Dead(reason),
        }
    }

    /// Returns whether this resolution may lead to a reversal, for which the brake needs room.
    pub fn may_reverse(self) -> bool {
        match self {
            Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown => true,
            Self::Paid | Self::ForPerson(_) => false,
        }
    }
}

/// A payment with which the ledger is compared and made to agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The ID of the payment.
    pub payment_id: PaymentId,
    /// The user and the points to write where the ledger has no row: from the message, or from the record of a payment
    /// that is looked up. Without a claim (`None`), the ledger remains without a row.
    pub claim: Option<Claim>,
    /// The finding about the payment.
    pub resolution: Resolution,
    /// The ID as the payment's own record spells it, where the message has another spelling.
    pub spelling: Option<String>,
    /// Set when the payment was closed because it was not paid in time: an event reports this.
    pub closing: Option<Closing>,
}

/// The user and the points of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The user who owns the points.
    pub user_id: UserId,
    /// The number of points.
    pub points: Points,
}

/// The data of the event that reports a closed payment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closing {
    /// The user of the payment, where known.
    pub user_id: Option<String>,
}

impl From<Credit> for Claim {
    fn from(Credit { user_id, points, .. }: Credit) -> Self {
        Self { user_id, points }
    }
}

impl Check {
    /// Creates the check of a message that contains the user and the points itself.
    pub fn of(credit: Credit, resolution: Resolution) -> Self {
        Self {
            payment_id: credit.payment_id.clone(),
            claim: Some(credit.into()),
            resolution,
            spelling: None,
            closing: None,
        }
    }

    /// Returns the reason of the adjustment that `step` writes.
    pub fn reason(&self, step: CheckStep) -> Cow<'static, str> {
        match (self.resolution, step) {
            (Resolution::Paid, _) => "paid after all".into(),
            (Resolution::Closed, CheckStep::Void) => "closed before it was credited".into(),
            (Resolution::Closed, _) => "closed".into(),
            (Resolution::Misspelt, _) => {
                format!("another spelling of {}", self.spelling.as_deref().unwrap_or("?")).into()
            }
            (Resolution::Pending | Resolution::Unknown, CheckStep::Void) => "expired before it was credited".into(),
            (Resolution::Pending | Resolution::Unknown, _) => "expired".into(),
            (Resolution::ForPerson(reason), _) => reason.label().into(),
        }
    }

    /// Adds the data that this check lacks from another check of the same payment. Which finding is newer is not known:
    /// paid takes precedence, then closed.
    pub fn take_over(&mut self, other: &Self) {
        self.resolution = self.resolution.min(other.resolution);
        self.claim = self.claim.take().or_else(|| other.claim.clone());
        self.spelling = self.spelling.take().or_else(|| other.spelling.clone());
        self.closing = self.closing.take().or_else(|| other.closing.clone());
    }

    /// Returns the step for the state of the payment in the ledger: the cell of the decision table, or no step when the
    /// ledger has no row and there is no claim to write.
    pub fn decide(&self, state: LedgerState, on_unpaid: OnUnpaid) -> CheckStep {
        match (state, &self.claim) {
            (LedgerState::Absent, None) if !matches!(self.resolution, Resolution::ForPerson(_)) => CheckStep::None,
            _ => self.resolution.decide(state, on_unpaid),
        }
    }
}

/// The result of a check in the ledger's own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The step that was applied.
    pub step: CheckStep,
    /// The state of the payment after the step.
    pub state: LedgerState,
    /// The user who owns the points.
    pub user_id: String,
    /// The number of points.
    pub points: i64,
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
