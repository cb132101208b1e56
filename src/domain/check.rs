//! Checking a credit against its payment: the table of steps (`docs/compensation.md`), and how often it is checked.

use super::{
    credit::{Credit, Points},
    ids::{PaymentId, UserId},
    message::Malformed,
    retry::{RetryPolicy, Step},
    settlement::{Destination, Reason, Settlement},
};
pub use super::{
    status::PaymentStatus,
    turns::{CheckPolicy, Turn, Wait},
};

/// How a payment stands in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerState {
    /// There is no row.
    Absent,
    /// Its points count.
    Credited,
    /// Its points were taken back.
    Reversed,
}

impl LedgerState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Absent, Self::Credited, Self::Reversed];

    /// From the column `state` of `points_credits`; anything but `reversed` counts.
    pub fn of_state(state: &str) -> Self {
        if state == "reversed" { Self::Reversed } else { Self::Credited }
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
            Self::Verify | Self::LateCredit | Self::Reinstate => LedgerState::Credited,
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
    use LedgerState::{Absent, Credited, Reversed};
    use PaymentStatus::{Closed, Paid, Pending, Unknown, Unrecognised};
    match (status, state, used_up) {
        (Paid, Credited, _) => CheckStep::Verify,
        (Paid, Absent, _) => CheckStep::LateCredit,
        (Paid, Reversed, _) => CheckStep::Reinstate,
        (Pending | Unknown | Unrecognised, _, false) => CheckStep::Recheck,
        (Pending | Unknown, Credited, true) => match on_unpaid {
            OnUnpaid::Reverse => CheckStep::Expire,
            OnUnpaid::Dead => CheckStep::Dead(Reason::Expired),
        },
        (Closed, Credited, _) => match on_unpaid {
            OnUnpaid::Reverse => CheckStep::Reverse,
            OnUnpaid::Dead => CheckStep::Dead(Reason::Unpaid),
        },
        // Nobody has these points, so there is nothing for a person to decide.
        (Pending | Unknown, Absent, true) | (Closed, Absent, _) => CheckStep::Void,
        (Pending | Unknown, Reversed, true) | (Closed, Reversed, _) => CheckStep::None,
        (Unrecognised, _, true) => CheckStep::Dead(Reason::Unrecognised),
    }
}

/// Every status with every step that can be done about it.
pub fn possible() -> Vec<(PaymentStatus, CheckStep)> {
    let mut possible: Vec<(PaymentStatus, CheckStep)> = Vec::new();
    for status in PaymentStatus::ALL {
        for state in LedgerState::ALL {
            for used_up in [false, true] {
                for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                    let step = decide(status, state, used_up, on_unpaid);
                    if !possible.contains(&(status, step)) {
                        possible.push((status, step));
                    }
                }
            }
        }
    }
    possible
}

/// What the ledger is told of a payment that is certain by now. What else the source may say leaves the ledger alone.
/// In the order in which they win over one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It is paid.
    Paid,
    /// It is closed.
    Closed,
    /// It was not paid in time.
    Expired,
}

impl Finding {
    /// `None` when the ledger does not matter to the decision.
    pub fn of(status: PaymentStatus, used_up: bool) -> Option<Self> {
        match (status, used_up) {
            (PaymentStatus::Paid, _) => Some(Self::Paid),
            (PaymentStatus::Closed, _) => Some(Self::Closed),
            (PaymentStatus::Pending | PaymentStatus::Unknown, true) => Some(Self::Expired),
            (PaymentStatus::Pending | PaymentStatus::Unknown, false) | (PaymentStatus::Unrecognised, _) => None,
        }
    }

    /// The table's row for it.
    pub fn decide(self, state: LedgerState, on_unpaid: OnUnpaid) -> CheckStep {
        let status = match self {
            Self::Paid => PaymentStatus::Paid,
            Self::Closed => PaymentStatus::Closed,
            Self::Expired => PaymentStatus::Pending,
        };
        decide(status, state, true, on_unpaid)
    }

    /// The reason that an adjustment of the ledger carries, when `step` makes one.
    pub fn reason(self, step: CheckStep) -> &'static str {
        match (self, step) {
            (Self::Paid, _) => "paid after all",
            (Self::Closed, CheckStep::Void) => "closed before it was credited",
            (Self::Closed, _) => "closed",
            (Self::Expired, CheckStep::Void) => "expired before it was credited",
            (Self::Expired, _) => "expired",
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
    pub finding: Finding,
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
    pub fn of(credit: Credit, finding: Finding) -> Self {
        Self { payment_id: credit.payment_id.clone(), claim: Some(credit.into()), finding, closing: None }
    }

    /// Of another message of the same payment, what this one does not say itself. What was found last is not known: that it is
    /// paid wins, then that it is closed.
    pub fn take_over(&mut self, other: &Self) {
        self.finding = self.finding.min(other.finding);
        self.claim = self.claim.take().or_else(|| other.claim.clone());
        self.closing = self.closing.take().or_else(|| other.closing.clone());
    }

    /// What is done, given how the payment stands in the ledger: the table's row, unless nothing stands there and nothing
    /// is to.
    pub fn decide(&self, state: LedgerState, on_unpaid: OnUnpaid) -> CheckStep {
        match (state, &self.claim) {
            (LedgerState::Absent, None) => CheckStep::None,
            _ => self.finding.decide(state, on_unpaid),
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

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The step is done.
    Checked {
        /// What the source said.
        status: PaymentStatus,
        /// What was done.
        step: CheckStep,
        /// When it is checked again, if it is.
        next: Option<Wait>,
    },
    /// It has come after another delay than the first one that is configured: it waits for that one.
    Early(Wait),
    /// A person decides.
    Parked {
        /// What the source said.
        status: PaymentStatus,
        /// Why.
        reason: Reason,
        /// In words.
        error: String,
    },
    /// No credit can be read from it. Its own queue has parked it already.
    Malformed(Malformed),
    /// No payment can be read from it, and this is its own queue.
    Unreadable(Malformed),
    /// A notification that asks for nothing: it is of another kind, or its payment gives no points.
    Ignored,
    /// The source knows the payment as another user's; what it says.
    Conflict(String),
    /// The ledger refuses this one, now and later; why.
    Rejected(String),
    /// It failed alone for a reason that may pass, while something else worked.
    Retry {
        /// The delayed retry that it takes next.
        step: Step,
        /// Why it failed.
        error: String,
    },
    /// The same, and no delayed retry is left.
    Exhausted {
        /// Why it failed the last time.
        error: String,
    },
}

impl CheckOutcome {
    /// Every label, in the order in which people want to read them.
    pub const LABELS: [&'static str; 10] = [
        "checked",
        "ignored",
        "retry",
        "malformed",
        "conflict",
        "rejected",
        "exhausted",
        "unpaid",
        "expired",
        "unrecognised",
    ];

    /// The same for notifications, which may credit at once: one of [`CheckOutcome::label_on_arrival`].
    pub const LABELS_ON_ARRIVAL: [&'static str; 12] = [
        "credited",
        "duplicate",
        "checked",
        "ignored",
        "retry",
        "malformed",
        "conflict",
        "rejected",
        "exhausted",
        "unpaid",
        "expired",
        "unrecognised",
    ];

    /// Of a message that failed alone for a reason that may pass, after `taken` delayed retries.
    pub fn after_failure(error: String, taken: u32, policy: &RetryPolicy) -> Self {
        match policy.next(taken) {
            Some(step) => Self::Retry { step, error },
            None => Self::Exhausted { error },
        }
    }

    /// Its name in metrics: one of [`CheckOutcome::LABELS`].
    pub fn label(&self) -> &'static str {
        match self {
            Self::Checked { .. } | Self::Early(_) => "checked",
            Self::Parked { reason, .. } => reason.label(),
            Self::Malformed(_) | Self::Unreadable(_) => "malformed",
            Self::Ignored => "ignored",
            Self::Conflict(_) => "conflict",
            Self::Rejected(_) => "rejected",
            Self::Retry { .. } => "retry",
            Self::Exhausted { .. } => "exhausted",
        }
    }

    /// Its name in metrics where it is that of a notification.
    pub fn label_on_arrival(&self) -> &'static str {
        match self {
            Self::Checked { step: CheckStep::LateCredit, .. } => "credited",
            Self::Checked { step: CheckStep::Verify, .. } => "duplicate",
            other => other.label(),
        }
    }

    /// How the message is settled.
    pub fn settlement(&self) -> Settlement {
        let dead = |reason| Settlement::Forward(Destination::Dead(reason));
        match self {
            Self::Checked { next: None, .. } | Self::Malformed(_) | Self::Ignored => Settlement::Ack,
            Self::Checked { next: Some(wait), .. } | Self::Early(wait) => {
                Settlement::Forward(Destination::Check(*wait))
            }
            Self::Parked { reason, .. } => dead(*reason),
            Self::Unreadable(_) => dead(Reason::Malformed),
            Self::Conflict(_) => dead(Reason::Conflict),
            Self::Rejected(_) => dead(Reason::Rejected),
            Self::Retry { step, .. } => Settlement::Forward(Destination::Retry(*step)),
            Self::Exhausted { .. } => dead(Reason::Exhausted),
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
