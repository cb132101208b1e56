//! The settings of retries and checks.

use crate::domain::{
    check_schedule::CheckPolicy,
    retry::{Delay, RetryPolicy},
};
use std::time::Duration;

/// `[retry]`: how transient failures are retried.
#[derive(Debug, Clone)]
pub struct RetrySettings {
    /// Number of attempts at a batch before it is split; at least 1.
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone.
    pub policy: RetryPolicy,
}

/// `[compensation]`: how credits are checked against their payments.
#[derive(Debug, Clone)]
pub struct CompensationSettings {
    /// Schedule of the checks, and the action for a credit that is not paid at their end.
    pub policy: CheckPolicy,
    /// Number of reversals in a row, without a paid payment between them, after which the checks pause; at least 1.
    pub brake_after: u32,
}

impl CompensationSettings {
    /// Returns the age from which an unverified credit is overdue: the duration of the whole schedule of checks with
    /// the confirming one, and one hour for checks that wait because of an outage or a backlog.
    pub fn overdue_after(&self) -> Duration {
        const MARGIN: Duration = Duration::from_secs(3600);
        let delays = self.policy.delays();
        let milliseconds = delays.iter().chain(delays.last()).map(Delay::milliseconds).sum();
        Duration::from_millis(milliseconds) + MARGIN
    }
}
