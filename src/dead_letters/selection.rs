//! The selection of dead letters by reason, payment, message ID, error and age.

use crate::domain::dead_letter::DeadLetter;
use jiff::Timestamp;
use std::time::Duration;

/// Which dead letters to select: those that meet every criterion that is set.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The reason is one of these.
    pub reasons: Vec<String>,
    /// One of the payments is one of these.
    pub payments: Vec<String>,
    /// The message ID is one of these.
    pub message_ids: Vec<String>,
    /// The error contains this text.
    pub error: Option<String>,
    /// The first failure is older than this.
    pub older_than: Option<Duration>,
    /// The first failure is not older than this.
    pub newer_than: Option<Duration>,
}

impl Selection {
    /// Whether a dead letter meets every criterion. One without a time of failure meets no criterion of age.
    pub fn matches(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let one_of = |wanted: &[String], given: Option<&String>| {
            wanted.is_empty() || given.is_some_and(|given| wanted.contains(given))
        };
        let age = letter.first_failed_at.map(|first| Duration::try_from(now.duration_since(first)).unwrap_or_default());
        one_of(&self.reasons, Some(&letter.reason))
            && (one_of(&self.payments, letter.payment_id.as_ref())
                || letter.payment_ids.iter().any(|id| self.payments.contains(id)))
            && one_of(&self.message_ids, letter.message_id.as_ref())
            && self.error.as_ref().is_none_or(|text| letter.error.as_ref().is_some_and(|error| error.contains(text)))
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit))
            && self.newer_than.is_none_or(|limit| age.is_some_and(|age| age <= limit))
    }

    /// Whether no criterion is set, so that every dead letter is selected.
    pub fn is_everything(&self) -> bool {
        self.reasons.is_empty()
            && self.payments.is_empty()
            && self.message_ids.is_empty()
            && self.error.is_none()
            && !self.depends_on_age()
    }

    /// Whether the age of a dead letter is a criterion.
    pub fn depends_on_age(&self) -> bool {
        self.older_than.is_some() || self.newer_than.is_some()
    }

    /// Whether it selects payments, and not messages by their IDs.
    pub fn is_by_payment(&self) -> bool {
        !self.payments.is_empty() && self.message_ids.is_empty()
    }

    /// Whether this payment is one of those that are selected by name.
    pub fn names_payment(&self, payment_id: &str) -> bool {
        self.payments.iter().any(|given| given == payment_id)
    }

    /// Describes the criteria in one line, for the audit.
    pub fn describe(&self) -> String {
        let mut words = Vec::new();
        for (name, values) in
            [("reason", &self.reasons), ("payment", &self.payments), ("message-id", &self.message_ids)]
        {
            if !values.is_empty() {
                words.push(format!("{name} {}", values.join(" or ")));
            }
        }
        words.extend(self.error.as_ref().map(|text| format!("error {text:?}")));
        let age = |limit: Duration| humantime::format_duration(limit).to_string().replace(' ', "");
        words.extend(self.older_than.map(|limit| format!("older than {}", age(limit))));
        words.extend(self.newer_than.map(|limit| format!("newer than {}", age(limit))));
        if words.is_empty() { "all".to_owned() } else { words.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn letter(reason: &str, failed: Option<i64>, error: &str) -> DeadLetter {
        DeadLetter {
            reason: reason.into(),
            payment_id: Some("p".into()),
            first_failed_at: failed.map(at),
            error: Some(error.into()),
            ..DeadLetter::default()
        }
    }

    #[test]
    fn a_selection_takes_what_meets_all_of_it() {
        let message = letter("conflict", Some(100), "e");
        let ageless = letter("conflict", None, "e");
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let any = Selection::default;
        for (selection, message, takes) in [
            (any(), &message, true),
            (Selection { reasons: words(&["conflict", "rejected"]), ..any() }, &message, true),
            (Selection { reasons: words(&["rejected"]), ..any() }, &message, false),
            (Selection { payments: words(&["p"]), ..any() }, &message, true),
            (Selection { payments: words(&["P"]), ..any() }, &message, false),
            (Selection { message_ids: words(&["m"]), ..any() }, &message, false),
            (Selection { error: Some("another".into()), ..any() }, &message, false),
            (Selection { error: Some("e".into()), ..any() }, &message, true),
            (Selection { reasons: words(&["conflict"]), payments: words(&["q"]), ..any() }, &message, false),
            (Selection { older_than: seconds(50), ..any() }, &message, true),
            (Selection { older_than: seconds(60), ..any() }, &message, false),
            (Selection { newer_than: seconds(60), ..any() }, &message, true),
            (Selection { newer_than: seconds(59), ..any() }, &message, false),
            (Selection { older_than: seconds(1), ..any() }, &ageless, false),
            (Selection { newer_than: seconds(1), ..any() }, &ageless, false),
        ] {
            assert_eq!(selection.matches(message, at(160)), takes, "{selection:?}");
        }
        assert!(
            !Selection { older_than: seconds(0), ..any() }.matches(&message, at(90)),
            "not failed yet, by this clock"
        );
        let both = Selection { reasons: words(&["a", "b"]), older_than: seconds(5400), ..any() };
        assert_eq!((both.describe().as_str(), any().describe().as_str()), ("reason a or b, older than 1h30m", "all"));
    }
}
