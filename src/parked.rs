//! What lies in the dead queue, as a person asks for it: what each message says of itself, which of them are meant,
//! and how they are counted.

use jiff::Timestamp;
use serde::Serialize;
use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

/// Moved by the broker when a message had been delivered too often; the daemon never gives this reason.
pub const DELIVERY_LIMIT: &str = "delivery_limit";

/// Of a message that says nothing of why it is there: somebody else put it there.
pub const UNKNOWN: &str = "unknown";

/// What a message in the dead queue says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// `x-pointsd-reason`, [`DELIVERY_LIMIT`] or [`UNKNOWN`].
    pub reason: String,
    /// Its payment, where its body can be read; of a check message with one entry that entry's.
    pub payment_id: Option<String>,
    /// The payments of a check message with several entries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub payment_ids: Vec<String>,
    /// Its message id.
    pub message_id: Option<String>,
    /// When it failed first, or when the broker moved it.
    pub first_failed_at: Option<Timestamp>,
    /// Delayed retries that it has taken.
    pub attempts: u32,
    /// Where it was consumed: where a requeue sends it.
    pub source_queue: Option<String>,
    /// What happened.
    pub error: Option<String>,
    /// The version in the ledger when it was parked, of a conflict.
    pub ledger: Option<LedgerVersion>,
    /// The `dead requeue` that has sent it before.
    pub requeue_id: Option<String>,
}

/// Whose payment the ledger held, and with how many points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerVersion {
    /// The user.
    pub user_id: String,
    /// The points.
    pub points: i64,
}

/// Which messages are meant. What is left empty does not matter; everything else must hold.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// One of these reasons.
    pub reasons: Vec<String>,
    /// One of these payments.
    pub payments: Vec<String>,
    /// One of these message ids.
    pub message_ids: Vec<String>,
    /// An error that contains this text.
    pub error: Option<String>,
    /// It failed first longer ago than this.
    pub older_than: Option<Duration>,
    /// It failed first within this time.
    pub newer_than: Option<Duration>,
}

impl Parked {
    /// Whether it is about this payment.
    pub fn concerns(&self, payment_id: &str) -> bool {
        self.payment_id.as_deref() == Some(payment_id) || self.payment_ids.iter().any(|id| id == payment_id)
    }

    /// Its payment, or how many it has.
    pub fn payments(&self) -> Option<String> {
        match self.payment_ids.as_slice() {
            [] => self.payment_id.clone(),
            [first, ..] => Some(format!("{first} and {} more", self.payment_ids.len() - 1)),
        }
    }
}

impl Selection {
    /// Whether a message is meant. One that does not say when it failed is neither older nor newer than anything.
    pub fn takes(&self, parked: &Parked, now: Timestamp) -> bool {
        let one_of = |wanted: &[String], given: Option<&String>| {
            wanted.is_empty() || given.is_some_and(|given| wanted.contains(given))
        };
        let age = parked.first_failed_at.map(|first| Duration::try_from(now.duration_since(first)).unwrap_or_default());
        one_of(&self.reasons, Some(&parked.reason))
            && (one_of(&self.payments, parked.payment_id.as_ref())
                || parked.payment_ids.iter().any(|id| self.payments.contains(id)))
            && one_of(&self.message_ids, parked.message_id.as_ref())
            && self.error.as_ref().is_none_or(|text| parked.error.as_ref().is_some_and(|error| error.contains(text)))
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit))
            && self.newer_than.is_none_or(|limit| age.is_some_and(|age| age <= limit))
    }

    /// Whether it is one of the payments that are given.
    pub fn names(&self, payment_id: &str) -> bool {
        self.payments.iter().any(|given| given == payment_id)
    }

    /// In words, for the audit.
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

/// The messages of one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The reason.
    pub reason: String,
    /// How many.
    pub messages: u64,
    /// When the first of them failed first.
    pub oldest: Option<Timestamp>,
    /// When the last of them failed first.
    pub newest: Option<Timestamp>,
    /// What happened to the oldest.
    pub first_error: Option<String>,
    /// By what happened, the largest first, at most [`MOST_ERRORS`].
    pub errors: Vec<ErrorGroup>,
    /// Messages with another error than those.
    pub other_errors: u64,
}

/// The messages of one reason and error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorGroup {
    /// What happened.
    pub error: Option<String>,
    /// How many.
    pub messages: u64,
    /// When the first of them failed first.
    pub oldest: Option<Timestamp>,
    /// When the last of them failed first.
    pub newest: Option<Timestamp>,
}

/// Most errors that are listed of a reason.
pub const MOST_ERRORS: usize = 20;

/// Most errors that are kept apart of a reason: each can have an id in it.
const MOST_KEPT: usize = 1000;

/// Counts by reason and error.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, (Group, BTreeMap<Option<String>, ErrorGroup>)>);

impl Groups {
    /// Counts a message.
    pub fn add(&mut self, parked: &Parked) {
        let at = parked.first_failed_at;
        let (group, errors) = self.0.entry(parked.reason.clone()).or_insert_with(|| {
            let group = Group {
                reason: parked.reason.clone(),
                messages: 0,
                oldest: None,
                newest: None,
                first_error: None,
                errors: Vec::new(),
                other_errors: 0,
            };
            (group, BTreeMap::new())
        });
        group.messages += 1;
        if group.first_error.is_none() || (at.is_some() && (group.oldest.is_none() || at < group.oldest)) {
            group.first_error.clone_from(&parked.error);
        }
        group.oldest = earliest(group.oldest, at);
        group.newest = group.newest.max(at);
        if errors.len() >= MOST_KEPT && !errors.contains_key(&parked.error) {
            group.other_errors += 1;
            return;
        }
        let error = errors.entry(parked.error.clone()).or_insert_with(|| ErrorGroup {
            error: parked.error.clone(),
            messages: 0,
            oldest: None,
            newest: None,
        });
        error.messages += 1;
        error.oldest = earliest(error.oldest, at);
        error.newest = error.newest.max(at);
    }

    /// The groups, the largest first.
    pub fn sorted(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.into_values().map(|(group, errors)| with_errors(group, errors)).collect();
        groups.sort_by_key(|group| Reverse(group.messages));
        groups
    }
}

fn with_errors(mut group: Group, errors: BTreeMap<Option<String>, ErrorGroup>) -> Group {
    group.errors = errors.into_values().collect();
    group.errors.sort_by_key(|error| Reverse(error.messages));
    let rest = group.errors.split_off(group.errors.len().min(MOST_ERRORS));
    group.other_errors += rest.iter().map(|error| error.messages).sum::<u64>();
    group
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn parked(reason: &str, failed: Option<i64>, error: &str) -> Parked {
        Parked {
            reason: reason.into(),
            payment_id: Some("p".into()),
            first_failed_at: failed.map(at),
            error: Some(error.into()),
            ..Parked::default()
        }
    }

    #[test]
    fn a_selection_takes_what_meets_all_of_it() {
        let message = parked("conflict", Some(100), "e");
        let ageless = parked("conflict", None, "e");
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
            assert_eq!(selection.takes(message, at(160)), takes, "{selection:?}");
        }
        assert!(
            !Selection { older_than: seconds(0), ..any() }.takes(&message, at(90)),
            "not failed yet, by this clock"
        );
        let both = Selection { reasons: words(&["a", "b"]), older_than: seconds(5400), ..any() };
        assert_eq!((both.describe().as_str(), any().describe().as_str()), ("reason a or b, older than 1h30m", "all"));
    }

    #[test]
    fn groups_tell_their_span_and_their_first_error() {
        let mut groups = Groups::default();
        for message in [
            parked("conflict", Some(5), "second"),
            parked("malformed", None, "ageless"),
            parked("conflict", Some(3), "first"),
            parked("conflict", Some(9), "third"),
        ] {
            groups.add(&message);
        }
        let error = |error: &str, seconds: Option<i64>| ErrorGroup {
            error: Some(error.into()),
            messages: 1,
            oldest: seconds.map(at),
            newest: seconds.map(at),
        };
        let group = |reason: &str, messages, oldest: Option<i64>, newest: Option<i64>, errors: Vec<ErrorGroup>| Group {
            reason: reason.into(),
            messages,
            oldest: oldest.map(at),
            newest: newest.map(at),
            first_error: errors[0].error.clone(),
            errors,
            other_errors: 0,
        };
        let conflicts = vec![error("first", Some(3)), error("second", Some(5)), error("third", Some(9))];
        assert_eq!(
            groups.sorted(),
            [
                group("conflict", 3, Some(3), Some(9), conflicts),
                group("malformed", 1, None, None, vec![error("ageless", None)])
            ]
        );
    }

    #[test]
    fn errors_of_a_reason_are_listed_the_largest_first_and_bounded() {
        let mut groups = Groups::default();
        for n in 0..1500 {
            groups.add(&parked("rejected", Some(n), &format!("of {n}")));
        }
        for _ in 0..3 {
            groups.add(&parked("rejected", Some(7), "of 7"));
        }
        let group = &groups.sorted()[0];
        assert_eq!((group.messages, group.errors.len(), group.other_errors), (1503, 20, 1480));
        assert_eq!((group.errors[0].error.as_deref(), group.errors[0].messages), (Some("of 7"), 4));
    }
}
