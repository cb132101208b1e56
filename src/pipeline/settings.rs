//! The settings of retries and checks.

use crate::domain::{
    check_schedule::CheckPolicy,
    retry::{Delay, RetryPolicy},
};
use std::time::Duration;

/// `[retry]`: what is done about a failure that may pass.
#[derive(Debug, Clone)]
pub struct RetrySettings {
    /// Attempts at a batch before it is split: at least 1.
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone.
    pub policy: RetryPolicy,
}

/// `[compensation]`: how credits are checked against their payments.
#[derive(Debug, Clone)]
pub struct CompensationSettings {
    /// How often and when, and what is done in the end.
    pub policy: CheckPolicy,
    /// Reversals in a row, without a paid payment between them, after which the checks pause: at least 1.
    pub brake_after: u32,
}

impl CompensationSettings {
    /// A credit that is older and unverified is overdue: the whole schedule of checks, the confirming one among them, and an
    /// hour for what waits behind an outage or a backlog.
    pub fn overdue_after(&self) -> Duration {
        const MARGIN: Duration = Duration::from_secs(3600);
        let delays = self.policy.delays();
        let milliseconds = delays.iter().chain(delays.last()).map(Delay::milliseconds).sum();
        Duration::from_millis(milliseconds) + MARGIN
    }
}
