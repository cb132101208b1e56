//! The queues that the label `queue` can name.

use crate::domain::{check_outcome::CheckOutcome, component::Component, outcome::Outcome};

/// A consumed queue: the value of the label `queue`, and the outcomes that its messages can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queue {
    pub(super) label: &'static str,
    pub(super) outcomes: &'static [&'static str],
}

impl Queue {
    /// The credit queue and the check queue, which exist in every configuration.
    pub(super) fn of_every_configuration() -> [Self; 2] {
        [
            Self { label: Component::Credits.label(), outcomes: &Outcome::LABELS },
            Self { label: Component::Checks.label(), outcomes: &CheckOutcome::LABELS },
        ]
    }

    /// The queues that a label can belong to. The label of a notification source is its configured name.
    pub(super) fn with_label(label: &'static str) -> Vec<Self> {
        if label == Component::Relay.label() {
            return Vec::new();
        }
        match Self::of_every_configuration().into_iter().find(|queue| queue.label == label) {
            Some(queue) => vec![queue],
            None => vec![
                Self { label, outcomes: &Outcome::LABELS },
                Self { label, outcomes: &CheckOutcome::LABELS_ON_ARRIVAL },
            ],
        }
    }
}
