//! A notification source: the format and the meaning of its messages (`docs/guides/notifications.md`).

use super::notification::NotificationFormat;
use crate::domain::check_schedule::CheckPolicy;

/// A `[[source]]` whose messages contain the ID of a payment to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationSource {
    /// The source's name: the `queue` label of the metrics, and the value of `x-pointsd-source`.
    pub name: String,
    /// The format of its bodies.
    pub format: NotificationFormat,
    /// The kind of its notifications.
    pub kind: NotificationKind,
    /// The schedule of checks for a payment that is not paid yet.
    pub policy: CheckPolicy,
}

/// The meaning of a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotificationKind {
    /// The payment may have changed: it is looked up.
    StatusChanged,
    /// The payment is paid, and its record is to be set to paid (`mark_paid`).
    Paid,
    /// The payment was created just now, and is closed when it is not paid in time (`expire`).
    OrderCreated,
}

impl NotificationKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::StatusChanged, Self::Paid, Self::OrderCreated];

    /// Returns the value of `kind` in a check message.
    pub fn label(self) -> &'static str {
        match self {
            Self::StatusChanged => "changed",
            Self::Paid => "paid",
            Self::OrderCreated => "created",
        }
    }

    /// Returns the kind with this label, or `None` when there is none.
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.label() == label)
    }
}
