//! What the ledger shows to people.

use serde::Serialize;
use std::time::Duration;

/// Everything that the ledger knows of one payment. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaymentRecord {
    /// The payment.
    pub payment_id: String,
    /// Whose points.
    pub user_id: String,
    /// How many.
    pub points: i64,
    /// `credited` or `reversed`.
    pub state: String,
    /// When the credit was committed.
    pub credited_at: String,
    /// When a check last found the payment paid.
    pub verified_at: Option<String>,
    /// Since when a check has parked it for a person to decide.
    pub asked_at: Option<String>,
    /// What was appended since, in order.
    pub adjustments: Vec<Adjustment>,
}

/// An appended correction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adjustment {
    /// Counted from 1 for each payment.
    pub seq: i32,
    /// `reversal` or `reinstatement`.
    pub kind: String,
    /// Signed.
    pub points: i64,
    /// Why.
    pub reason: String,
    /// When.
    pub created_at: String,
}

/// Which unverified or reversed credits to show.
#[derive(Debug, Clone)]
pub struct UnverifiedPage {
    /// Those that are reversed, instead of those that count and were never found paid.
    pub reversed: bool,
    /// Credited (or reversed) longer ago than this.
    pub older_than: Duration,
    /// And within this time.
    pub newer_than: Option<Duration>,
    /// After this one: its time and its payment.
    pub after: Option<(String, String)>,
    /// At most so many.
    pub limit: i64,
}

/// A credit that no check has found paid, or that is reversed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct UnverifiedCredit {
    /// The payment.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub payment_id: String,
    /// Whose points.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub user_id: String,
    /// How many.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub points: i64,
    /// Since when it is credited, or reversed: RFC 3339 in UTC.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub since: String,
}

/// Credits that no check has found paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, diesel::QueryableByName)]
pub struct UnverifiedCount {
    /// All of them, up to [`super::MOST_COUNTED`].
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub unverified: i64,
    /// Those that should have been verified or reversed by now, and that no check has parked for a person to decide.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub overdue: i64,
}

/// Counts unverified credits: all, by the index alone, and the overdue ones. `overdue`: credited before this they are.
pub(super) fn count_unverified(overdue: &str) -> String {
    let count = |further: &str| {
        format!(
            "(SELECT count(*) FROM (SELECT credited_at FROM points_credits \
               WHERE verified_at IS NULL AND state = 'credited' {further} \
               ORDER BY credited_at LIMIT {most}) AS counted)",
            most = super::MOST_COUNTED
        )
    };
    let overdue = format!("AND asked_at IS NULL AND credited_at < {overdue}");
    format!("SELECT {} AS unverified, {} AS overdue", count(""), count(&overdue))
}

/// A row of `points_credits`, with times as text.
#[derive(diesel::QueryableByName)]
pub(super) struct CreditRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    payment_id: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    user_id: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    points: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    state: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    credited_at: String,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    verified_at: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    asked_at: Option<String>,
}

/// A row of `points_adjustments`, with its time as text.
#[derive(diesel::QueryableByName)]
pub(super) struct AdjustmentRow {
    #[diesel(sql_type = diesel::sql_types::Integer)]
    seq: i32,
    #[diesel(sql_type = diesel::sql_types::Text)]
    kind: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    points: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    reason: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    created_at: String,
}

/// A user's balance.
#[derive(diesel::QueryableByName)]
pub(super) struct BalanceRow {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub(super) balance: i64,
}

/// A version of the schema.
#[derive(diesel::QueryableByName)]
pub(super) struct VersionRow {
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub(super) version: String,
}

/// A reading of the database's clock.
#[derive(diesel::QueryableByName)]
pub(super) struct ClockRow {
    /// Since 1970.
    #[diesel(sql_type = diesel::sql_types::Double)]
    pub(super) seconds: f64,
}

impl CreditRow {
    pub(super) fn with(self, adjustments: Vec<AdjustmentRow>) -> PaymentRecord {
        let adjustments = adjustments.into_iter().map(|row| Adjustment {
            seq: row.seq,
            kind: row.kind,
            points: row.points,
            reason: row.reason,
            created_at: row.created_at,
        });
        PaymentRecord {
            payment_id: self.payment_id,
            user_id: self.user_id,
            points: self.points,
            state: self.state,
            credited_at: self.credited_at,
            verified_at: self.verified_at,
            asked_at: self.asked_at,
            adjustments: adjustments.collect(),
        }
    }
}
