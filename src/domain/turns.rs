//! How often and when a payment is checked.

use super::{
    check::{CheckStep, OnUnpaid},
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

/// Which check a message is, by the number of those that were done before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Whether no further check is configured: the payment has had its time.
    pub used_up: bool,
    /// Whether it is the one more that follows the last one, to catch a payment that was paid at that very moment.
    pub confirming: bool,
    /// Where a copy waits for the next check.
    pub next: Wait,
}

/// A wait for a check. Only [`CheckPolicy::turn`] makes one, so there is a delay for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    pub(super) checks_done: u32,
    pub(super) delay: usize,
}

impl Wait {
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
    pub fn turn(&self, done: u32) -> Turn {
        let (done_before, last) = (done as usize, self.delays.len() - 1);
        Turn {
            used_up: done_before >= last,
            confirming: done_before > last,
            next: Wait { checks_done: done.saturating_add(1), delay: self.offset + (done_before + 1).min(last) },
        }
    }

    /// That of a notification which has just come: no check of it was asked for yet, so none is used up.
    pub fn arrival(&self) -> Turn {
        Turn { used_up: false, confirming: false, next: self.beginning() }
    }

    /// The wait before the first check, for a message that begins anew.
    pub fn beginning(&self) -> Wait {
        Wait { checks_done: 0, delay: self.offset }
    }
}

impl Turn {
    /// Whether the message is checked again after `step`.
    ///
    /// The last check of a payment that was not paid in time is followed by a confirming one whatever the ledger said:
    /// the reversal may have been committed by a daemon that died before it sent the confirming check (ADR 10). A
    /// confirming one is followed by another only if it has reversed something itself.
    pub fn goes_on_after(self, status: PaymentStatus, step: CheckStep) -> bool {
        let in_doubt = matches!(status, PaymentStatus::Pending | PaymentStatus::Unknown);
        match step {
            CheckStep::Recheck | CheckStep::Expire => true,
            CheckStep::Void => in_doubt,
            CheckStep::None => in_doubt && !self.confirming,
            CheckStep::Verify
            | CheckStep::LateCredit
            | CheckStep::Reinstate
            | CheckStep::Reverse
            | CheckStep::Dead(_) => false,
        }
    }
}
