//! The keys of `[pay_status.sql]` that say how the record of a payment becomes points.

use crate::{
    config::{
        reader::Reader,
        value::{Text, shown},
    },
    domain::valuation::{Decimal, Rule, Valuation},
    pay_status::Identifier,
};

fn key(name: &str) -> String {
    format!("pay_status.sql.{name}")
}

/// The columns from which a payment is credited, as far as they are given.
pub(super) struct Columns {
    pub(super) user: Option<Identifier>,
    pub(super) points: Option<Identifier>,
    pub(super) amount: Option<Identifier>,
}

/// The bounds of the points that an amount gives.
struct Bounds {
    min: Option<i64>,
    max: Option<i64>,
}

impl Columns {
    /// The column of the points, or of the amount.
    pub(super) fn value(&self) -> Option<&Identifier> {
        self.points.as_ref().or(self.amount.as_ref())
    }

    /// Reads the valuation. Returns `None` if the table has no points and no amounts, or after a fault.
    pub(super) fn valuation(&self, reader: &mut Reader, max_points: i64) -> Option<Valuation> {
        let rule = self.rule(reader, max_points)?;
        let value = self.value()?;
        let Some(user) = &self.user else {
            if !reader.is_given(&key("user_column")) {
                reader.fault(
                    &key("user_column"),
                    "is missing; must be given with points_column or amount_column, otherwise no user can be credited",
                );
            }
            return None;
        };
        Some(Valuation {
            rule,
            max_points,
            user_column: user.as_str().to_owned(),
            value_column: value.as_str().to_owned(),
        })
    }

    fn rule(&self, reader: &mut Reader, max_points: i64) -> Option<Rule> {
        let rate: Option<Text> = reader.optional(&key("points_per_unit"));
        let bounds = bounds(reader, max_points);
        if self.points.is_some() && self.amount.is_some() {
            reader.fault(&key("amount_column"), "given together with points_column; only one of them is allowed");
            return None;
        }
        if self.amount.is_some() {
            return per_unit(reader, rate, &bounds);
        }
        for name in ["points_per_unit", "min", "max"] {
            if reader.is_given(&key(name)) {
                reader.fault(&key(name), "is used only with amount_column; remove it");
            }
        }
        self.points.is_some().then_some(Rule::Points)
    }
}

fn bounds(reader: &mut Reader, max_points: i64) -> Bounds {
    let mut bound = |name: &str, least: i64| {
        let bound: i64 = reader.optional(&key(name))?;
        let fits = (least..=max_points).contains(&bound);
        if !fits {
            let text =
                format!("given {bound}; must be a whole number from {least} to {max_points} (message.max_points)");
            reader.fault(&key(name), text);
        }
        fits.then_some(bound)
    };
    let (min, max) = (bound("min", 0), bound("max", 1));
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        reader.fault(&key("min"), format!("given {min}; must be at most max, which is {max}"));
    }
    Bounds { min, max }
}

fn per_unit(reader: &mut Reader, rate: Option<Text>, bounds: &Bounds) -> Option<Rule> {
    let key = key("points_per_unit");
    let Some(Text(rate)) = rate else {
        if !reader.is_given(&key) {
            reader.fault(&key, "is missing; must be given with amount_column, as in \"0.01\"");
        }
        return None;
    };
    match Decimal::rate(&rate) {
        Ok(rate) if !rate.is_zero() => Some(Rule::PerUnit { rate, min: bounds.min.unwrap_or(0), max: bounds.max }),
        Ok(_) => {
            reader.fault(&key, "is 0; must be greater than 0, as in \"0.01\"");
            None
        }
        Err(error) => {
            reader.fault(&key, format!("given {}; {error}", shown(&format!("{rate:?}"))));
            None
        }
    }
}
