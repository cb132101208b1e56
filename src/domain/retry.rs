//! Delayed retries: their number and their delays. The delay queues are in the broker.

/// The longest delay in milliseconds: 30 days. RabbitMQ stores a time to live in 32 bits (49 days).
pub const MAX_DELAY_MILLISECONDS: u64 = 30 * 24 * 3_600_000;

/// The largest number of steps that can be configured.
pub const MAX_STEPS: usize = 50;

/// A delay as configured. Its text is part of a queue's name: another text is another queue, so a change of a delay
/// never conflicts with the immutable arguments of an existing queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delay {
    text: String,
    milliseconds: u64,
}

impl Delay {
    /// Parses `[1-9][0-9]*(ms|s|m|h)`, up to [`MAX_DELAY_MILLISECONDS`].
    pub fn parse(text: &str) -> Option<Self> {
        let unit_at = text.find(|character: char| !character.is_ascii_digit())?;
        let (number, unit) = text.split_at(unit_at);
        let unit = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        if number.starts_with('0') {
            return None;
        }
        let milliseconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
        (milliseconds <= MAX_DELAY_MILLISECONDS).then(|| Self { text: text.to_owned(), milliseconds })
    }

    /// Returns the delay's text as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the delay's length in milliseconds.
    pub fn milliseconds(&self) -> u64 {
        self.milliseconds
    }
}

/// A retry step that a message can still take. Only [`RetryPolicy::next`] creates one, so the delay is always
/// configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(u32);

impl Step {
    /// Returns the number of this delayed retry, counted from 1: the value of `x-pointsd-attempt` on the copy.
    pub fn attempt(self) -> u32 {
        self.0 + 1
    }

    /// Returns the index of the delay in [`RetryPolicy::delays`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The delays of a message's retries, in order (`retry.delays`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryPolicy(Vec<Delay>);

impl RetryPolicy {
    /// Creates a policy with these delays; those after [`MAX_STEPS`] are dropped. Without delays, a message that fails
    /// is exhausted at once.
    pub fn new(mut delays: Vec<Delay>) -> Self {
        delays.truncate(MAX_STEPS);
        Self(delays)
    }

    /// Returns the delays in order.
    pub fn delays(&self) -> &[Delay] {
        &self.0
    }

    /// Returns the step after `taken` delayed retries; `None` when they are used up.
    pub fn next(&self, taken: u32) -> Option<Step> {
        ((taken as usize) < self.0.len()).then_some(Step(taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        credit::RecordedCredit,
        dead_letter::Reason,
        malformed::{Field, Malformed, Problem},
        outcome::Outcome,
        settlement::{Destination, Settlement},
    };
    use proptest::prelude::*;

    #[test]
    fn delays_are_written_as_the_names_of_their_queues() {
        for (text, milliseconds) in [
            ("1ms", Some(1)),
            ("500ms", Some(500)),
            ("1s", Some(1000)),
            ("2m", Some(120_000)),
            ("12h", Some(43_200_000)),
            ("720h", Some(MAX_DELAY_MILLISECONDS)),
            ("721h", None),
            ("0s", None),
            ("01s", None),
            ("1", None),
            ("s", None),
            ("1 s", None),
            ("1m30s", None),
            ("1d", None),
            ("-1s", None),
            ("1.5s", None),
            ("18446744073709551616ms", None),
            ("18446744073709551615h", None),
            ("", None),
        ] {
            let delay = Delay::parse(text);
            assert_eq!(delay.as_ref().map(Delay::milliseconds), milliseconds, "{text}");
            assert!(delay.is_none_or(|delay| delay.as_str() == text));
        }
    }

    fn policy(steps: usize) -> RetryPolicy {
        RetryPolicy::new((1..=steps).map(|n| Delay::parse(&format!("{n}s")).unwrap()).collect())
    }

    /// Returns every possible outcome of a message that has taken `taken` delayed retries.
    fn outcomes(taken: u32, policy: &RetryPolicy) -> [Outcome; 6] {
        [
            Outcome::Credited,
            Outcome::Duplicate { checked: false },
            Outcome::Conflict(RecordedCredit { user_id: "u".into(), points: 5, checked: false }),
            Outcome::Malformed(Malformed { field: Field::Body, problem: Problem::NotAnObject }),
            Outcome::Rejected("no".into()),
            Outcome::after_failure("perhaps".into(), taken, policy),
        ]
    }

    proptest! {
        /// The whole decision, from outcome, attempts and policy to settlement: total, bounded and monotone in
        /// attempts.
        #[test]
        fn a_message_is_settled_after_a_bounded_number_of_retries(steps in 0..=60_usize, taken in any::<u32>()) {
            let policy = policy(steps);
            let bound = u32::try_from(steps.min(MAX_STEPS)).unwrap();
            for outcome in outcomes(taken, &policy) {
                let first = outcomes(0, &policy).into_iter().find(|first| first.label() == outcome.label());
                match outcome.settlement() {
                    Settlement::Forward(Destination::Retry(step)) => {
                        prop_assert!(taken < bound, "bounded");
                        prop_assert_eq!(step.attempt(), taken + 1, "each step counts one");
                        prop_assert!(policy.delays().get(step.index()).is_some(), "the delay is configured");
                    }
                    // The settlement of every other outcome does not depend on the number of retries.
                    settlement if outcome.label() != "exhausted" => {
                        prop_assert_eq!(Some(settlement), first.map(|first| first.settlement()));
                    }
                    settlement => {
                        prop_assert_eq!(settlement, Settlement::Forward(Destination::Dead(Reason::Exhausted)));
                        prop_assert!(taken >= bound, "only after the last step");
                    }
                }
            }
            // Monotone: a message stays exhausted at every higher count.
            let exhausted = |taken| Outcome::after_failure(String::new(), taken, &policy).label() == "exhausted";
            prop_assert!(!exhausted(taken) || exhausted(taken.saturating_add(1)));
        }

        /// A message that always fails is exhausted after exactly as many retries as there are delays.
        #[test]
        fn a_message_that_always_fails_takes_every_step_once(steps in 0..=MAX_STEPS) {
            let policy = policy(steps);
            let mut taken = 0;
            let mut waited = Vec::new();
            while let Settlement::Forward(Destination::Retry(step)) =
                Outcome::after_failure(String::new(), taken, &policy).settlement()
            {
                waited.push(policy.delays()[step.index()].clone());
                taken = step.attempt();
            }
            prop_assert_eq!(waited, policy.delays().to_vec());
        }
    }
}
