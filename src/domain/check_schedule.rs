//! How often and when a payment is checked.

use super::{
    check::{CheckStep, LedgerState, OnUnpaid},
    retry::Delay,
    status::PaymentStatus,
};

/// How often and when a credit is checked (`[compensation]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPolicy {
    /// Of the first check, and then of each further one. Never empty.
    delays: Vec<Delay>,
    /// Where they begin among the delays of all policies.
    offset: usize,
    /// What is done when it turns out not to be paid.
    pub on_unpaid: OnUnpaid,
}

/// Which check it is, by the number of those that were done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckAttempt {
    /// Whether no further check is configured: the payment has had its time.
    pub used_up: bool,
    /// Whether it confirms a check that was the last one.
    pub confirming: bool,
    /// The wait for the next check.
    next: CheckDelay,
    /// The wait for the check that confirms the last one.
    last: CheckDelay,
    /// The wait for the check that confirms a credit or a reinstatement; `None` for a check beyond all of those.
    confirming_paid: Option<CheckDelay>,
}

/// A wait for a check. Only [`CheckPolicy::turn`] makes one, so there is a delay for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckDelay {
    pub(super) checks_done: u32,
    pub(super) delay: usize,
}

impl CheckDelay {
    /// Checks that are done when it begins: the value of `x-pointsd-check` on its copy.
    pub fn checks_done(self) -> u32 {
        self.checks_done
    }

    /// The place of its delay among those of all policies, one after the other.
    pub fn index(self) -> usize {
        self.delay
    }
}

impl Default for CheckPolicy {
    /// One check, after half a minute.
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "a constant; the first line of the example configuration")]
        let first = Delay::parse("30s").expect("a delay");
        Self::new(first, Vec::new(), OnUnpaid::Reverse)
    }
}

impl CheckPolicy {
    /// `first` after the message, then after each of `delays` as long as nothing is certain.
    pub fn new(first: Delay, delays: Vec<Delay>, on_unpaid: OnUnpaid) -> Self {
        Self { delays: std::iter::once(first).chain(delays).collect(), offset: 0, on_unpaid }
    }

    /// The same policy behind others, which have so many delays together.
    #[must_use]
    pub fn behind(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// All delays, the first one among them.
    pub fn delays(&self) -> &[Delay] {
        &self.delays
    }

    /// The delay before the first check.
    pub fn first(&self) -> &Delay {
        &self.delays[0]
    }

    /// Which check it is that comes after `done` others.
    pub fn attempt(&self, done: u32) -> CheckAttempt {
        // Bounded by the configuration: a list of delays has at most `retry::MAX_STEPS`.
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

    /// The turn of a notification on arrival: no check of it was scheduled yet, so none is used up.
    pub fn arrival(&self) -> CheckAttempt {
        CheckAttempt { used_up: false, confirming: false, next: self.beginning(), ..self.attempt(0) }
    }

    /// The wait before the first check.
    pub fn beginning(&self) -> CheckDelay {
        CheckDelay { checks_done: 0, delay: self.offset }
    }
}

impl CheckAttempt {
    /// The wait for the next check after `step`, which left the payment in `state`; `None` when it was the last one.
    ///
    /// The last check of a payment that was not paid in time is followed by a confirming one whatever the ledger said:
    /// the reversal may have been committed by a daemon that died before it sent the confirming check (ADR 10). A
    /// confirming one is followed by another only if it has reversed something itself. A credit or a reinstatement is
    /// confirmed, because the payment may have been closed between the look-up and the commit.
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

    /// The wait for the check that confirms a credit or a reinstatement.
    pub fn confirming_paid(self) -> Option<CheckDelay> {
        self.confirming_paid
    }

    /// The wait for the next check, when nothing is certain.
    pub fn next(self) -> CheckDelay {
        self.next
    }
}
