//! The statuses of payments, and the values of a payment source that represent them.

/// The status of a payment in the payment source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentStatus {
    /// The status is one of the values configured as paid.
    Paid,
    /// The status is one of the values configured as pending.
    Pending,
    /// The status is one of the values configured as closed: closed, refunded, failed.
    Closed,
    /// The payment source has no record of the payment at this time.
    Unknown,
    /// The status is a value in none of the lists.
    Unrecognised,
}

impl PaymentStatus {
    /// All statuses.
    pub const ALL: [Self; 5] = [Self::Paid, Self::Pending, Self::Unknown, Self::Closed, Self::Unrecognised];

    /// Returns the status's label in metrics.
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

/// The values of the payment source for each status. No value occurs in two of the lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusValues {
    /// The values of a paid payment, at least one. The first one is written to the row of a payment that is set to
    /// paid.
    pub paid: Vec<String>,
    /// The values of a payment that is neither paid nor closed yet.
    pub pending: Vec<String>,
    /// The values of a payment that is closed, refunded or failed.
    pub closed: Vec<String>,
}

impl StatusValues {
    /// Returns the status for a value of the source. Values are compared exactly, character by character.
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

    /// Returns a value that occurs in more than one list, or twice in one.
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
