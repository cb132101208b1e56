//! The SQL of a batch of checks on PostgreSQL: three statements for a batch of any size.
//!
//! Rows are locked in the order of all writers: the credit rows by payment ID, with existing rows locked and new rows
//! inserted in one statement; then adjustments; then balances by user ID.

use crate::{
    domain::check::{Check, Checked, LedgerState, OnUnpaid},
    ledger::changes::{self, Change, StoredCredit},
};
use diesel::{
    PgConnection, QueryResult, RunQueryDsl,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    query_dsl::methods::LoadQuery,
    sql_types::{Array, BigInt, Bool, Text},
};
use std::collections::HashMap;

/// Within a transaction: locks and reads the rows, decides the steps, and writes the changes.
pub(super) fn check(connection: &mut PgConnection, checks: &[Check], on_unpaid: OnUnpaid) -> QueryResult<Vec<Checked>> {
    // Whether the row is new, by payment ID. A row that is missing here did not exist when the others were locked, and
    // is left unchanged: a row that was inserted since then is not locked.
    let taken: HashMap<String, bool> = TakeRows::new(checks).load(connection)?;
    let mut found = ReadRows::new(checks).load(connection)?;
    let checked: Vec<Checked> = checks
        .iter()
        .map(|check| {
            let payment_id = check.payment_id.as_str();
            let found = found.remove(payment_id).filter(|_| taken.get(payment_id) == Some(&false));
            changes::decide(check, found, on_unpaid)
        })
        .collect();
    let changes: Vec<Change<'_>> =
        checks.iter().zip(&checked).filter_map(|(check, checked)| changes::change(check, checked)).collect();
    if !changes.is_empty() {
        Write::new(&changes).execute(connection)?;
    }
    Ok(checked)
}

/// Locks the existing rows and inserts the missing ones, in the order of the payment IDs. A check without a claim only
/// locks: it is skipped unless its row exists, and rows are never deleted.
struct TakeRows<'a> {
    payments: Vec<&'a str>,
    /// Empty where the check has no claim.
    users: Vec<&'a str>,
    points: Vec<i64>,
}

impl<'a> TakeRows<'a> {
    fn new(checks: &'a [Check]) -> Self {
        Self {
            payments: checks.iter().map(|check| check.payment_id.as_str()).collect(),
            users: checks.iter().map(|check| check.claim.as_ref().map_or("", |claim| claim.user_id.as_str())).collect(),
            points: checks.iter().map(|check| check.claim.as_ref().map_or(1, |claim| claim.points.get())).collect(),
        }
    }

    /// Returns the payment IDs of the rows that are now locked, and whether each row is new.
    fn load(&self, connection: &mut PgConnection) -> QueryResult<HashMap<String, bool>> {
        <&Self as LoadQuery<'_, PgConnection, (String, bool)>>::internal_load(self, connection)?.collect()
    }
}

impl QueryId for TakeRows<'_> {
    type QueryId = TakeRows<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for TakeRows<'_> {
    type SqlType = (Text, Bool);
}

impl RunQueryDsl<PgConnection> for &TakeRows<'_> {}

impl QueryFragment<Pg> for TakeRows<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH picked AS MATERIALIZED (SELECT t.* FROM unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.payments)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.users)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.points)?;
        // PostgreSQL locks an existing row before it evaluates the condition, and does not write it (PostgreSQL,
        // "INSERT").
        out.push_sql(
            ") AS t (payment_id, user_id, points) \
             WHERE t.user_id <> '' OR EXISTS (SELECT 1 FROM points_credits AS e WHERE e.payment_id = t.payment_id)\
             ), inserted AS (\
                INSERT INTO points_credits AS c (payment_id, user_id, points) SELECT * FROM picked \
                ON CONFLICT (payment_id) DO UPDATE SET points = c.points WHERE false RETURNING payment_id\
             ) SELECT p.payment_id, i.payment_id IS NOT NULL FROM picked AS p LEFT JOIN inserted AS i USING (payment_id)",
        );
        Ok(())
    }
}

/// Reads the locked rows, which no other transaction can change now.
struct ReadRows<'a> {
    payments: Vec<&'a str>,
}

impl<'a> ReadRows<'a> {
    fn new(checks: &'a [Check]) -> Self {
        Self { payments: checks.iter().map(|check| check.payment_id.as_str()).collect() }
    }

    /// Returns the rows by payment ID.
    fn load(&self, connection: &mut PgConnection) -> QueryResult<HashMap<String, StoredCredit>> {
        <&Self as LoadQuery<'_, PgConnection, (String, String, i64, String, bool)>>::internal_load(self, connection)?
            .map(|row| {
                row.map(|(payment_id, user_id, points, state, verified)| {
                    (payment_id, StoredCredit { user_id, points, state: LedgerState::of_row(&state, verified) })
                })
            })
            .collect()
    }
}

impl QueryId for ReadRows<'_> {
    type QueryId = ReadRows<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for ReadRows<'_> {
    type SqlType = (Text, Text, BigInt, Text, Bool);
}

impl RunQueryDsl<PgConnection> for &ReadRows<'_> {}

impl QueryFragment<Pg> for ReadRows<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "SELECT payment_id, user_id, points, state, verified_at IS NOT NULL FROM points_credits \
             WHERE payment_id = ANY (",
        );
        out.push_bind_param::<Array<Text>, _>(&self.payments)?;
        out.push_sql(")");
        Ok(())
    }
}

/// Writes all changes of a batch.
struct Write<'a> {
    payments: Vec<&'a str>,
    users: Vec<&'a str>,
    states: Vec<&'a str>,
    verified: Vec<bool>,
    asked: Vec<bool>,
    balances: Vec<i64>,
    /// Empty where no adjustment is appended.
    kinds: Vec<&'a str>,
    points: Vec<i64>,
    reasons: Vec<&'a str>,
}

impl<'a> Write<'a> {
    fn new(changes: &'a [Change<'a>]) -> Self {
        let adjustments = || changes.iter().map(|change| change.adjustment.as_ref());
        Self {
            payments: changes.iter().map(|change| change.payment_id).collect(),
            users: changes.iter().map(|change| change.user_id).collect(),
            states: changes.iter().map(|change| change.state).collect(),
            verified: changes.iter().map(|change| change.verified).collect(),
            asked: changes.iter().map(|change| change.asked).collect(),
            balances: changes.iter().map(|change| change.balance).collect(),
            kinds: adjustments().map(|it| it.map_or("", |it| it.kind)).collect(),
            points: adjustments().map(|it| it.map_or(0, |it| it.points)).collect(),
            reasons: adjustments().map(|it| it.map_or("", |it| &it.reason)).collect(),
        }
    }
}

impl QueryId for Write<'_> {
    type QueryId = Write<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<PgConnection> for Write<'_> {}

impl QueryFragment<Pg> for Write<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH change AS MATERIALIZED (SELECT * FROM unnest(");
        out.push_bind_param::<Array<Text>, _>(&self.payments)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.users)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.states)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Bool>, _>(&self.verified)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Bool>, _>(&self.asked)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.balances)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.kinds)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<BigInt>, _>(&self.points)?;
        out.push_sql(", ");
        out.push_bind_param::<Array<Text>, _>(&self.reasons)?;
        out.push_sql(
            ") AS change (payment_id, user_id, state, verified, asked, balance, kind, points, reason)\
            ), adjusted AS (\
                INSERT INTO points_adjustments (payment_id, seq, user_id, kind, points, reason) \
                SELECT payment_id, 1 + coalesce((SELECT max(seq) FROM points_adjustments AS a \
                                                  WHERE a.payment_id = change.payment_id), 0), \
                       user_id, kind, points, reason FROM change WHERE kind <> ''\
            ), balanced AS (\
                INSERT INTO points_balances AS b (user_id, balance) \
                SELECT user_id, sum(balance)::bigint FROM change WHERE balance <> 0 GROUP BY user_id ORDER BY user_id COLLATE \"C\" \
                ON CONFLICT (user_id) DO UPDATE SET balance = b.balance + excluded.balance, updated_at = now()\
            ) UPDATE points_credits AS c SET state = change.state, \
                     verified_at = CASE WHEN change.verified THEN now() ELSE c.verified_at END, \
                     asked_at = CASE WHEN change.asked THEN coalesce(c.asked_at, now()) END \
                FROM change WHERE c.payment_id = change.payment_id",
        );
        Ok(())
    }
}
