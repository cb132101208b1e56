//! Comparing the clock of the daemon with the clock of the ledger: the latter gives the times of credits, the former
//! those of messages and delays.

use super::App;
use crate::{
    ledger::Ledger,
    observe::events::{self, Event as _},
};
use std::time::{Duration, SystemTime};

/// The interval between comparisons of the clocks.
const BETWEEN_COMPARISONS: Duration = Duration::from_secs(60);

/// The largest difference without a warning. A larger one is logged once until it ends. Seconds.
const TOLERATED_SECONDS: f64 = 5.0;

impl App {
    /// Compares the clocks now and every minute. While the ledger is down, the metric keeps the last difference.
    pub(super) async fn watch_clock(&self) {
        let mut ticks = tokio::time::interval(BETWEEN_COMPARISONS);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut warned = false;
        loop {
            ticks.tick().await;
            let asked = SystemTime::now();
            let Ok(ledger) = self.ledger.call(Ledger::now).await else { continue };
            let seconds = seconds_ahead(ledger, asked, SystemTime::now());
            let skewed = seconds.abs() > TOLERATED_SECONDS;
            events::ClockSkew { seconds, warn: skewed && !warned }.emit();
            warned = skewed;
        }
    }
}

/// The minimum number of seconds by which the clock of the ledger is ahead of the clock of the daemon; negative if it
/// is behind. The ledger may have read its clock at any time between the request and the answer.
fn seconds_ahead(ledger: SystemTime, asked: SystemTime, answered: SystemTime) -> f64 {
    let since =
        |later: SystemTime, earlier| later.duration_since(earlier).map_or(0.0, |difference| difference.as_secs_f64());
    if ledger > answered { since(ledger, answered) } else { -since(asked, ledger) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_the_time_of_the_question_does_not_explain() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (ledger, expected) in [(1005, 0.0), (1000, 0.0), (1010, 0.0), (1017, 7.0), (990, -10.0), (0, -1000.0)] {
            let seconds = seconds_ahead(at(ledger), at(1000), at(1010));
            assert!((seconds - expected).abs() < 1e-6, "{ledger}: {seconds}");
        }
    }
}
