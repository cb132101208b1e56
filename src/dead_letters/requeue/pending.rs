//! The messages that the first round has selected and that are not sent yet.

use crate::{broker::HeldLetter, domain::dead_letter::DeadLetter};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

/// A hash of what identifies a message. It includes everything that a requeue and another failure change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Computes the fingerprint of a message.
    pub(super) fn of(held: &HeldLetter, letter: &DeadLetter) -> Self {
        let mut hasher = DefaultHasher::new();
        held.body().hash(&mut hasher);
        (&letter.message_id, &letter.reason, &letter.source_queue, &letter.requeue_id).hash(&mut hasher);
        letter.first_failed_at.map(Timestamp::as_nanosecond).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The pending messages: how many there are of each fingerprint.
#[derive(Debug, Default)]
pub(super) struct Pending(HashMap<Fingerprint, u64>);

impl Pending {
    /// Adds a message.
    pub(super) fn add(&mut self, fingerprint: Fingerprint) {
        *self.0.entry(fingerprint).or_default() += 1;
    }

    /// Takes a message out, and returns whether it was pending.
    pub(super) fn take(&mut self, fingerprint: Fingerprint) -> bool {
        let Some(count) = self.0.get_mut(&fingerprint) else { return false };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&fingerprint);
        }
        true
    }

    /// Counts the pending messages.
    pub(super) fn count(&self) -> u64 {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_messages_are_pending_as_often_as_they_were_added() {
        let mut pending = Pending::default();
        pending.add(Fingerprint(1));
        pending.add(Fingerprint(1));
        pending.add(Fingerprint(2));
        assert_eq!(pending.count(), 3);
        assert_eq!([1, 1, 1, 3].map(|hash| pending.take(Fingerprint(hash))), [true, true, false, false]);
        assert_eq!(pending.count(), 1);
    }
}
