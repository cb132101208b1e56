//! The contents of a queue, and the consequence of its loss.

/// The kind of messages of a queue, which determines what is lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Points messages or notifications, published by producers.
    Payments,
    /// Check messages, published by pointsd.
    Checks,
    /// Dead letters.
    DeadLetters,
}

impl Contents {
    /// What is lost with such a queue, and what to do.
    pub fn when_lost(self) -> &'static str {
        match self {
            Self::Payments => {
                "its messages are lost; have the producer publish those of the last minutes again: messages that were \
                 already credited become duplicates"
            }
            Self::Checks => "its checks are lost; `pointsd reconcile --older-than 1m --apply` sends them again",
            Self::DeadLetters => "its dead letters are lost; the log has a line for each parked message",
        }
    }
}
