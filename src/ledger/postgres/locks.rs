//! Detects locked rows and the sessions that lock them.
//!
//! `SKIP LOCKED` skips a locked row, and the row's `xmax` is the transaction that holds it (PostgreSQL, "System
//! Columns"); `pg_locks` maps this transaction to a session. Where it does not (several transactions share the lock, or
//! a subtransaction acquired it), a second query decides: if the holder is unchanged, it is another session's lock.

use crate::{
    database::DatabaseError,
    domain::ids::{PaymentId, UserId},
    pipeline::ports::{LedgerRow, RowLocks},
};
use diesel::{
    PgConnection, QueryableByName, RunQueryDsl, sql_query,
    sql_types::{Array, Bool, Double, Nullable, Text},
};
use std::{collections::HashSet, time::Duration};

/// The time between two queries for a lock whose holder is unknown.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// Returns the locked rows of the payments $1 and the users $2. pointsd's own writers are recognised by their role and
/// application name, unless they are idle in a transaction, as no writer is for long.
const LOCKED: &str = "
    WITH free_credits AS MATERIALIZED (
        SELECT payment_id FROM points_credits WHERE payment_id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED
    ), users AS MATERIALIZED (
        SELECT user_id FROM unnest($2) AS t (user_id) UNION SELECT user_id FROM points_credits WHERE payment_id = ANY ($1)
    ), free_balances AS MATERIALIZED (
        SELECT user_id FROM points_balances WHERE user_id IN (SELECT user_id FROM users) FOR NO KEY UPDATE SKIP LOCKED
    ), locked_balances AS MATERIALIZED (
        SELECT user_id, xmax::text AS holder FROM points_balances
         WHERE user_id IN (SELECT user_id FROM users) AND user_id NOT IN (SELECT user_id FROM free_balances)
    ), locked AS (
        SELECT false AS is_user, payment_id AS id, xmax::text AS holder FROM points_credits
         WHERE payment_id = ANY ($1) AND payment_id NOT IN (SELECT payment_id FROM free_credits)
        UNION ALL SELECT true, user_id, holder FROM locked_balances
        UNION ALL SELECT false, c.payment_id, l.holder
                    FROM points_credits AS c JOIN locked_balances AS l USING (user_id) WHERE c.payment_id = ANY ($1)
    )
    SELECT l.is_user, l.id, l.holder, a.application_name AS application, a.pid::text AS process,
           extract(epoch FROM now() - a.xact_start)::double precision AS seconds,
           (a.usesysid = own.usesysid AND a.application_name = own.application_name
            AND NOT (a.state LIKE 'idle in transaction%' AND a.state_change < now() - interval '1 second')) AS is_own
      FROM locked AS l
      JOIN pg_stat_activity AS own ON own.pid = pg_backend_pid()
      LEFT JOIN pg_locks AS p ON p.locktype = 'transactionid' AND p.granted AND p.transactionid::text = l.holder
      LEFT JOIN pg_stat_activity AS a ON a.pid = p.pid";

#[derive(Debug, QueryableByName)]
struct Locked {
    #[diesel(sql_type = Bool)]
    is_user: bool,
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    holder: String,
    #[diesel(sql_type = Nullable<Text>)]
    application: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    process: Option<String>,
    #[diesel(sql_type = Nullable<Double>)]
    seconds: Option<f64>,
    #[diesel(sql_type = Nullable<Bool>)]
    is_own: Option<bool>,
}

impl Locked {
    fn row(&self) -> Option<LedgerRow> {
        if self.is_user {
            UserId::new(&self.id).ok().map(LedgerRow::User)
        } else {
            PaymentId::new(&self.id).ok().map(LedgerRow::Payment)
        }
    }

    /// Describes the session that holds the lock, for people.
    fn describe(&self) -> String {
        let Some(process) = &self.process else { return "process unknown".into() };
        let application = self.application.as_deref().unwrap_or_default();
        let name: String = application.chars().filter(|character| !character.is_control()).take(64).collect();
        let since = self.seconds.map(|seconds| format!(", in a transaction for {seconds:.0} s")).unwrap_or_default();
        format!("process {process} {name:?}{since}")
    }
}

/// Finds the locked ones of these rows; free rows are locked only during the statement.
pub(super) fn row_locks(connection: &mut PgConnection, rows: &[LedgerRow]) -> Result<RowLocks, DatabaseError> {
    let first = load_locked(connection, rows)?;
    let mut locks = RowLocks::default();
    let mut unknown = HashSet::new();
    for locked in &first {
        match locked.is_own {
            Some(true) => locks.by_own_writers = true,
            Some(false) => locks.by_others.extend(locked.row().map(|row| (row, locked.describe()))),
            None => drop(unknown.insert((locked.id.as_str(), locked.holder.as_str()))),
        }
    }
    if unknown.is_empty() {
        return Ok(locks);
    }
    std::thread::sleep(SECOND_LOOK);
    for locked in load_locked(connection, rows)? {
        if locked.is_own.is_none() && unknown.contains(&(locked.id.as_str(), locked.holder.as_str())) {
            locks.by_others.extend(locked.row().map(|row| (row, locked.describe())));
        }
    }
    Ok(locks)
}

fn load_locked(connection: &mut PgConnection, rows: &[LedgerRow]) -> Result<Vec<Locked>, DatabaseError> {
    let (mut payments, mut users) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            LedgerRow::Payment(payment_id) => payments.push(payment_id.as_str()),
            LedgerRow::User(user_id) => users.push(user_id.as_str()),
        }
    }
    let locked = sql_query(LOCKED).bind::<Array<Text>, _>(payments).bind::<Array<Text>, _>(users).load(connection)?;
    Ok(locked)
}
