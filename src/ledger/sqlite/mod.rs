//! The ledger in a SQLite file: no server, one writing program at a time, readers beside it.

mod schema;
mod statements;

use super::{
    Access, Ledger, LedgerError, Options, PaymentRecord, SchemaState, Verification,
    batch::Sorted,
    migrations,
    records::{AdjustmentRow, BalanceRow, CreditRow, VersionRow},
    verify,
};
use crate::domain::credit::{Credit, Verdict};
use diesel::{
    Connection, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    r2d2::{ConnectionManager, CustomizeConnection},
    sql_query,
    sql_types::Text,
    sqlite::Sqlite,
};
use std::{
    collections::{HashMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

/// A ledger in a SQLite file.
pub(super) struct SqliteLedger {
    pool: r2d2::Pool<ConnectionManager<SqliteConnection>>,
    /// SQLite takes one writer; those of this process take turns here instead of polling the file's lock.
    turn: Mutex<()>,
    file: PathBuf,
    /// Which file that was when it was first written to.
    identity: OnceLock<(u64, u64)>,
    settings: Settings,
    access: Access,
}

impl SqliteLedger {
    /// Opens nothing yet.
    pub(super) fn new(file: &Path, options: Options) -> Self {
        let settings = Settings { busy_timeout: options.timeout.mul_f64(0.5) };
        let pool = r2d2::Pool::builder()
            .max_size(options.pool_size)
            .min_idle(Some(0))
            .test_on_check_out(true)
            .connection_timeout(Duration::from_secs(3))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .connection_customizer(Box::new(settings.clone()))
            .build_unchecked(ConnectionManager::new(file.to_string_lossy()));
        Self {
            pool,
            turn: Mutex::new(()),
            file: file.into(),
            identity: OnceLock::new(),
            settings,
            access: options.access,
        }
    }

    /// A file that was removed or replaced goes on taking writes that nobody will ever see: they do not count.
    fn still_the_same(&self) -> Result<(), LedgerError> {
        let moved = |what: String| LedgerError::Unreachable(format!("{}: {what}", self.file.display()));
        let now = std::fs::metadata(&self.file).map_err(|error| moved(error.to_string()))?;
        let now = (now.dev(), now.ino());
        if *self.identity.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(moved("the file was replaced while it was in use".into()))
    }

    /// SQLite would make a file that is not there. Only a migration may: anybody else has the wrong name, or has lost
    /// a ledger.
    fn require_file(&self) -> Result<(), LedgerError> {
        if self.file.exists() {
            return Ok(());
        }
        Err(LedgerError::Unreachable(format!("there is no ledger {}", self.file.display())))
    }

    fn fresh(&self) -> Result<SqliteConnection, LedgerError> {
        self.require_file()?;
        self.open()
    }

    fn open(&self) -> Result<SqliteConnection, LedgerError> {
        let mut connection = SqliteConnection::establish(&self.file.to_string_lossy())?;
        self.settings.apply(&mut connection)?;
        Ok(connection)
    }
}

impl Ledger for SqliteLedger {
    fn credit(&self, batch: &[Credit]) -> Result<Vec<Verdict>, LedgerError> {
        self.require_file()?;
        let sorted = Sorted::new(batch);
        let connection = &mut *self.pool.get()?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = |connection: &mut SqliteConnection| {
            let mut inserted = HashSet::with_capacity(batch.len());
            let mut standing = HashMap::new();
            let mut gains: HashMap<&str, i64> = HashMap::new();
            for credit in sorted.firsts() {
                let payment = credit.payment_id.as_str();
                if statements::insert_credit(connection, credit)? {
                    inserted.insert(payment);
                    // Cannot overflow: see `domain::credit::MAX_POINTS_LIMIT`.
                    *gains.entry(credit.user_id.as_str()).or_default() += credit.points.get();
                } else if let Some(existing) = statements::standing(connection, payment)? {
                    standing.insert(payment.to_owned(), existing);
                }
            }
            let mut gains: Vec<(&str, i64)> = gains.into_iter().collect();
            gains.sort_unstable();
            for (user, points) in gains {
                statements::add_to_balance(connection, user, points)?;
            }
            sorted.verdicts(|payment| inserted.contains(payment), &standing)
        };
        let verdicts = super::keeping_the_reason(|work| connection.immediate_transaction(work), credit)?;
        self.still_the_same()?;
        Ok(verdicts)
    }

    fn probe(&self) -> Result<(), LedgerError> {
        // One writer at a time, so that this waits for whatever a credit would wait for.
        let now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
        let rows = sql_query(format!("UPDATE points_probe SET probed_at = {now}")).execute(&mut self.fresh()?)?;
        super::probed(rows)
    }

    fn schema(&self) -> Result<SchemaState, LedgerError> {
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

    fn migrate(&self) -> Result<Vec<String>, LedgerError> {
        migrations::run(&mut self.open()?, migrations::SQLITE)
    }

    fn balance(&self, user_id: &str) -> Result<i64, LedgerError> {
        let rows: Vec<BalanceRow> = sql_query("SELECT balance FROM points_balances WHERE user_id = ?")
            .bind::<Text, _>(user_id)
            .load(&mut self.fresh()?)?;
        Ok(rows.first().map_or(0, |row| row.balance))
    }

    fn payment(&self, payment_id: &str) -> Result<Option<PaymentRecord>, LedgerError> {
        self.fresh()?.transaction(|connection| {
            let credit: Vec<CreditRow> = sql_query(statements::PAYMENT).bind::<Text, _>(payment_id).load(connection)?;
            let Some(credit) = credit.into_iter().next() else { return Ok(None) };
            let adjustments: Vec<AdjustmentRow> =
                sql_query(statements::ADJUSTMENTS).bind::<Text, _>(payment_id).load(connection)?;
            Ok(Some(credit.with(adjustments)))
        })
    }

    fn verify(&self) -> Result<Verification, LedgerError> {
        self.fresh()?.transaction(|connection| {
            let totals = sql_query(verify::TOTALS).get_result(connection)?;
            Ok(verify::report(totals, |rule| sql_query(rule).load(connection))?)
        })
    }
}

/// What every connection is set to.
#[derive(Debug, Clone)]
struct Settings {
    /// How long SQLite waits for another program's lock: less than the caller's deadline.
    busy_timeout: Duration,
}

impl Settings {
    /// `busy_timeout` comes first, because switching to WAL takes a lock itself. `FULL`, because with `NORMAL` a power
    /// cut can lose a commit whose message was acknowledged (SQLite, "PRAGMA synchronous").
    fn apply(&self, connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
        let busy = self.busy_timeout.as_millis();
        connection.batch_execute(&format!(
            "PRAGMA busy_timeout = {busy}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA foreign_keys = ON;"
        ))
    }
}

impl CustomizeConnection<SqliteConnection, diesel::r2d2::Error> for Settings {
    fn on_acquire(&self, connection: &mut SqliteConnection) -> Result<(), diesel::r2d2::Error> {
        self.apply(connection).map_err(diesel::r2d2::Error::QueryError)
    }
}
