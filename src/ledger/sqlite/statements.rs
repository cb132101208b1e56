//! The SQL of a credit on SQLite, row by row: within one transaction, a prepared statement costs less than JSON for a
//! whole batch.

use super::schema::{points_credits, points_outbox};
use crate::domain::credit::{Credit, RecordedCredit};
use diesel::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, QueryResult, RunQueryDsl, SqliteConnection,
    query_builder::{AstPass, QueryFragment, QueryId},
    sql_types::{BigInt, Text},
    sqlite::Sqlite,
};

/// Inserts a credit unless the payment has one. Returns whether the payment was new.
pub(super) fn insert_credit(connection: &mut SqliteConnection, credit: &Credit) -> QueryResult<bool> {
    let rows = diesel::insert_into(points_credits::table)
        .values((
            points_credits::payment_id.eq(credit.payment_id.as_str()),
            points_credits::user_id.eq(credit.user_id.as_str()),
            points_credits::points.eq(credit.points.get()),
        ))
        .on_conflict_do_nothing()
        .execute(connection)?;
    Ok(rows == 1)
}

/// Returns the ledger's row of a payment, or `None` when there is none.
pub(super) fn find_credit(connection: &mut SqliteConnection, payment_id: &str) -> QueryResult<Option<RecordedCredit>> {
    let counts_and_verified = points_credits::verified_at.is_not_null().and(points_credits::state.eq("credited"));
    let row: Option<(String, i64, bool)> = points_credits::table
        .find(payment_id)
        .select((
            points_credits::user_id,
            points_credits::points,
            counts_and_verified.or(points_credits::asked_at.is_not_null()),
        ))
        .first(connection)
        .optional()?;
    Ok(row.map(|(user_id, points, checked)| RecordedCredit { user_id, points, checked }))
}

/// Adds points to a user's balance, which starts at 0.
pub(super) fn add_to_balance(connection: &mut SqliteConnection, user_id: &str, points: i64) -> QueryResult<()> {
    AddToBalance { user_id, points }.execute(connection)?;
    Ok(())
}

/// A query fragment with a static ID, so that it is prepared once per connection.
struct AddToBalance<'a> {
    user_id: &'a str,
    points: i64,
}

impl QueryId for AddToBalance<'_> {
    type QueryId = AddToBalance<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for AddToBalance<'_> {}

impl QueryFragment<Sqlite> for AddToBalance<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("INSERT INTO points_balances (user_id, balance) VALUES (");
        out.push_bind_param::<Text, _>(self.user_id)?;
        out.push_sql(", ");
        out.push_bind_param::<BigInt, _>(&self.points)?;
        out.push_sql(
            ") ON CONFLICT (user_id) DO UPDATE SET balance = balance + excluded.balance, updated_at = excluded.updated_at",
        );
        Ok(())
    }
}

/// Inserts a row of the outbox: exchange, message ID and routing key, key and body.
pub(in crate::ledger) fn insert_outbox_row(
    connection: &mut SqliteConnection,
    exchange: &str,
    (message_id, routing_key): (&str, &str),
    (key, body): (&str, &str),
) -> QueryResult<()> {
    diesel::insert_into(points_outbox::table)
        .values((
            points_outbox::exchange.eq(exchange),
            points_outbox::message_id.eq(message_id),
            points_outbox::routing_key.eq(routing_key),
            points_outbox::key.eq(key),
            points_outbox::body.eq(body),
        ))
        .execute(connection)?;
    Ok(())
}

/// Reads one payment's credit.
pub(super) const PAYMENT: &str = "SELECT payment_id, user_id, points, state, credited_at, verified_at, asked_at FROM points_credits WHERE payment_id = ?";

/// Reads one payment's adjustments, in order.
pub(super) const ADJUSTMENTS: &str =
    "SELECT seq, kind, points, reason, created_at FROM points_adjustments WHERE payment_id = ? ORDER BY seq";

/// Formats a time as the schema's defaults do.
pub(in crate::ledger) fn time(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// Reads credits that no check has found paid: credited before ?1 and after ?2, after (?3, ?4), at most ?5.
pub(super) const UNVERIFIED: &str = "
    SELECT payment_id, user_id, points, credited_at AS since FROM points_credits
     WHERE verified_at IS NULL AND state = 'credited'
       AND credited_at < ?1 AND credited_at > ?2 AND (credited_at, payment_id) > (?3, ?4)
     ORDER BY credited_at, payment_id LIMIT ?5";

/// Reads reversed credits with the time of the reversal; parameters as in [`UNVERIFIED`].
pub(super) const REVERSED: &str = "
    SELECT c.payment_id, c.user_id, c.points, a.created_at AS since
      FROM points_adjustments AS a JOIN points_credits AS c ON c.payment_id = a.payment_id AND c.state = 'reversed'
     WHERE a.created_at < ?1 AND a.created_at > ?2 AND (a.created_at, a.payment_id) > (?3, ?4)
       AND NOT EXISTS (SELECT 1 FROM points_adjustments AS later
                        WHERE later.payment_id = a.payment_id AND later.seq > a.seq)
     ORDER BY a.created_at, a.payment_id LIMIT ?5";
