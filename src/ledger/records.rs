//! The records of the ledger that commands and reports show.

use serde::Serialize;
use std::time::Duration;

/// The ledger's record of one payment. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaymentRecord {
    /// The ID of the payment.
    pub payment_id: String,
    /// The user who owns the points.
    pub user_id: String,
    /// The number of points.
    pub points: i64,
    /// The state: `credited` or `reversed`.
    pub state: String,
    /// The time at which the credit was committed.
    pub credited_at: String,
    /// The time at which a check last found the payment paid.
    pub verified_at: Option<String>,
    /// The time since which the credit is parked for a person to decide.
    pub asked_at: Option<String>,
    /// The adjustments, in order.
    pub adjustments: Vec<Adjustment>,
}

/// An adjustment of a credit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Adjustment {
    /// The number of the adjustment, counted from 1 for each payment.
    pub seq: i32,
    /// The kind: `reversal` or `reinstatement`.
    pub kind: String,
    /// The number of points, with its sign.
    pub points: i64,
    /// The reason.
    pub reason: String,
    /// The time at which the adjustment was written.
    pub created_at: String,
}

/// The selection of unverified or reversed credits to show.
#[derive(Debug, Clone)]
pub struct UnverifiedPage {
    /// Selects reversed credits instead of those that count and were never found paid.
    pub reversed: bool,
    /// Selects credits that were credited (or reversed) longer ago than this.
    pub older_than: Duration,
    /// Selects credits that were credited (or reversed) within this time.
    pub newer_than: Option<Duration>,
    /// The last credit of the previous page: its time and its payment ID.
    pub after: Option<(String, String)>,
    /// The most credits of the page.
    pub limit: i64,
}

/// A credit that no check has found paid, or that is reversed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct UnverifiedCredit {
    /// The ID of the payment.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub payment_id: String,
    /// The user who owns the points.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub user_id: String,
    /// The number of points.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub points: i64,
    /// The time since which it is credited or reversed: RFC 3339 in UTC.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub since: String,
}

/// The number of credits that no check has found paid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, diesel::QueryableByName)]
pub struct UnverifiedCount {
    /// The number of all such credits, up to [`super::MOST_COUNTED`].
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub unverified: i64,
    /// The number of credits that should be verified or reversed by now, and that no check has parked for a person to
    /// decide.
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub overdue: i64,
}

/// Returns the SQL that counts unverified credits: all of them, by the index alone, and the overdue ones. `overdue` is
/// the SQL expression of the time before which an overdue credit was credited.
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

/// The balance of a user.
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
    /// The seconds since 1970.
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
