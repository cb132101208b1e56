//! The SQL of a credit on PostgreSQL. Statements that run for every batch are query fragments with a static id, so
//! that they are prepared once a connection (`sql_query` never is).

use crate::domain::credit::{Credit, RecordedCredit};
use diesel::{
    PgConnection, QueryResult, RunQueryDsl,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::methods::LoadQuery,
    sql_types::{Array, BigInt, Bool, Nullable, Text},
};
use std::collections::{HashMap, HashSet};

/// Credits what is new and adds it to the balances: one statement and one round trip a batch.
/// It sends the new ids only if not all are new, which is seldom: a row for each would cost both sides.
///
/// `unnest` keeps the order of the arrays, so credits are taken by payment id; `GROUP BY` reads all of them before
/// the first balance is written, by user id.
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
    /// `credits` must be in the order of their payment ids, each id once.
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

    /// How many different payments there are.
    pub(super) fn size(&self) -> usize {
        self.points.len()
    }

    /// Does it, and answers which were new.
    pub(super) fn run(&self, connection: &mut PgConnection) -> QueryResult<New> {
        let new: Option<Vec<String>> = self.get_result(connection)?;
        Ok(new.map_or(New::All, |new| New::Only(new.into_iter().collect())))
    }
}

/// Which payments of a batch were new.
pub(super) enum New {
    /// All, as nearly always.
    All,
    /// These payment ids.
    Only(HashSet<String>),
}

impl New {
    /// Whether this one, of the batch, was new.
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

/// What stands in the ledger under payment ids that were not new.
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

    /// By payment id.
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

/// One payment's credit, times as RFC 3339.
pub(super) const PAYMENT: &str = r#"
    SELECT payment_id, user_id, points, state,
           to_char(credited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS credited_at,
           to_char(verified_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS verified_at,
           to_char(asked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS asked_at
      FROM points_credits WHERE payment_id = $1"#;

/// One payment's adjustments, in order.
pub(super) const ADJUSTMENTS: &str = r#"
    SELECT seq, kind, points, reason,
           to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at
      FROM points_adjustments WHERE payment_id = $1 ORDER BY seq"#;

/// Credits that no check has found paid: older than $1 and newer than $2 seconds, after ($3, $4), $5 of them.
pub(super) const UNVERIFIED: &str = r#"
    SELECT payment_id, user_id, points,
           to_char(credited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS since
      FROM points_credits
     WHERE verified_at IS NULL AND state = 'credited'
       AND credited_at < now() - make_interval(secs => $1) AND credited_at > now() - make_interval(secs => $2)
       AND (credited_at, payment_id) > ($3::timestamptz, $4)
     ORDER BY credited_at, payment_id LIMIT $5"#;

/// Credits that are reversed: since when, in the same way.
pub(super) const REVERSED: &str = r#"
    SELECT c.payment_id, c.user_id, c.points,
           to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS since
      FROM points_adjustments AS a JOIN points_credits AS c ON c.payment_id = a.payment_id AND c.state = 'reversed'
     WHERE a.created_at < now() - make_interval(secs => $1) AND a.created_at > now() - make_interval(secs => $2)
       AND (a.created_at, a.payment_id) > ($3::timestamptz, $4)
       AND NOT EXISTS (SELECT 1 FROM points_adjustments AS later
                        WHERE later.payment_id = a.payment_id AND later.seq > a.seq)
     ORDER BY a.created_at, a.payment_id LIMIT $5"#;
