//! The SQL of a credit on PostgreSQL. Statements that run for every batch are query fragments with a static ID, so that
//! they are prepared once per connection (`sql_query` never is).

use crate::domain::credit::{Credit, RecordedCredit};
use diesel::{
    PgConnection, QueryResult, RunQueryDsl,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::methods::LoadQuery,
    sql_types::{Array, BigInt, Bool, Nullable, Text},
};
use std::collections::{HashMap, HashSet};

/// Inserts the new credits and adds their points to the balances: one statement and one round trip per batch. The
/// server returns the new payment IDs only if not all are new, which is rare: a row for each ID would cost both sides.
///
/// `unnest` keeps the order of the arrays, so credits are inserted by payment ID; `GROUP BY` reads all of them before
/// the first balance is written, by user ID.
pub(super) struct InsertCredits<'a> {
    payment_ids: Vec<&'a str>,
    user_ids: Vec<&'a str>,
    points: Vec<i64>,
    size: i64,
}

impl QueryId for InsertCredits<'_> {
    type QueryId = InsertCredits<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<'a> InsertCredits<'a> {
    /// Creates the statement. `credits` must be in the order of their payment IDs, each ID once.
    pub(super) fn new(credits: impl Iterator<Item = &'a Credit>) -> Self {
        let size = credits.size_hint().1.unwrap_or(0);
        let (mut payment_ids, mut user_ids, mut points) =
            (Vec::with_capacity(size), Vec::with_capacity(size), Vec::with_capacity(size));
        for credit in credits {
            payment_ids.push(credit.payment_id.as_str());
            user_ids.push(credit.user_id.as_str());
            points.push(credit.points.get());
        }
        let size = i64::try_from(points.len()).unwrap_or(i64::MAX);
        Self { payment_ids, user_ids, points, size }
    }

    /// Returns the number of different payments.
    pub(super) fn size(&self) -> usize {
        self.points.len()
    }

    /// Runs the statement and returns which payments were new.
    pub(super) fn run(&self, connection: &mut PgConnection) -> QueryResult<New> {
        let new: Option<Vec<String>> = self.get_result(connection)?;
        Ok(new.map_or(New::All, |new| New::Only(new.into_iter().collect())))
    }
}

/// The payments of a batch that were new.
pub(super) enum New {
    /// All payments, which is the usual case.
    All,
    /// The payments with these IDs.
    Only(HashSet<String>),
}

impl New {
    /// Returns whether this payment of the batch was new.
    pub(super) fn has(&self, payment_id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(new) => new.contains(payment_id),
        }
    }
}

impl Query for InsertCredits<'_> {
    type SqlType = Nullable<Array<Text>>;
}

impl RunQueryDsl<PgConnection> for &InsertCredits<'_> {}

impl QueryFragment<Pg> for InsertCredits<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "WITH credited AS (\
                INSERT INTO points_credits (payment_id, user_id, points) SELECT * FROM unnest(",
        );
        out.push_bind_param::<Array<Text>, _>(&self.payment_ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.user_ids)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.points)?;
        out.push_sql(
            ") ON CONFLICT (payment_id) DO NOTHING RETURNING payment_id, user_id, points\
            ), balanced AS (\
                INSERT INTO points_balances AS b (user_id, balance) \
                SELECT user_id, sum(points)::bigint FROM credited GROUP BY user_id ORDER BY user_id \
                ON CONFLICT (user_id) DO UPDATE SET balance = b.balance + excluded.balance, updated_at = now()\
            ) SELECT CASE WHEN count(*) < ",
        );
        out.push_bind_param::<BigInt, _>(&self.size)?;
        out.push_sql(" THEN coalesce(array_agg(payment_id), '{}') END FROM credited");
        Ok(())
    }
}

/// Reads the ledger's rows of payment IDs that were not new.
pub(super) struct CompareExisting<'a> {
    payment_ids: Vec<&'a str>,
}

impl QueryId for CompareExisting<'_> {
    type QueryId = CompareExisting<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<'a> CompareExisting<'a> {
    pub(super) fn new(payment_ids: impl Iterator<Item = &'a str>) -> Self {
        Self { payment_ids: payment_ids.collect() }
    }

    /// Returns the rows by payment ID.
    pub(super) fn load(&self, connection: &mut PgConnection) -> QueryResult<HashMap<String, RecordedCredit>> {
        <&Self as LoadQuery<'_, PgConnection, (String, String, i64, bool)>>::internal_load(self, connection)?
            .map(|row| {
                row.map(|(payment_id, user_id, points, checked)| {
                    (payment_id, RecordedCredit { user_id, points, checked })
                })
            })
            .collect()
    }
}

impl Query for CompareExisting<'_> {
    type SqlType = (Text, Text, BigInt, Bool);
}

impl RunQueryDsl<PgConnection> for &CompareExisting<'_> {}

impl QueryFragment<Pg> for CompareExisting<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "SELECT payment_id, user_id, points, \
                    (verified_at IS NOT NULL AND state = 'credited') OR asked_at IS NOT NULL \
             FROM points_credits WHERE payment_id = ANY (",
        );
        out.push_bind_param::<Array<Text>, _>(&self.payment_ids)?;
        out.push_sql(")");
        Ok(())
    }
}

/// Reads one payment's credit, with times as RFC 3339.
pub(super) const PAYMENT: &str = r#"
    SELECT payment_id, user_id, points, state,
           to_char(credited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS credited_at,
           to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS verified_at,
           to_char(asked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS asked_at
      FROM points_credits WHERE payment_id = $1"#;

/// Reads one payment's adjustments, in order.
pub(super) const ADJUSTMENTS: &str = r#"
    SELECT seq, kind, points, reason,
           to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at
      FROM points_adjustments WHERE payment_id = $1 ORDER BY seq"#;

/// Reads credits that no check has found paid: older than $1 and newer than $2 seconds, after ($3, $4), at most $5.
pub(super) const UNVERIFIED: &str = r#"
    SELECT payment_id, user_id, points,
           to_char(credited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS since
      FROM points_credits
     WHERE verified_at IS NULL AND state = 'credited'
       AND credited_at < now() - make_interval(secs => $1) AND credited_at > now() - make_interval(secs => $2)
       AND (credited_at, payment_id) > ($3::timestamptz, $4)
     ORDER BY credited_at, payment_id LIMIT $5"#;

/// Reads reversed credits with the time of the reversal; parameters as in [`UNVERIFIED`].
pub(super) const REVERSED: &str = r#"
    SELECT c.payment_id, c.user_id, c.points,
           to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS since
      FROM points_adjustments AS a JOIN points_credits AS c ON c.payment_id = a.payment_id AND c.state = 'reversed'
     WHERE a.created_at < now() - make_interval(secs => $1) AND a.created_at > now() - make_interval(secs => $2)
       AND (a.created_at, a.payment_id) > ($3::timestamptz, $4)
       AND NOT EXISTS (SELECT 1 FROM points_adjustments AS later
                        WHERE later.payment_id = a.payment_id AND later.seq > a.seq)
     ORDER BY a.created_at, a.payment_id LIMIT $5"#;
