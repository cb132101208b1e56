//! Pauses between attempts. Only this module uses the `backoff` crate (ADR 2), so that another crate could replace it.

use ::backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};
use std::time::Duration;

/// The first pause after a failure that may pass at once.
const IMMEDIATE_FIRST: Duration = Duration::from_millis(20);
/// The longest pause of the immediate attempts: other messages wait for them.
const IMMEDIATE_LONGEST: Duration = Duration::from_millis(500);
/// The time after which the immediate attempts end, however many are left.
const IMMEDIATE_TIME: Duration = Duration::from_secs(20);
/// The longest pause between two probes of a dependency that is down: its recovery is detected within a second.
const BETWEEN_PROBES: Duration = Duration::from_secs(1);
/// The first pause after a session that settled nothing.
const FRUITLESS_FIRST: Duration = Duration::from_millis(200);
/// The longest pause between sessions that settle nothing.
const FRUITLESS_LONGEST: Duration = Duration::from_secs(15);

/// Creates an exponential backoff with jitter; `most` limits the time since the first pause. The crate limits only the
/// time, so attempts are counted here.
fn exponential(first: Duration, longest: Duration, most: Option<Duration>) -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(first)
        .with_multiplier(2.0)
        .with_randomization_factor(0.3)
        .with_max_interval(longest)
        .with_max_elapsed_time(most)
        .build()
}

/// Returns the pauses between `attempts` attempts in total: one fewer than there are attempts, and none after
/// [`IMMEDIATE_TIME`].
pub fn immediate(attempts: u32) -> impl Iterator<Item = Duration> {
    let mut backoff = exponential(IMMEDIATE_FIRST, IMMEDIATE_LONGEST, Some(IMMEDIATE_TIME));
    (1..attempts).map_while(move |_| backoff.next_backoff())
}

/// Returns the pause before the next probe of a dependency that is down: about a second, with jitter, so that many
/// daemons do not probe at the same moment.
pub fn between_probes() -> Duration {
    let mut backoff = ExponentialBackoffBuilder::new()
        .with_initial_interval(BETWEEN_PROBES.mul_f64(0.8))
        .with_randomization_factor(0.2)
        .build();
    backoff.next_backoff().unwrap_or(BETWEEN_PROBES)
}

/// The pauses between sessions that settle nothing although their probes succeed. Each such session requeues
/// deliveries, which counts towards their delivery limit. The pauses grow to a maximum and never end.
#[derive(Debug)]
pub struct OutageBackoff(ExponentialBackoff);

impl Default for OutageBackoff {
    fn default() -> Self {
        Self(exponential(FRUITLESS_FIRST, FRUITLESS_LONGEST, None))
    }
}

impl OutageBackoff {
    /// Returns the pause before the next session.
    pub fn next_pause(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(FRUITLESS_LONGEST)
    }

    /// Resets the pauses after a session that settled something: the next pause is short again.
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
    fn the_return_of_a_dependency_is_noticed_within_a_second() {
        let pauses: Vec<Duration> = (0..1000).map(|_| between_probes()).collect();
        assert!(pauses.iter().all(|pause| (Duration::from_millis(600)..=BETWEEN_PROBES).contains(pause)), "{pauses:?}");
    }

    #[test]
    fn pauses_between_fruitless_sessions_grow_to_a_cap_and_never_end() {
        let mut backoff = OutageBackoff::default();
        let first = backoff.next_pause();
        assert!(first < Duration::from_millis(300), "{first:?}");
        let late: Vec<_> = (0..1000).map(|_| backoff.next_pause()).skip(20).collect();
        let range = FRUITLESS_LONGEST.mul_f64(0.7)..=FRUITLESS_LONGEST.mul_f64(1.3);
        assert!(late.iter().all(|pause| range.contains(pause)));
        backoff.reset();
        assert!(backoff.next_pause() < Duration::from_millis(300));
    }
}
