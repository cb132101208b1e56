//! Checking a credit against its payment: the table of steps (`docs/concepts/checks.md`), and how often it is checked.

use super::{
    credit::{Credit, Points},
    dead_letter::Reason,
    ids::{PaymentId, UserId},
    status::PaymentStatus,
};
use std::borrow::Cow;

/// How a payment stands in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerState {
    /// There is no row.
    Absent,
    /// Its points count, and no check has found the payment paid.
    Credited,
    /// Its points count, and a check has found the payment paid before.
    Verified,
    /// Its points were taken back.
    Reversed,
}

impl LedgerState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Credited, Self::Verified, Self::Reversed];

    /// From the columns of `points_credits`: `state`, of which anything but `reversed` counts, and whether `verified_at` is
    /// set.
    pub fn of_row(state: &str, verified: bool) -> Self {
        match (state, verified) {
            ("reversed", _) => Self::Reversed,
            (_, true) => Self::Verified,
            (_, false) => Self::Credited,
        }
    }

    /// Whether its points count.
    pub fn counts(self) -> bool {
        matches!(self, Self::Credited | Self::Verified)
    }
}

/// What is done about a credit whose payment turns out not to be paid (`compensation.on_unpaid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnpaid {
    /// It is reversed.
    Reverse,
    /// The message is parked, and a person decides. The credit stays.
    Dead,
}

/// What a check does: the `step` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckStep {
    /// Paid and credited: marked verified.
    Verify,
    /// Paid and absent: credited and marked verified.
    LateCredit,
    /// Paid and reversed: reinstated and marked verified.
    Reinstate,
    /// Nothing is certain: checked again after the next delay.
    Recheck,
    /// Not paid in time: reversed, and checked once more.
    Expire,
    /// Closed: reversed.
    Reverse,
    /// Not paid and absent: credited and reversed at once, so that a later copy of the message is a duplicate.
    Void,
    /// Nothing is left to do.
    None,
    /// The message goes to the dead queue, and the ledger stays as it is.
    Dead(Reason),
}

impl CheckStep {
    /// The metric's label.
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

    /// How the payment stands in the ledger after it.
    pub fn leaves(self, before: LedgerState) -> LedgerState {
        match self {
            Self::Verify | Self::LateCredit | Self::Reinstate => LedgerState::Verified,
            Self::Expire | Self::Reverse | Self::Void => LedgerState::Reversed,
            Self::Recheck | Self::None | Self::Dead(_) => before,
        }
    }

    /// Whether it takes points back, or sees to it that they never count: what the brake counts.
    pub fn is_reversal(self) -> bool {
        matches!(self, Self::Expire | Self::Reverse | Self::Void)
    }
}

/// The table: what is done, given what the source says, how the payment stands in the ledger, and whether this check is
/// the last one (`used_up`). Nothing else decides.
pub fn decide(status: PaymentStatus, state: LedgerState, used_up: bool, on_unpaid: OnUnpaid) -> CheckStep {
    match Resolution::of(status, used_up) {
        Some(resolution) => resolution.decide(state, on_unpaid),
        None => CheckStep::Recheck,
    }
}

/// Every status with every step that it can lead to: the label pairs of `pointsd_checks_total`.
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

/// What a check has found out about a payment, as far as the ledger must know it. Anything else that the source may say
/// leaves the ledger alone. In the order in which they win over one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// It is paid.
    Paid,
    /// It is closed.
    Closed,
    /// The message wrote its id in another spelling than its own record does.
    Misspelt,
    /// It is pending, and its checks are used up.
    Pending,
    /// The source does not know it, and its checks are used up.
    Unknown,
    /// A person must decide, for this reason.
    ForPerson(Reason),
}

impl Resolution {
    /// `None` when the ledger does not matter to the decision: it is checked again.
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

    /// The table's row for it.
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
            // It was paid once, and is pending again.
            (Self::Pending, Verified) => CheckStep::Dead(Reason::Expired),
            // No user has these points, so there is nothing for a person to decide.
            (Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown, Absent) => CheckStep::Void,
            // An unknown payment that was verified was paid once, and its record was archived.
            (Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown, Reversed) | (Self::Unknown, Verified) => {
                CheckStep::None
            }
            (Self::ForPerson(reason), _) => CheckStep::Dead(reason),
        }
    }

    /// Whether it may lead to a reversal: what the brake makes room for.
    pub fn may_reverse(self) -> bool {
        match self {
            Self::Closed | Self::Misspelt | Self::Pending | Self::Unknown => true,
            Self::Paid | Self::ForPerson(_) => false,
        }
    }
}

/// A payment that the ledger is to agree with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Which.
    pub payment_id: PaymentId,
    /// What counts where the ledger has nothing yet: what the message says, or of a payment that is looked up its record.
    /// `None`: then the ledger goes on having nothing.
    pub claim: Option<Claim>,
    /// What is certain of it.
    pub resolution: Resolution,
    /// How the payment's own record writes its id, where the message wrote it in another way.
    pub spelling: Option<String>,
    /// The payment was closed because it was not paid in time: that is made known.
    pub closing: Option<Closing>,
}

/// Whose points a payment gives, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub user_id: UserId,
    /// How many.
    pub points: Points,
}

/// What is made known of a payment that was closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closing {
    /// Whose payment it is, where that is known.
    pub user_id: Option<String>,
}

impl From<Credit> for Claim {
    fn from(Credit { user_id, points, .. }: Credit) -> Self {
        Self { user_id, points }
    }
}

impl Check {
    /// That of a message which says itself whose points they are, and how many.
    pub fn of(credit: Credit, resolution: Resolution) -> Self {
        Self {
            payment_id: credit.payment_id.clone(),
            claim: Some(credit.into()),
            resolution,
            spelling: None,
            closing: None,
        }
    }

    /// The reason that an adjustment of the ledger carries, when `step` makes one.
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

    /// Of another message of the same payment, what this one does not say itself. What was found last is not known: that it is
    /// paid wins, then that it is closed.
    pub fn take_over(&mut self, other: &Self) {
        self.resolution = self.resolution.min(other.resolution);
        self.claim = self.claim.take().or_else(|| other.claim.clone());
        self.spelling = self.spelling.take().or_else(|| other.spelling.clone());
        self.closing = self.closing.take().or_else(|| other.closing.clone());
    }

    /// What is done, given how the payment stands in the ledger: the table's row, unless nothing stands there and nothing
    /// is to.
    pub fn decide(&self, state: LedgerState, on_unpaid: OnUnpaid) -> CheckStep {
        match (state, &self.claim) {
            (LedgerState::Absent, None) if !matches!(self.resolution, Resolution::ForPerson(_)) => CheckStep::None,
            _ => self.resolution.decide(state, on_unpaid),
        }
    }
}

/// What a check did to the ledger's own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What was done.
    pub step: CheckStep,
    /// How the payment stands now.
    pub state: LedgerState,
    /// Whose points they are.
    pub user_id: String,
    /// How many.
    pub points: i64,
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
