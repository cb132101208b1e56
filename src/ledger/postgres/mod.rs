//! The ledger in PostgreSQL.

mod checks;
mod locks;
mod outbox;
mod statements;

use super::{
    Ledger, Options, PaymentRecord, Probe, SchemaState, Verification,
    batch::Sorted,
    migrations,
    records::{
        self, AdjustmentRow, BalanceRow, ClockRow, CreditRow, UnverifiedCount, UnverifiedCredit, UnverifiedPage,
        VersionRow,
    },
    verify,
};
use crate::{
    database::{
        DatabaseError, PostgresUri,
        postgres::{Pool, Server},
    },
    domain::{
        check::{Check, Checked, OnUnpaid},
        credit::{Credit, RecordedCredit, Verdict},
    },
    ledger::outbox_events::{EventWriter, OutboxEvents},
    pipeline::ports::{LedgerRow, Patience, RowLocks},
};
use diesel::{
    PgConnection, RunQueryDsl,
    connection::SimpleConnection,
    pg::Pg,
    sql_query,
    sql_types::{BigInt, Double, Text},
};
pub(super) use outbox::PostgresOutbox;
use statements::{CompareExisting, InsertCredits, New};
use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

/// A time span in seconds that exceeds the age of every credit.
const UNLIMITED_SECONDS: f64 = 1e10;

/// The settings of the pool's connections. READ COMMITTED whatever the server's default is, because a credit that
/// waited for another writer of the same payment must see its row. Sequential scans are off so that every row is found
/// by its key: a statement is planned once per connection, perhaps while a table is empty and a scan is cheapest, and
/// would then scan for the rest of the connection's life.
const WRITER_SETTINGS: &str = "SET default_transaction_isolation = 'read committed'; SET enable_seqscan = off";

/// The setting for a transaction that other messages wait for, on a row that is known to be locked.
const BRIEF_LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '100ms'";

/// The advisory lock that is held while migrating (a constant of pointsd; see `pg_advisory_lock`).
const MIGRATION_LOCK: i64 = 0x706f_696e_7473_6401;

/// A ledger in PostgreSQL.
pub(super) struct PostgresLedger {
    pool: Pool,
    /// The server, for connections outside the pool: for probes, and for statements that may take longer than a credit.
    server: Server,
    /// Creates the events of committed changes, if events are configured.
    event_writer: Option<EventWriter>,
}

impl PostgresLedger {
    /// Creates the ledger without connecting.
    pub(super) fn new(uri: &PostgresUri, options: &Options) -> Self {
        let server = Server::new(uri, options.timeout);
        let event_writer = options.events.as_deref().map(EventWriter::new);
        Self { pool: server.pool(options.pool_size, Some(WRITER_SETTINGS)), server, event_writer }
    }
}

impl PostgresLedger {
    /// Writes the events of a change, if events are configured.
    fn write_events(
        &self,
        connection: &mut PgConnection,
        of: impl FnOnce(&EventWriter) -> OutboxEvents,
    ) -> diesel::QueryResult<()> {
        let Some(rows) = self.event_writer.as_ref().map(of).filter(|rows| !rows.is_empty()) else { return Ok(()) };
        outbox::InsertRows(&rows).execute(connection)?;
        Ok(())
    }

    /// Inserts the new credits, and commits.
    fn insert(
        &self,
        connection: &mut PgConnection,
        insert: &InsertCredits<'_>,
        sorted: &Sorted<'_>,
        patience: Patience,
    ) -> Result<New, DatabaseError> {
        if self.event_writer.is_none() && patience == Patience::Usual {
            // A single statement is a transaction: one round trip instead of three.
            return Ok(insert.run(connection)?);
        }
        transaction(connection, patience, |connection| Ok(self.insert_within(connection, insert, sorted)?))
    }

    /// Within a transaction: inserts the new credits and their events.
    fn insert_within(
        &self,
        connection: &mut PgConnection,
        insert: &InsertCredits<'_>,
        sorted: &Sorted<'_>,
    ) -> diesel::QueryResult<New> {
        let new = insert.run(connection)?;
        self.write_events(connection, |event_writer| {
            if matches!(new, New::All) && insert.size() == sorted.batch().len() {
                event_writer.credited(sorted.batch().iter())
            } else {
                event_writer.credited(sorted.firsts().filter(|credit| new.has(credit.payment_id.as_str())))
            }
        })?;
        Ok(new)
    }

    /// Within a transaction: applies checks and writes their events.
    fn check_within(
        &self,
        connection: &mut PgConnection,
        checks: &[Check],
        on_unpaid: OnUnpaid,
    ) -> diesel::QueryResult<Vec<Checked>> {
        let checked = checks::check(connection, checks, on_unpaid)?;
        self.write_events(connection, |event_writer| event_writer.checked(checks, &checked))?;
        Ok(checked)
    }
}

/// Runs `work` in a transaction. READ COMMITTED, because statements must read the rows that they locked, not those of
/// the start of the transaction.
fn transaction<T>(
    connection: &mut PgConnection,
    patience: Patience,
    work: impl FnOnce(&mut PgConnection) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    let work = |connection: &mut PgConnection| {
        if patience == Patience::Brief {
            connection.batch_execute(BRIEF_LOCK_TIMEOUT)?;
        }
        work(connection)
    };
    super::run_keeping_error(|work| connection.build_transaction().read_committed().run(work), work)
}

impl Ledger for PostgresLedger {
    fn credit(&self, batch: &[Credit], patience: Patience) -> Result<Vec<Verdict>, DatabaseError> {
        let sorted = Sorted::new(batch);
        let insert = InsertCredits::new(sorted.firsts());
        let mut connection = self.pool.get()?;
        let verdicts = match self.insert(&mut connection, &insert, &sorted, patience)? {
            New::All => sorted.verdicts(|_| true, &HashMap::new()),
            New::Only(inserted) => {
                // This runs after the commit: the user and points of a row never change, and this statement sees the
                // rows that another writer committed while the insert waited for it.
                let existing = sorted.firsts().map(|credit| credit.payment_id.as_str());
                let existing = CompareExisting::new(existing.filter(|payment| !inserted.contains(*payment)));
                let standing: HashMap<String, RecordedCredit> = existing.load(&mut connection)?;
                sorted.verdicts(|payment| inserted.contains(payment), &standing)
            }
        };
        connection.mark_working();
        verdicts
    }

    fn check(
        &self,
        checks: &[Check],
        on_unpaid: OnUnpaid,
        patience: Patience,
        deadline: Instant,
    ) -> Result<Vec<Checked>, DatabaseError> {
        transaction(&mut *self.pool.get()?, patience, |connection| {
            super::within_deadline(self.check_within(connection, checks, on_unpaid)?, deadline)
        })
    }

    fn row_locks(&self, rows: &[LedgerRow]) -> Result<RowLocks, DatabaseError> {
        locks::row_locks(&mut self.server.fresh()?, rows)
    }

    fn count_unverified(&self, overdue_after: Duration) -> Result<UnverifiedCount, DatabaseError> {
        let count = sql_query(records::count_unverified("now() - make_interval(secs => $1)"))
            .bind::<Double, _>(overdue_after.as_secs_f64().min(UNLIMITED_SECONDS))
            .get_result(&mut self.server.fresh()?)?;
        Ok(count)
    }

    fn unverified(&self, page: &UnverifiedPage) -> Result<Vec<UnverifiedCredit>, DatabaseError> {
        let (at, payment_id) = page.after.as_ref().map_or(("-infinity", ""), |(at, id)| (at, id));
        let newer_than = page.newer_than.map_or(f64::INFINITY, |it| it.as_secs_f64()).min(UNLIMITED_SECONDS);
        let rows = sql_query(if page.reversed { statements::REVERSED } else { statements::UNVERIFIED })
            .bind::<Double, _>(page.older_than.as_secs_f64().min(UNLIMITED_SECONDS))
            .bind::<Double, _>(newer_than)
            .bind::<Text, _>(at)
            .bind::<Text, _>(payment_id)
            .bind::<BigInt, _>(page.limit)
            .load(&mut self.server.fresh_unlimited()?)?;
        Ok(rows)
    }

    fn probe(&self, probe: Probe) -> Result<(), DatabaseError> {
        let connection = &mut self.server.fresh()?;
        let credits = [super::probe::credit()];
        let sorted = Sorted::new(&credits);
        let work = |connection: &mut PgConnection| {
            self.insert_within(connection, &InsertCredits::new(sorted.firsts()), &sorted)?;
            if probe == Probe::Checks {
                self.check_within(connection, &credits.each_ref().map(super::probe::check), OnUnpaid::Reverse)?;
            }
            Err(super::probe_done())
        };
        super::expect_rolled_back(transaction(connection, Patience::Usual, work))?;
        super::require_probe_row(sql_query("UPDATE points_probe SET probed_at = now()").execute(connection)?)
    }

    fn now(&self) -> Result<SystemTime, DatabaseError> {
        let clock: ClockRow = sql_query("SELECT extract(epoch FROM clock_timestamp())::float8 AS seconds")
            .get_result(&mut self.server.fresh()?)?;
        let since = Duration::try_from_secs_f64(clock.seconds).ok();
        since
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
            .ok_or_else(|| DatabaseError::Database("the server's clock is before 1970".into()))
    }

    fn schema(&self) -> Result<SchemaState, DatabaseError> {
        self.server.check_session()?;
        let connection = &mut self.server.fresh()?;
        // A statement cannot name a table that may be missing, so the table is looked up in the catalogue.
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

    fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        let connection = &mut self.server.fresh_unlimited()?;
        // The lock is released when the connection closes, in every case.
        sql_query(format!("SELECT pg_advisory_lock({MIGRATION_LOCK})")).execute(connection)?;
        migrations::run(connection, migrations::POSTGRES)
    }

    fn balance(&self, user_id: &str) -> Result<i64, DatabaseError> {
        let rows: Vec<BalanceRow> = sql_query("SELECT balance FROM points_balances WHERE user_id = $1")
            .bind::<Text, _>(user_id)
            .load(&mut self.server.fresh()?)?;
        Ok(rows.first().map_or(0, |row| row.balance))
    }

    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, DatabaseError> {
        self.server.fresh()?.build_transaction().repeatable_read().read_only().run(|connection| {
            let credit: Vec<CreditRow> = sql_query(statements::PAYMENT).bind::<Text, _>(payment_id).load(connection)?;
            let Some(credit) = credit.into_iter().next() else { return Ok(None) };
            let adjustments: Vec<AdjustmentRow> =
                sql_query(statements::ADJUSTMENTS).bind::<Text, _>(payment_id).load(connection)?;
            Ok(Some(credit.with(adjustments)))
        })
    }

    fn verify(&self) -> Result<Verification, DatabaseError> {
        self.server.fresh_unlimited()?.build_transaction().repeatable_read().read_only().run(|connection| {
            let totals = sql_query(verify::TOTALS).get_result(connection)?;
            Ok(verify::report(totals, |rule| sql_query(rule).load(connection))?)
        })
    }
}
