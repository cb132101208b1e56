//! Waiting between attempts: the one place that knows the `backoff` crate (ADR 2), so that another could replace it.

use ::backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use std::time::Duration;

/// The first pause after a failure that may pass at once.
const IMMEDIATE_FIRST: Duration = Duration::from_millis(20);
/// The longest pause of the immediate stage: others wait behind it.
const IMMEDIATE_LONGEST: Duration = Duration::from_millis(500);
/// The immediate stage ends here, however many attempts are left.
const IMMEDIATE_TIME: Duration = Duration::from_secs(20);
/// The first pause while a dependency is down.
const OUTAGE_FIRST: Duration = Duration::from_millis(200);
/// The longest pause while a dependency is down: how late its return may be noticed.
const OUTAGE_LONGEST: Duration = Duration::from_secs(15);

/// Exponential with jitter; `most` bounds the time since the first pause. The crate bounds time only: attempts are
/// counted here.
fn exponential(first: Duration, longest: Duration, most: Option<Duration>) -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(first)
        .with_multiplier(2.0)
        .with_randomization_factor(0.3)
        .with_max_interval(longest)
        .with_max_elapsed_time(most)
        .build()
}

/// The pauses between `attempts` attempts in all: one fewer than there are attempts, and none after [`IMMEDIATE_TIME`].
pub fn immediate(attempts: u32) -> impl Iterator<Item = Duration> {
    let mut backoff = exponential(IMMEDIATE_FIRST, IMMEDIATE_LONGEST, Some(IMMEDIATE_TIME));
    (1..attempts).map_while(move |_| backoff.next_backoff())
}

/// The pauses while a dependency is down: they grow to a cap and never end.
#[derive(Debug)]
pub struct Pace(ExponentialBackoff);

impl Default for Pace {
    fn default() -> Self {
        Self(exponential(OUTAGE_FIRST, OUTAGE_LONGEST, None))
    }
}

impl Pace {
    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(OUTAGE_LONGEST)
    }

    /// The dependency works: the next outage begins with a short pause again.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediate_attempts_are_bounded_by_their_number() {
        assert_eq!(immediate(1).count(), 0);
        assert_eq!(immediate(3).count(), 2);
        assert!(immediate(100).all(|pause| pause <= IMMEDIATE_LONGEST.mul_f64(1.3)));
    }

    #[test]
    fn an_outage_is_waited_for_without_end_and_with_a_cap() {
        let mut outage = Pace::default();
        let first = outage.next_pause();
        assert!(first < Duration::from_millis(300), "{first:?}");
        let late: Vec<_> = (0..1000).map(|_| outage.next_pause()).skip(20).collect();
        assert!(late.iter().all(|pause| (OUTAGE_LONGEST.mul_f64(0.7)..=OUTAGE_LONGEST.mul_f64(1.3)).contains(pause)));
        outage.reset();
        assert!(outage.next_pause() < Duration::from_millis(300));
    }
}
