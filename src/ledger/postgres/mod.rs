//! The ledger in PostgreSQL.

mod statements;

use super::{
    Ledger, LedgerError, Options, PaymentRecord, SchemaState, Verification,
    batch::Sorted,
    migrations,
    records::{AdjustmentRow, BalanceRow, CreditRow, VersionRow},
    verify,
};
use crate::domain::credit::{Credit, Standing, Verdict};
use diesel::{
    Connection, PgConnection, RunQueryDsl,
    connection::SimpleConnection,
    pg::Pg,
    r2d2::{ConnectionManager, CustomizeConnection},
    sql_query,
    sql_types::Text,
};
use statements::{CompareExisting, InsertCredits};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// How long the pool waits for a connection, at most: a server that refuses shall be told as such, before the caller's
/// deadline passes.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(3);

/// Held while migrating, by whoever migrates (a number of our own; see `pg_advisory_lock`).
const MIGRATION_LOCK: i64 = 0x706f_696e_7473_6401;

/// A ledger in PostgreSQL.
pub(super) struct PostgresLedger {
    pool: r2d2::Pool<ConnectionManager<PgConnection>>,
    uri: String,
    settings: Settings,
}

impl PostgresLedger {
    /// Connects to nothing yet.
    pub(super) fn new(uri: &str, options: Options) -> Self {
        let uri = with_parameters(uri, options.timeout);
        let settings =
            Settings { statement_timeout: options.timeout.mul_f64(0.8), lock_timeout: options.timeout.mul_f64(0.2) };
        let pool = r2d2::Pool::builder()
            .max_size(options.pool_size)
            .min_idle(Some(0))
            .test_on_check_out(true)
            .connection_timeout(CHECKOUT_TIMEOUT.min(options.timeout.mul_f64(0.5)))
            // What goes wrong is in the error of the call; the pool's own log line would repeat it.
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(settings.clone()))
            .build_unchecked(ConnectionManager::new(&uri));
        Self { pool, uri, settings }
    }

    /// A connection outside the pool: for a probe, and for whatever may take longer than a credit.
    fn fresh(&self) -> Result<PgConnection, LedgerError> {
        let mut connection = PgConnection::establish(&self.uri)?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }

    /// The same without a time limit on statements, for commands that a person has started and can stop.
    fn fresh_unlimited(&self) -> Result<PgConnection, LedgerError> {
        let mut connection = self.fresh()?;
        connection.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0")?;
        Ok(connection)
    }
}

impl Ledger for PostgresLedger {
    fn credit(&self, batch: &[Credit]) -> Result<Vec<Verdict>, LedgerError> {
        let sorted = Sorted::new(batch);
        let insert = InsertCredits::new(sorted.firsts());
        let connection = &mut *self.pool.get()?;
        // READ COMMITTED: the comparison must see what another writer committed while the insert waited for it.
        let credit = |connection: &mut PgConnection| {
            let inserted: Vec<String> = insert.load(connection)?;
            if inserted.len() == batch.len() {
                return Ok(vec![Verdict::Credited; batch.len()]);
            }
            let inserted: HashSet<&str> = inserted.iter().map(String::as_str).collect();
            let existing = sorted.firsts().map(|credit| credit.payment_id.as_str());
            let existing = CompareExisting::new(existing.filter(|payment| !inserted.contains(payment)));
            let standing: HashMap<String, Standing> = existing.load(connection)?;
            sorted.verdicts(|payment| inserted.contains(payment), &standing)
        };
        super::keeping_the_reason(|work| connection.build_transaction().read_committed().run(work), credit)
    }

    fn probe(&self) -> Result<(), LedgerError> {
        // Touching no row of the two tables, it still waits for whoever has locked one of them as a whole.
        let rows = sql_query(
            "WITH credits AS (UPDATE points_credits SET points = points WHERE false), \
                  balances AS (UPDATE points_balances SET balance = balance WHERE false) \
             UPDATE points_probe SET probed_at = now()",
        )
        .execute(&mut self.fresh()?)?;
        super::probed(rows)
    }

    fn schema(&self) -> Result<SchemaState, LedgerError> {
        let connection = &mut self.fresh()?;
        // A table that may be missing cannot be named in the statement that looks for it.
        let there: Vec<VersionRow> = sql_query(
            "SELECT tablename::text AS version FROM pg_tables WHERE tablename = '__diesel_schema_migrations' \
             AND schemaname = ANY (current_schemas(false))",
        )
        .load(connection)?;
        let mut applied: Vec<VersionRow> = Vec::new();
        if !there.is_empty() {
            applied = sql_query("SELECT version::text FROM __diesel_schema_migrations ORDER BY 1").load(connection)?;
        }
        let applied: Vec<String> = applied.into_iter().map(|row| row.version).collect();
        migrations::state::<Pg>(&migrations::POSTGRES, &applied)
    }

    fn migrate(&self) -> Result<Vec<String>, LedgerError> {
        let connection = &mut self.fresh_unlimited()?;
        // Released when the connection closes, whatever happens here.
        sql_query(format!("SELECT pg_advisory_lock({MIGRATION_LOCK})")).execute(connection)?;
        migrations::run(connection, migrations::POSTGRES)
    }

    fn balance(&self, user_id: &str) -> Result<i64, LedgerError> {
        let rows: Vec<BalanceRow> = sql_query("SELECT balance FROM points_balances WHERE user_id = $1")
            .bind::<Text, _>(user_id)
            .load(&mut self.fresh()?)?;
        Ok(rows.first().map_or(0, |row| row.balance))
    }

    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, LedgerError> {
        self.fresh()?.build_transaction().repeatable_read().read_only().run(|connection| {
            let credit: Vec<CreditRow> = sql_query(statements::PAYMENT).bind::<Text, _>(payment_id).load(connection)?;
            let Some(credit) = credit.into_iter().next() else { return Ok(None) };
            let adjustments: Vec<AdjustmentRow> =
                sql_query(statements::ADJUSTMENTS).bind::<Text, _>(payment_id).load(connection)?;
            Ok(Some(credit.with(adjustments)))
        })
    }

    fn verify(&self) -> Result<Verification, LedgerError> {
        self.fresh_unlimited()?.build_transaction().repeatable_read().read_only().run(|connection| {
            let totals = sql_query(verify::TOTALS).get_result(connection)?;
            Ok(verify::report(totals, |rule| sql_query(rule).load(connection))?)
        })
    }
}

/// What every connection is set to.
#[derive(Debug, Clone)]
struct Settings {
    /// Shorter than the caller's deadline: a server that works can then say itself what it waited for.
    statement_timeout: Duration,
    /// Shorter still: a row that somebody else holds is one payment's trouble, and a whole batch waits while that payment
    /// is looked for. Not shorter than this: a message is charged for four such waits in a row, which is as long as a
    /// statement of another writer of ours may take.
    lock_timeout: Duration,
}

impl Settings {
    /// A commit that was answered must survive a crash, so `synchronous_commit = off` is not accepted; every other
    /// setting waits for the disk and stays. A transaction of ours that falls silent in the middle (its machine died)
    /// is ended by the server, because it holds rows that other daemons wait for.
    fn apply(&self, connection: &mut PgConnection) -> diesel::QueryResult<()> {
        let timeout = self.statement_timeout.as_millis();
        let lock_timeout = self.lock_timeout.as_millis();
        connection.batch_execute(&format!(
            "SET statement_timeout = {timeout}; SET lock_timeout = {lock_timeout}; SET idle_in_transaction_session_timeout = {timeout}; \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        ))
    }
}

impl CustomizeConnection<PgConnection, diesel::r2d2::Error> for Settings {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), diesel::r2d2::Error> {
        self.apply(connection).map_err(diesel::r2d2::Error::QueryError)
    }
}

/// Adds the libpq parameters that bound a wait, unless the URI has them. (libpq, "Parameter Key Words".)
fn with_parameters(uri: &str, timeout: Duration) -> String {
    let authority = uri.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(rest));
    let hosts = u64::try_from(authority.split(',').count()).unwrap_or(1);
    // libpq waits so long for each host, two seconds at the least.
    let seconds = (timeout.as_secs() / 2 / hosts).clamp(2, 5);
    let milliseconds = timeout.as_millis();
    let mut uri = uri.trim_end_matches(['?', '&']).to_owned();
    for (name, value) in [
        ("application_name", "pointsd".to_owned()),
        ("connect_timeout", seconds.to_string()),
        ("tcp_user_timeout", milliseconds.to_string()),
        // A server that vanished while a connection was idle is noticed within half a minute, not two hours.
        ("keepalives_idle", "15".to_owned()),
        ("keepalives_interval", "5".to_owned()),
        ("keepalives_count", "3".to_owned()),
    ] {
        let query = uri.split_once('?').map(|(_, query)| query);
        let given =
            query.is_some_and(|query| query.split('&').any(|parameter| parameter.split('=').next() == Some(name)));
        if !given {
            uri.push(if query.is_some() { '&' } else { '?' });
            uri.push_str(name);
            uri.push('=');
            uri.push_str(&value);
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_unless_the_uri_says_how() {
        let timeout = Duration::from_secs(10);
        for (given, completed) in [
            ("postgres:///p", "postgres:///p?application_name=pointsd&connect_timeout=5&tcp_user_timeout=10000"),
            ("postgres://a,b/p?", "postgres://a,b/p?application_name=pointsd&connect_timeout=2&tcp_user_timeout=10000"),
            (
                "postgres://a,b/p?connect_timeout=1&target_session_attrs=read-write",
                "postgres://a,b/p?connect_timeout=1&target_session_attrs=read-write\
                 &application_name=pointsd&tcp_user_timeout=10000",
            ),
        ] {
            let completed = format!("{completed}&keepalives_idle=15&keepalives_interval=5&keepalives_count=3");
            assert_eq!(with_parameters(given, timeout), completed);
        }
    }
}
