//! A source of notifications: how its bodies are read, and what they mean (`docs/guides/notifications.md`).

use super::notification::NotificationFormat;
use crate::domain::check_schedule::CheckPolicy;

/// A `[[source]]` whose messages name a payment that is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationSource {
    /// Its name: the metrics' `queue` label, and the value of `x-pointsd-source`.
    pub name: String,
    /// How its bodies look.
    pub format: NotificationFormat,
    /// What the messages say of the payment.
    pub kind: NotificationKind,
    /// How often and when a payment is checked that is not paid yet.
    pub policy: CheckPolicy,
}

/// What it means that a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotificationKind {
    /// The payment may have changed: it is looked up.
    StatusChanged,
    /// It is paid, and its row is to say so (`mark_paid`).
    Paid,
    /// It was created just now, and is closed when it is not paid in time (`expire`).
    OrderCreated,
}

impl NotificationKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::StatusChanged, Self::Paid, Self::OrderCreated];

    /// The value of `kind` in a check message.
    pub fn label(self) -> &'static str {
        match self {
            Self::StatusChanged => "changed",
            Self::Paid => "paid",
            Self::OrderCreated => "created",
        }
    }

    /// From the value of `kind`.
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}
