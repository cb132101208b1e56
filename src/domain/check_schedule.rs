//! The schedule of a payment's checks.

use super::{
    check::{CheckStep, LedgerState, OnUnpaid},
    retry::Delay,
    status::PaymentStatus,
};

/// The policy for the checks of a credit: how many, when, and what happens if the payment is not paid
/// (`[compensation]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPolicy {
    /// The delay of the first check, then of each further check. Never empty.
    delays: Vec<Delay>,
    /// The index of the first delay among the delays of all policies.
    offset: usize,
    /// The action when the payment turns out not to be paid.
    pub on_unpaid: OnUnpaid,
}

/// One check of a schedule, determined by the number of checks that were done before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckAttempt {
    /// Whether the checks of the payment are used up: no further check is configured.
    pub used_up: bool,
    /// Whether this check confirms the last check of the schedule.
    pub confirming: bool,
    /// The delay before the next check.
    next: CheckDelay,
    /// The delay before the check that confirms the last one.
    last: CheckDelay,
    /// The delay before the check that confirms a credit or a reinstatement; `None` for a check after all confirming
    /// checks.
    confirming_paid: Option<CheckDelay>,
}

/// A delay before a check. Only [`CheckPolicy`] creates one, so the delay is always configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckDelay {
    pub(super) checks_done: u32,
    pub(super) delay: usize,
}

impl CheckDelay {
    /// Returns the number of checks done when the delay begins: the value of `x-pointsd-check` on the copy.
    pub fn checks_done(self) -> u32 {
        self.checks_done
    }

    /// Returns the index of the delay among the delays of all policies, in sequence.
    pub fn index(self) -> usize {
        self.delay
    }
}

impl Default for CheckPolicy {
    /// A single check, after 30 seconds.
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a constant that is a valid delay")]
        let first = Delay::parse("30s").expect("a delay");
        Self::new(first, Vec::new(), OnUnpaid::Reverse)
    }
}

impl CheckPolicy {
    /// Creates a policy: `first` after the message, then after each of `delays` as long as the payment has no final
    /// status.
    pub fn new(first: Delay, delays: Vec<Delay>, on_unpaid: OnUnpaid) -> Self {
        Self { delays: std::iter::once(first).chain(delays).collect(), offset: 0, on_unpaid }
    }

    /// Returns the policy with its delays indexed after those of other policies, which have `offset` delays in total.
    #[must_use]
    pub fn behind(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// Returns all delays, including the first one.
    pub fn delays(&self) -> &[Delay] {
        &self.delays
    }

    /// Returns the delay before the first check.
    pub fn first(&self) -> &Delay {
        &self.delays[0]
    }

    /// Returns the check that follows after `done` checks.
    pub fn attempt(&self, done: u32) -> CheckAttempt {
        // The configuration limits the number of delays to `retry::MAX_STEPS`.
        let all = u32::try_from(self.delays.len()).unwrap_or(u32::MAX);
        let last = self.delays.len() - 1;
        let wait = |checks_done, delay: usize| CheckDelay { checks_done, delay: self.offset + delay };
        CheckAttempt {
            used_up: done >= all - 1,
            confirming: done >= all,
            next: wait(done.saturating_add(1), (done as usize + 1).min(last)),
            last: wait(all, last),
            confirming_paid: (done <= all).then(|| wait(done.saturating_add(1), 0)),
        }
    }

    /// Returns the check of a notification on arrival: no check is scheduled yet, so the checks are not used up.
    pub fn arrival(&self) -> CheckAttempt {
        CheckAttempt { used_up: false, confirming: false, next: self.beginning(), ..self.attempt(0) }
    }

    /// Returns the delay before the first check.
    pub fn beginning(&self) -> CheckDelay {
        CheckDelay { checks_done: 0, delay: self.offset }
    }
}

impl CheckAttempt {
    /// Returns the delay before the check that follows `step`, which left the payment in `state`; `None` after the last
    /// check.
    ///
    /// The last check of a payment that was not paid in time is followed by a confirming check whatever the ledger
    /// contained: a daemon may have committed the reversal and died before it sent the confirming check (ADR 10). A
    /// confirming check is followed by another one only if it has reversed something itself. A credit or a
    /// reinstatement is confirmed because the payment may have been closed between look-up and commit.
    pub fn wait_after(self, status: PaymentStatus, step: CheckStep, state: LedgerState) -> Option<CheckDelay> {
        let in_doubt = matches!(status, PaymentStatus::Pending | PaymentStatus::Unknown);
        match step {
            CheckStep::Recheck => Some(self.next),
            CheckStep::Expire => Some(self.last),
            CheckStep::Void => in_doubt.then_some(self.last),
            CheckStep::None => (in_doubt && !self.confirming && state == LedgerState::Reversed).then_some(self.last),
            CheckStep::LateCredit | CheckStep::Reinstate => self.confirming_paid,
            CheckStep::Verify | CheckStep::Reverse | CheckStep::Dead(_) => None,
        }
    }

    /// Returns the delay before the check that confirms a credit or a reinstatement.
    pub fn confirming_paid(self) -> Option<CheckDelay> {
        self.confirming_paid
    }

    /// Returns the delay before the next check of a payment that has no final status.
    pub fn next(self) -> CheckDelay {
        self.next
    }
}
