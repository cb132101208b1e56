//! What a payment source says, and what it means.

/// What a payment source says of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentStatus {
    /// One of the values that are configured as paid.
    Paid,
    /// One of those that are configured as pending.
    Pending,
    /// One of those that are configured as closed: closed, refunded, failed.
    Closed,
    /// There is no such payment, now.
    Unknown,
    /// A value that is in none of the lists.
    Unrecognised,
}

impl PaymentStatus {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Paid, Self::Pending, Self::Unknown, Self::Closed, Self::Unrecognised];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Pending => "pending",
            Self::Closed => "closed",
            Self::Unknown => "unknown",
            Self::Unrecognised => "unrecognised",
        }
    }
}

/// The source's words for each status. No word stands in two of the lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusValues {
    /// At least one. The first one is what a paid payment's row is set to.
    pub paid: Vec<String>,
    /// Neither one nor the other yet.
    pub pending: Vec<String>,
    /// Closed, refunded, failed.
    pub closed: Vec<String>,
}

impl StatusValues {
    /// What a word of the source means. Words compare as they are, letter by letter.
    pub fn status(&self, word: &str) -> PaymentStatus {
        let within = |list: &[String]| list.iter().any(|value| value == word);
        if within(&self.paid) {
            PaymentStatus::Paid
        } else if within(&self.pending) {
            PaymentStatus::Pending
        } else if within(&self.closed) {
            PaymentStatus::Closed
        } else {
            PaymentStatus::Unrecognised
        }
    }

    /// A word that stands in more than one list, or twice in one.
    pub fn ambiguous(&self) -> Option<&str> {
        let all: Vec<&String> = self.paid.iter().chain(&self.pending).chain(&self.closed).collect();
        let twice = |index: usize| all[..index].contains(&all[index]);
        (0..all.len()).find(|index| twice(*index)).map(|index| all[index].as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_the_lists_say_and_nothing_else() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut values = StatusValues {
            paid: list(&["TRADE_SUCCESS", "1"]),
            pending: list(&["WAIT_BUYER_PAY"]),
            closed: list(&["TRADE_CLOSED"]),
        };
        for (word, status) in [
            ("TRADE_SUCCESS", PaymentStatus::Paid),
            ("1", PaymentStatus::Paid),
            ("WAIT_BUYER_PAY", PaymentStatus::Pending),
            ("TRADE_CLOSED", PaymentStatus::Closed),
            ("trade_success", PaymentStatus::Unrecognised),
            ("01", PaymentStatus::Unrecognised),
            ("", PaymentStatus::Unrecognised),
        ] {
            assert_eq!(values.status(word), status, "{word}");
        }
        assert_eq!(values.ambiguous(), None);
        values.closed.push("1".into());
        assert_eq!(values.ambiguous(), Some("1"));
    }
}
