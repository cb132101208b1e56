//! The verification of the ledger's invariants. Both databases use the same SQL; each runs it in one snapshot.

use diesel::{QueryResult, result::Error};
use serde::Serialize;

/// The most violations that are listed.
const LISTED: usize = 100;
/// The most violations that are searched for, per invariant.
const LOOKED_FOR: usize = 1000;

/// The result of [`super::Ledger::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The number of rows in `points_credits`.
    pub credits: i64,
    /// The number of rows in `points_adjustments`.
    pub adjustments: i64,
    /// The number of rows in `points_balances`.
    pub users: i64,
    /// The number of credits that count and that no check has found paid.
    pub unverified: i64,
    /// The sum of all balances in points. It may exceed 64 bits.
    pub points: i128,
    /// The number of violations: 0 when the ledger is consistent. At most 1000 are counted per invariant.
    pub violations: usize,
    /// The first violations.
    pub findings: Vec<Violation>,
}

/// One violation of an invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, diesel::QueryableByName)]
pub struct Violation {
    /// The violated invariant, with the user, payment or adjustment.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub subject: String,
    /// The value that would be right.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub expected: String,
    /// The value in the ledger.
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub found: String,
}

/// The size of a ledger.
#[derive(diesel::QueryableByName)]
pub(super) struct Totals {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    credits: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    adjustments: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    users: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    unverified: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    points: String,
}

pub(super) const TOTALS: &str = "
    SELECT (SELECT count(*) FROM points_credits) AS credits,
           (SELECT count(*) FROM points_adjustments) AS adjustments,
           (SELECT count(*) FROM points_balances) AS users,
           (SELECT count(*) FROM points_credits WHERE verified_at IS NULL AND state = 'credited') AS unverified,
           (SELECT CAST(coalesce(sum(balance), 0) AS text) FROM points_balances) AS points";

/// The queries for the violations of each invariant.
const RULES: [&str; 3] = [
    // The balance of a user = the sum of the user's credits + the sum of the user's adjustments.
    "SELECT 'balance of user ' || coalesce(entries.user_id, b.user_id) AS subject,
            CAST(coalesce(entries.points, 0) AS text) AS expected,
            coalesce(CAST(b.balance AS text), 'no balance') AS found
       FROM (SELECT user_id, sum(points) AS points
               FROM (SELECT user_id, points FROM points_credits
                     UNION ALL SELECT user_id, points FROM points_adjustments) AS entry
              GROUP BY user_id) AS entries
       FULL JOIN points_balances AS b ON b.user_id = entries.user_id
      WHERE coalesce(entries.points, 0) <> coalesce(b.balance, 0)",
    // The adjustments of a credit add up to its state, and are numbered without a gap.
    "SELECT 'adjustments of payment ' || c.payment_id AS subject,
            'a sum of ' || CAST(CASE c.state WHEN 'reversed' THEN -c.points ELSE 0 END AS text)
                || ' because it is ' || c.state AS expected,
            CAST(coalesce(a.points, 0) AS text) || ' in ' || CAST(coalesce(a.entries, 0) AS text)
                || ' numbered to ' || CAST(coalesce(a.last, 0) AS text) AS found
       FROM points_credits AS c
       LEFT JOIN (SELECT payment_id, sum(points) AS points, count(*) AS entries, max(seq) AS last
                    FROM points_adjustments GROUP BY payment_id) AS a ON a.payment_id = c.payment_id
      WHERE coalesce(a.points, 0) <> CASE c.state WHEN 'reversed' THEN -c.points ELSE 0 END
         OR coalesce(a.entries, 0) <> coalesce(a.last, 0)",
    // An adjustment belongs to a credit of the same user, and moves exactly the points of that credit.
    "SELECT 'adjustment ' || CAST(a.seq AS text) || ' of payment ' || a.payment_id AS subject,
            coalesce('user ' || c.user_id || ', ' || CAST(CASE a.kind WHEN 'reversal' THEN -c.points
                ELSE c.points END AS text) || ' points', 'a credit of that payment') AS expected,
            'user ' || a.user_id || ', ' || CAST(a.points AS text) || ' points' AS found
       FROM points_adjustments AS a
       LEFT JOIN points_credits AS c ON c.payment_id = a.payment_id
      WHERE c.payment_id IS NULL OR c.user_id <> a.user_id
         OR a.points <> CASE a.kind WHEN 'reversal' THEN -c.points ELSE c.points END",
];

/// Runs every query with `find` and returns the result.
pub(super) fn report(
    totals: Totals,
    mut find: impl FnMut(String) -> QueryResult<Vec<Violation>>,
) -> QueryResult<Verification> {
    let mut violations = 0;
    let mut findings = Vec::new();
    for rule in RULES {
        let found = find(format!("{rule} LIMIT {LOOKED_FOR}"))?;
        violations += found.len();
        let room = LISTED - findings.len();
        findings.extend(found.into_iter().take(room));
    }
    let Totals { credits, adjustments, users, unverified, points } = totals;
    let points = points.parse().map_err(|error| Error::DeserializationError(Box::new(error)))?;
    Ok(Verification { credits, adjustments, users, unverified, points, violations, findings })
}
