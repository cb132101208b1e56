//! The ledger in a SQLite file: no server, one writing program at a time, with concurrent readers.

mod checks;
mod outbox;
mod schema;
pub(super) mod statements;

use super::{
    Access, Ledger, Options, PaymentRecord, Probe, SchemaState, Verification,
    batch::Sorted,
    lock::{OWNERS_ONLY, resolve_links},
    migrations,
    records::{
        self, AdjustmentRow, BalanceRow, CreditRow, UnverifiedCount, UnverifiedCredit, UnverifiedPage, VersionRow,
    },
    verify,
};
use crate::{
    database::{
        DatabaseError,
        sqlite::{Database, Pool},
    },
    domain::{
        check::{Check, Checked, OnUnpaid},
        credit::{Credit, Verdict},
    },
    ledger::outbox_events::EventWriter,
    pipeline::ports::Patience,
};
use diesel::{
    Connection, RunQueryDsl, SqliteConnection, sql_query,
    sql_types::{BigInt, Text},
    sqlite::Sqlite,
};
use jiff::Timestamp;
pub(super) use outbox::SqliteOutbox;
use std::{
    collections::{HashMap, HashSet},
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// The lock of this process's writers. SQLite permits one writer; the writers of this process (credits and checks have
/// separate pools) wait here instead of polling the file's lock.
pub(super) static TURN: Mutex<()> = Mutex::new(());

/// A ledger in a SQLite file.
pub(super) struct SqliteLedger {
    pool: Pool,
    file: PathBuf,
    /// The identity of the file when it was first written.
    identity: OnceLock<(u64, u64)>,
    database: Database,
    access: Access,
    /// Creates the events of committed changes, if events are configured.
    event_writer: Option<EventWriter>,
}

impl SqliteLedger {
    /// Creates the ledger without opening the file.
    pub(super) fn new(file: &Path, options: &Options) -> Self {
        let database = Database::new(file, options.timeout);
        Self {
            pool: database.pool(options.pool_size),
            file: file.into(),
            identity: OnceLock::new(),
            database,
            access: options.access,
            event_writer: options.events.as_deref().map(EventWriter::new),
        }
    }

    /// Returns an error if the file was removed or replaced. SQLite would continue to write to the old file, whose rows
    /// are lost.
    fn require_same_file(&self) -> Result<(), DatabaseError> {
        let moved = |what: String| DatabaseError::Unreachable(format!("{}: {what}", self.file.display()));
        let now = std::fs::metadata(&self.file).map_err(|error| moved(error.to_string()))?;
        let now = (now.dev(), now.ino());
        if *self.identity.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(moved("the file was replaced while it was in use".into()))
    }

    /// Returns an error if the file is missing. SQLite would create it, but only a migration may: otherwise the name is
    /// wrong or the ledger was lost.
    fn require_file(&self) -> Result<(), DatabaseError> {
        if self.file.exists() {
            return Ok(());
        }
        Err(DatabaseError::Unreachable(format!("there is no ledger {}", self.file.display())))
    }

    /// Within a transaction: inserts the new credits and compares the others.
    fn insert(&self, connection: &mut SqliteConnection, sorted: &Sorted<'_>) -> Result<Vec<Verdict>, DatabaseError> {
        let mut inserted = HashSet::new();
        let mut standing = HashMap::new();
        let mut gains: HashMap<&str, i64> = HashMap::new();
        for credit in sorted.firsts() {
            let payment = credit.payment_id.as_str();
            if statements::insert_credit(connection, credit)? {
                inserted.insert(payment);
                // The sum cannot overflow: see `domain::credit::MAX_POINTS_LIMIT`.
                *gains.entry(credit.user_id.as_str()).or_default() += credit.points.get();
            } else if let Some(existing) = statements::find_credit(connection, payment)? {
                standing.insert(payment.to_owned(), existing);
            }
        }
        if let Some(event_writer) = &self.event_writer {
            let new = sorted.firsts().filter(|credit| inserted.contains(credit.payment_id.as_str()));
            outbox::insert_rows(connection, &event_writer.credited(new))?;
        }
        let mut gains: Vec<(&str, i64)> = gains.into_iter().collect();
        gains.sort_unstable();
        for (user, points) in gains {
            statements::add_to_balance(connection, user, points)?;
        }
        sorted.verdicts(|payment| inserted.contains(payment), &standing)
    }

    /// Within a transaction: applies checks and writes their events.
    fn apply_checks(
        &self,
        connection: &mut SqliteConnection,
        checks: &[Check],
        on_unpaid: OnUnpaid,
    ) -> Result<Vec<Checked>, DatabaseError> {
        let checked = checks::check(connection, checks, on_unpaid)?;
        if let Some(event_writer) = &self.event_writer {
            outbox::insert_rows(connection, &event_writer.checked(checks, &checked))?;
        }
        Ok(checked)
    }

    fn fresh(&self) -> Result<SqliteConnection, DatabaseError> {
        self.require_file()?;
        self.database.open()
    }
}

impl Ledger for SqliteLedger {
    fn credit(&self, batch: &[Credit], _: Patience) -> Result<Vec<Verdict>, DatabaseError> {
        self.require_file()?;
        let sorted = Sorted::new(batch);
        let connection = &mut *self.pool.get()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = |connection: &mut SqliteConnection| self.insert(connection, &sorted);
        let verdicts = super::run_keeping_error(|work| connection.immediate_transaction(work), credit)?;
        self.require_same_file()?;
        Ok(verdicts)
    }

    fn check(
        &self,
        checks: &[Check],
        on_unpaid: OnUnpaid,
        _: Patience,
        deadline: Instant,
    ) -> Result<Vec<Checked>, DatabaseError> {
        self.require_file()?;
        let connection = &mut *self.pool.get()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let check = |connection: &mut SqliteConnection| {
            super::within_deadline(self.apply_checks(connection, checks, on_unpaid)?, deadline)
        };
        let checked = super::run_keeping_error(|work| connection.immediate_transaction(work), check)?;
        self.require_same_file()?;
        Ok(checked)
    }

    fn count_unverified(&self, overdue_after: Duration) -> Result<UnverifiedCount, DatabaseError> {
        let overdue = Timestamp::now().checked_sub(overdue_after).map(statements::time).unwrap_or_default();
        let count =
            sql_query(records::count_unverified("?")).bind::<Text, _>(overdue).get_result(&mut self.fresh()?)?;
        Ok(count)
    }

    fn unverified(&self, page: &UnverifiedPage) -> Result<Vec<UnverifiedCredit>, DatabaseError> {
        let now = Timestamp::now();
        let before = |ago: Duration| match now.checked_sub(ago) {
            Ok(time) => statements::time(time),
            Err(_) => String::new(),
        };
        let (since, payment_id) = page.after.as_ref().map_or(("", ""), |(since, id)| (since, id));
        let rows = sql_query(if page.reversed { statements::REVERSED } else { statements::UNVERIFIED })
            .bind::<Text, _>(before(page.older_than))
            .bind::<Text, _>(page.newer_than.map(before).unwrap_or_default())
            .bind::<Text, _>(since)
            .bind::<Text, _>(payment_id)
            .bind::<BigInt, _>(page.limit)
            .load(&mut self.fresh()?)?;
        Ok(rows)
    }

    fn probe(&self, probe: Probe) -> Result<(), DatabaseError> {
        let connection = &mut self.fresh()?;
        let credits = [super::probe::credit()];
        // The probe takes the writers' lock, so that it waits for everything that a credit would wait for.
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let work = |connection: &mut SqliteConnection| -> Result<(), DatabaseError> {
            self.insert(connection, &Sorted::new(&credits))?;
            if probe == Probe::Checks {
                self.apply_checks(connection, &credits.each_ref().map(super::probe::check), OnUnpaid::Reverse)?;
            }
            Err(super::probe_done())
        };
        super::expect_rolled_back(super::run_keeping_error(|work| connection.immediate_transaction(work), work))?;
        let now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
        let rows = sql_query(format!("UPDATE points_probe SET probed_at = {now}")).execute(connection)?;
        super::require_probe_row(rows)
    }

    fn now(&self) -> Result<SystemTime, DatabaseError> {
        // The database is embedded, so its clock is the local one.
        Ok(SystemTime::now())
    }

    fn schema(&self) -> Result<SchemaState, DatabaseError> {
        if self.access == Access::Write && !self.file.exists() {
            return Ok(SchemaState::Missing);
        }
        let connection = &mut self.fresh()?;
        let there: Vec<VersionRow> = sql_query(
            "SELECT name AS version FROM sqlite_master WHERE type = 'table' AND name = '__diesel_schema_migrations'",
        )
        .load(connection)?;
        let mut applied: Vec<VersionRow> = Vec::new();
        if !there.is_empty() {
            applied = sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY 1").load(connection)?;
        }
        let applied: Vec<String> = applied.into_iter().map(|row| row.version).collect();
        migrations::state::<Sqlite>(&migrations::SQLITE, &applied)
    }

    fn migrate(&self) -> Result<Vec<String>, DatabaseError> {
        // SQLite gives its other files the mode of this file.
        let made = OpenOptions::new().create_new(true).write(true).mode(OWNERS_ONLY).open(resolve_links(&self.file));
        if let Err(error) = made.as_ref()
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(DatabaseError::Unreachable(format!("{}: {error}", self.file.display())));
        }
        migrations::run(&mut self.database.open()?, migrations::SQLITE)
    }

    fn balance(&self, user_id: &str) -> Result<i64, DatabaseError> {
        let rows: Vec<BalanceRow> = sql_query("SELECT balance FROM points_balances WHERE user_id = ?")
            .bind::<Text, _>(user_id)
            .load(&mut self.fresh()?)?;
        Ok(rows.first().map_or(0, |row| row.balance))
    }

    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, DatabaseError> {
        self.fresh()?.transaction(|connection| {
            let credit: Vec<CreditRow> = sql_query(statements::PAYMENT).bind::<Text, _>(payment_id).load(connection)?;
            let Some(credit) = credit.into_iter().next() else { return Ok(None) };
            let adjustments: Vec<AdjustmentRow> =
                sql_query(statements::ADJUSTMENTS).bind::<Text, _>(payment_id).load(connection)?;
            Ok(Some(credit.with(adjustments)))
        })
    }

    fn verify(&self) -> Result<Verification, DatabaseError> {
        self.fresh()?.transaction(|connection| {
            let totals = sql_query(verify::TOTALS).get_result(connection)?;
            Ok(verify::report(totals, |rule| sql_query(rule).load(connection))?)
        })
    }
}
