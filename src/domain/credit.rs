//! A credit, and its comparison with the ledger.

use super::ids::{PaymentId, UserId};

/// The highest value of `message.max_points`.
///
/// A whole batch ([`MAX_BATCH`] credits) of this size is so far below the range of a balance that its sum cannot
/// overflow 64 bits before the ledger's own constraint refuses it.
pub const MAX_POINTS_LIMIT: i64 = 1_000_000_000_000;

/// The most credits of one transaction.
pub const MAX_BATCH: usize = 10_000;

/// The largest balance that the ledger accepts; its negative is the smallest. A constraint of the schema.
pub const MAX_BALANCE: i64 = 9_000_000_000_000_000_000;

/// A positive number of points, at most [`MAX_POINTS_LIMIT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Points(i64);

impl Points {
    /// The smallest number of points.
    pub const ONE: Self = Self(1);

    /// Returns `None` when `points` is not within 1 to `max`, or exceeds [`MAX_POINTS_LIMIT`].
    pub fn new(points: i64, max: i64) -> Option<Self> {
        (1..=max.min(MAX_POINTS_LIMIT)).contains(&points).then_some(Self(points))
    }

    /// Returns the number of points.
    pub fn get(self) -> i64 {
        self.0
    }
}

/// The request of a message: `points` for `user_id`, because of `payment_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credit {
    /// The ID of the payment, which is credited at most once, without a time limit.
    pub payment_id: PaymentId,
    /// The user who receives the points.
    pub user_id: UserId,
    /// The number of points.
    pub points: Points,
}

/// The credit of a payment that the ledger contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedCredit {
    /// The user who received the credit.
    pub user_id: String,
    /// The number of points of the credit.
    pub points: i64,
    /// Whether no check is needed: the credit counts and was found paid, or a check has parked it for a person to
    /// decide.
    pub checked: bool,
}

/// The result of comparing one credit of a batch with the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The payment was new and is now credited.
    Credited,
    /// The ledger contains the same payment, user and points already.
    Duplicate {
        /// See [`RecordedCredit::checked`].
        checked: bool,
    },
    /// The ledger contains the payment with another user or other points.
    Conflict(RecordedCredit),
}

impl Verdict {
    /// Compares a credit with the ledger's row of the same payment ID. A duplicate is the result of a comparison, and
    /// is never assumed from an existing key.
    pub fn of_existing(given: &Credit, standing: &RecordedCredit) -> Self {
        if given.user_id.as_str() == standing.user_id && given.points.get() == standing.points {
            Self::Duplicate { checked: standing.checked }
        } else {
            Self::Conflict(standing.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn credit(user: &str, points: i64) -> Credit {
        Credit {
            payment_id: PaymentId::new("p").unwrap(),
            user_id: UserId::new(user).unwrap(),
            points: Points::new(points, MAX_POINTS_LIMIT).unwrap(),
        }
    }

    #[test]
    fn an_existing_payment_is_compared_field_by_field() {
        let standing = RecordedCredit { user_id: "u".into(), points: 5, checked: true };
        let conflict = Verdict::Conflict(standing.clone());
        for (given, expected) in [
            (credit("u", 5), Verdict::Duplicate { checked: true }),
            (credit("v", 5), conflict.clone()),
            (credit("u", 6), conflict.clone()),
            (credit("U", 5), conflict),
        ] {
            assert_eq!(Verdict::of_existing(&given, &standing), expected, "{given:?}");
        }
    }

    #[test]
    fn points_keep_their_bounds() {
        for (points, max, ok) in [
            (1, 1, true),
            (0, 10, false),
            (-1, 10, false),
            (11, 10, false),
            (MAX_POINTS_LIMIT, i64::MAX, true),
            (MAX_POINTS_LIMIT + 1, i64::MAX, false),
        ] {
            assert_eq!(Points::new(points, max).is_some(), ok, "{points} of {max}");
        }
        let whole_batch = MAX_POINTS_LIMIT * i64::try_from(MAX_BATCH).unwrap();
        assert!(MAX_BALANCE.checked_add(whole_batch).is_some(), "a batch cannot overflow before the check");
    }
}
