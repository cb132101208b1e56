//! The daemon's clock against the ledger's: the times of credits come from the one, those of messages and delays from the
//! other.

use super::App;
use crate::{
    ledger::Ledger,
    observe::events::{self, Event as _},
};
use std::time::{Duration, SystemTime};

/// How often the clocks are compared.
const BETWEEN_COMPARISONS: Duration = Duration::from_secs(60);

/// A larger difference is warned of, once until it has passed. Seconds.
const TOLERATED: f64 = 5.0;

impl App {
    /// Compares the clocks now and every minute. While the ledger is down the metric keeps the last difference.
    pub(super) async fn watch_clock(&self) {
        let mut turns = tokio::time::interval(BETWEEN_COMPARISONS);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut warned = false;
        loop {
            turns.tick().await;
            let asked = SystemTime::now();
            let Ok(ledger) = self.ledger.call(Ledger::now).await else { continue };
            let seconds = ahead(ledger, asked, SystemTime::now());
            let skewed = seconds.abs() > TOLERATED;
            events::ClockSkew { seconds, warn: skewed && !warned }.emit();
            warned = skewed;
        }
    }
}

/// By how many seconds the ledger's clock is ahead of ours at least, and behind it where that is negative: the answer may be of
/// any moment between question and answer.
fn ahead(ledger: SystemTime, asked: SystemTime, answered: SystemTime) -> f64 {
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
            let seconds = ahead(at(ledger), at(1000), at(1010));
            assert!((seconds - expected).abs() < 1e-6, "{ledger}: {seconds}");
        }
    }
}
