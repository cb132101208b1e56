//! Counts of dead letters by reason and error.

use crate::domain::dead_letter::DeadLetter;
use jiff::Timestamp;
use serde::Serialize;
use std::{cmp::Reverse, collections::BTreeMap};

/// The maximum number of errors that are listed for a reason.
pub const MAX_LISTED_ERRORS: usize = 20;

/// The maximum number of errors that are counted separately for a reason. Each error can contain an ID, so that their number
/// is not bounded otherwise.
const MAX_COUNTED_ERRORS: usize = 1000;

/// The dead letters of one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The reason.
    pub reason: String,
    /// The number of dead letters.
    pub messages: u64,
    /// The time of the earliest first failure.
    pub oldest: Option<Timestamp>,
    /// The time of the latest first failure.
    pub newest: Option<Timestamp>,
    /// The error of the oldest dead letter.
    pub first_error: Option<String>,
    /// The counts by error, the largest first, at most [`MAX_LISTED_ERRORS`].
    pub errors: Vec<ErrorGroup>,
    /// The number of dead letters with other errors than those.
    pub other_errors: u64,
}

/// The dead letters of one reason and error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorGroup {
    /// The error.
    pub error: Option<String>,
    /// The number of dead letters.
    pub messages: u64,
    /// The time of the earliest first failure.
    pub oldest: Option<Timestamp>,
    /// The time of the latest first failure.
    pub newest: Option<Timestamp>,
}

/// The counts while dead letters are added.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, (Group, BTreeMap<Option<String>, ErrorGroup>)>);

impl Groups {
    /// Counts a dead letter.
    pub fn add(&mut self, letter: &DeadLetter) {
        let at = letter.first_failed_at;
        let (group, errors) = self.0.entry(letter.reason.clone()).or_insert_with(|| {
            let group = Group {
                reason: letter.reason.clone(),
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
            group.first_error.clone_from(&letter.error);
        }
        group.oldest = earliest(group.oldest, at);
        group.newest = group.newest.max(at);
        if errors.len() >= MAX_COUNTED_ERRORS && !errors.contains_key(&letter.error) {
            group.other_errors += 1;
            return;
        }
        let error = errors.entry(letter.error.clone()).or_insert_with(|| ErrorGroup {
            error: letter.error.clone(),
            messages: 0,
            oldest: None,
            newest: None,
        });
        error.messages += 1;
        error.oldest = earliest(error.oldest, at);
        error.newest = error.newest.max(at);
    }

    /// Returns the groups, the largest first.
    pub fn sorted(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.0.into_values().map(|(group, errors)| with_errors(group, errors)).collect();
        groups.sort_by_key(|group| Reverse(group.messages));
        groups
    }
}

fn with_errors(mut group: Group, errors: BTreeMap<Option<String>, ErrorGroup>) -> Group {
    group.errors = errors.into_values().collect();
    group.errors.sort_by_key(|error| Reverse(error.messages));
    let rest = group.errors.split_off(group.errors.len().min(MAX_LISTED_ERRORS));
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
    fn groups_tell_their_span_and_their_first_error() {
        let mut groups = Groups::default();
        for message in [
            letter("conflict", Some(5), "second"),
            letter("malformed", None, "ageless"),
            letter("conflict", Some(3), "first"),
            letter("conflict", Some(9), "third"),
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
            groups.add(&letter("rejected", Some(n), &format!("of {n}")));
        }
        for _ in 0..3 {
            groups.add(&letter("rejected", Some(7), "of 7"));
        }
        let group = &groups.sorted()[0];
        assert_eq!((group.messages, group.errors.len(), group.other_errors), (1503, 20, 1480));
        assert_eq!((group.errors[0].error.as_deref(), group.errors[0].messages), (Some("of 7"), 4));
    }
}
