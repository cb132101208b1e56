//! The points that a payment is worth, from its own record: either a number of points in the record, or an exact
//! decimal rule over the amount. No floating point is used.

use super::{credit::Points, ids::UserId};
use std::fmt;

/// The most digits before the decimal point of an amount. A larger amount is refused.
const AMOUNT_DIGITS: usize = 15;
/// The most digits before the decimal point of a rate.
const RATE_DIGITS: usize = 6;
/// The most digits after the decimal point of an amount or a rate; trailing zeros do not count. The limits keep the
/// product of an amount and a rate below 10^37, which fits 128 bits.
const FRACTION_DIGITS: usize = 8;

/// An exact decimal number that is not negative: `digits` divided by 10 to the power of `scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimal {
    digits: u128,
    scale: u32,
}

/// Why a text is not an accepted decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// The text is not digits with at most one decimal point between them.
    #[error("is not a plain decimal; must be digits with at most one point between them, as in 12.50")]
    NotDecimal,
    /// The number is below zero.
    #[error("is negative")]
    Negative,
    /// The number has too many digits before the decimal point.
    #[error("is too large; must have at most {0} digits before the point")]
    TooLarge(usize),
    /// The number has too many digits after the decimal point.
    #[error("has too many decimals; must have at most {FRACTION_DIGITS} digits after the point")]
    TooFine,
}

impl Decimal {
    /// Parses a rate, such as `points_per_unit`.
    pub fn rate(text: &str) -> Result<Self, DecimalError> {
        Self::parse(text, RATE_DIGITS)
    }

    /// Parses an amount: a whole number (of cents, for instance) or one with a decimal point.
    pub fn amount(text: &str) -> Result<Self, DecimalError> {
        Self::parse(text, AMOUNT_DIGITS)
    }

    /// Returns whether the number is zero.
    pub fn is_zero(self) -> bool {
        self.digits == 0
    }

    fn parse(text: &str, most_digits: usize) -> Result<Self, DecimalError> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !are_digits(whole) || !fraction.is_none_or(are_digits) {
            return Err(DecimalError::NotDecimal);
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.unwrap_or("").trim_end_matches('0'));
        if negative && !(whole.is_empty() && fraction.is_empty()) {
            return Err(DecimalError::Negative);
        }
        if whole.len() > most_digits {
            return Err(DecimalError::TooLarge(most_digits));
        }
        if fraction.len() > FRACTION_DIGITS {
            return Err(DecimalError::TooFine);
        }
        // At most 23 digits, which fit 128 bits.
        let digits = whole.bytes().chain(fraction.bytes()).fold(0, |sum, byte| sum * 10 + u128::from(byte - b'0'));
        Ok(Self { digits, scale: u32::try_from(fraction.len()).unwrap_or(0) })
    }

    /// Returns the product, rounded down to a whole number.
    fn times_rounded_down(self, other: Self) -> u128 {
        self.digits * other.digits / 10_u128.pow(self.scale + other.scale)
    }
}

/// The rule that converts the value of the record to points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The value is the number of points.
    Points,
    /// The value is an amount: `rate` points per unit, rounded down, then limited to at least `min` and at most `max`.
    PerUnit {
        /// The points per unit (`points_per_unit`).
        rate: Decimal,
        /// The fewest points that a payment gives.
        min: i64,
        /// The most points that a payment gives; without it, a number above `message.max_points` is refused.
        max: Option<i64>,
    },
}

/// The value of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentValue {
    /// These points, for this user.
    Points(UserId, Points),
    /// No points.
    Nothing,
    /// The record is invalid for a credit, with the column and the error.
    Invalid(String),
}

/// The rules for reading a record: `[pay_status.sql]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Valuation {
    /// The rule that converts the value to points.
    pub rule: Rule,
    /// The most points of one payment (`message.max_points`); more are refused.
    pub max_points: i64,
    /// The column that contains the user, for errors.
    pub user_column: String,
    /// The column that contains the points or the amount, for errors.
    pub value_column: String,
}

impl Valuation {
    /// Returns the setting that names the value column.
    fn value_key(&self) -> &'static str {
        match self.rule {
            Rule::Points => "points_column",
            Rule::PerUnit { .. } => "amount_column",
        }
    }

    fn invalid_value(&self, problem: impl fmt::Display) -> PaymentValue {
        PaymentValue::Invalid(format!("{} \"{}\" {problem}", self.value_key(), self.value_column))
    }

    /// Returns the result for a table that has no value column.
    pub fn without_column(&self) -> PaymentValue {
        self.invalid_value("is missing in the payment table")
    }

    /// Returns the points for a record's user and value; `None` represents NULL.
    pub fn of(&self, user: Option<&str>, value: Option<&str>) -> PaymentValue {
        let points = match value.map(Decimal::amount) {
            None => return self.invalid_value("is NULL"),
            Some(Err(error)) => return self.invalid_value(error),
            Some(Ok(value)) => match self.rule {
                Rule::Points if value.scale > 0 => {
                    return self.invalid_value("is not a whole number; must be a whole number of points");
                }
                Rule::Points => value.digits,
                Rule::PerUnit { rate, min, max } => {
                    let points = value.times_rounded_down(rate).max(min.unsigned_abs().into());
                    max.map_or(points, |max| points.min(max.unsigned_abs().into()))
                }
            },
        };
        if points == 0 {
            return PaymentValue::Nothing;
        }
        let points = i64::try_from(points).ok().and_then(|points| Points::new(points, self.max_points));
        let Some(points) = points else {
            return self.invalid_value(format!(
                "gives more than {} points; must give at most message.max_points",
                self.max_points
            ));
        };
        let user_problem = |problem: &dyn fmt::Display| {
            PaymentValue::Invalid(format!("user_column \"{}\" {problem}", self.user_column))
        };
        match user.map(UserId::new) {
            None => user_problem(&"is NULL"),
            Some(Err(error)) => user_problem(&error),
            Some(Ok(user)) => PaymentValue::Points(user, points),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn per_unit(rate: &str, min: i64, max: Option<i64>) -> Valuation {
        let rate = Decimal::rate(rate).unwrap();
        Valuation {
            rule: Rule::PerUnit { rate, min, max },
            max_points: 1_000_000,
            user_column: "buyer".into(),
            value_column: "total".into(),
        }
    }

    fn points(value: &PaymentValue) -> i64 {
        match value {
            PaymentValue::Points(_, points) => points.get(),
            PaymentValue::Nothing => 0,
            PaymentValue::Invalid(_) => -1,
        }
    }

    #[test]
    fn an_amount_is_rounded_down_and_kept_within_its_bounds() {
        for (amount, rate, min, max, expected) in [
            ("12.50", "1", 0, None, 12),
            ("12.99", "1", 0, None, 12),
            ("12.999999", "1", 0, None, 12),
            ("0.99", "1", 0, None, 0),
            ("1", "1", 0, None, 1),
            ("1250", "0.01", 0, None, 12),
            ("1299", "0.01", 0, None, 12),
            ("99", "0.01", 0, None, 0),
            ("100", "0.01", 0, None, 1),
            // Products that floating point computes wrong: 0.1 * 3, 0.29 * 100, 4.35 * 100, 1.1 * 1.1.
            ("3", "0.1", 0, None, 0),
            ("30", "0.1", 0, None, 3),
            ("0.29", "100", 0, None, 29),
            ("4.35", "100", 0, None, 435),
            ("1.15", "100", 0, None, 115),
            ("8.2", "100000", 0, None, 820_000),
            ("10", "1.5", 0, None, 15),
            ("9.99", "1.5", 0, None, 14),
            ("0.00000001", "999999.99999999", 0, None, 0),
            ("123.456", "0.333", 0, None, 41),
            ("0", "1", 0, None, 0),
            ("-0.00", "1", 0, None, 0),
            ("007.50", "1", 0, None, 7),
            ("5", "1", 10, None, 10),
            ("0", "1", 10, None, 10),
            ("5000", "1", 0, Some(1000), 1000),
            ("999999999999999", "999999", 0, Some(500), 500),
            ("1000000", "1", 0, None, 1_000_000),
            ("1000001", "1", 0, None, -1),
            ("12.3400000000", "1", 0, None, 12),
        ] {
            let value = per_unit(rate, min, max).of(Some("u"), Some(amount));
            assert_eq!(points(&value), expected, "{amount} at {rate}: {value:?}");
        }
    }

    #[test]
    fn what_cannot_be_credited_names_the_column_and_not_the_value() {
        let rule = per_unit("1", 0, None);
        let whole = Valuation { rule: Rule::Points, ..rule.clone() };
        let long = "u".repeat(129);
        for (valuation, user, value, error) in [
            (&rule, Some("u"), None, "amount_column \"total\" is NULL"),
            (&rule, Some("u"), Some("-1.25"), "amount_column \"total\" is negative"),
            (&rule, Some("u"), Some("1234567890123456"), "amount_column \"total\" is too large; must have at most 15"),
            (&rule, Some("u"), Some("1.123456789"), "amount_column \"total\" has too many decimals"),
            (&rule, Some("u"), Some("$12.50"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("1e9"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("NaN"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("1,250.00"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some(".5"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("5."), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some(""), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("--1"), "amount_column \"total\" is not a plain decimal"),
            (&rule, Some("u"), Some("1000001"), "amount_column \"total\" gives more than 1000000 points"),
            (&whole, Some("u"), Some("1.5"), "points_column \"total\" is not a whole number"),
            (&whole, Some("u"), Some("-5"), "points_column \"total\" is negative"),
            (&rule, None, Some("5"), "user_column \"buyer\" is NULL"),
            (&rule, Some(""), Some("5"), "user_column \"buyer\" is empty"),
            (&rule, Some(&long), Some("5"), "user_column \"buyer\" is too long"),
        ] {
            let PaymentValue::Invalid(reported) = valuation.of(user, value) else { panic!("{value:?} is accepted") };
            assert!(reported.starts_with(error), "{reported}");
        }
        assert_eq!(points(&whole.of(Some("u"), Some("7"))), 7);
        assert_eq!(points(&whole.of(Some("u"), Some("7.00"))), 7);
        assert_eq!(whole.of(None, Some("0")), PaymentValue::Nothing);
    }

    proptest! {
        /// Compares with integer arithmetic: cents times thousandths, divided by 100 000.
        #[test]
        fn the_rule_is_exact(cents in 0..1_000_000_000_u64, thousandths in 0..1_000_000_u64) {
            let amount = format!("{}.{:02}", cents / 100, cents % 100);
            let rate = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            let exact = u128::from(cents) * u128::from(thousandths) / 100_000;
            let product = Decimal::amount(&amount).unwrap().times_rounded_down(Decimal::rate(&rate).unwrap());
            prop_assert_eq!(product, exact);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}", digits in "[0-9.-]{0,40}") {
            for text in [text, digits] {
                let _ = Decimal::amount(&text).map(|amount| amount.times_rounded_down(Decimal::rate("999999.99999999").unwrap()));
            }
        }
    }
}
