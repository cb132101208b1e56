//! The payment table as a payment source: looked up in batches, and repaired by guarded updates.

mod postgres;
mod sqlite;

use super::quoted;
use crate::{
    database::{DatabaseError, DatabaseUrl, WithDeadline},
    domain::{
        failure::{BatchError, Class, Dependency, Outage},
        ids::PaymentId,
        status::{PaymentStatus, StatusValues},
        valuation::Valuation,
    },
    pay_status::settings::SqlSourceSettings,
    pipeline::ports::{Answers, Lookup, Payment, PaymentSource, RowStatus},
};
use async_trait::async_trait;
use postgres::PostgresTable;
use sqlite::SqliteTable;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The most payments that are looked up in one query.
const MOST: usize = 1000;

/// The name of a table or a column, which is written in SQL between double quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier(String);

impl Identifier {
    /// Returns `None` when the name is empty, longer than 63 bytes (PostgreSQL's limit) or contains a control
    /// character.
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=63).contains(&name.len()) && !name.contains(char::is_control);
        fits.then(|| Self(name.to_owned()))
    }

    /// Returns the name without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// The name of a table, optionally with its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    schema: Option<Identifier>,
    table: Identifier,
}

impl TableName {
    /// Parses `payments` or `shop.payments`.
    pub fn new(name: &str) -> Option<Self> {
        match name.split_once('.') {
            None => Some(Self { schema: None, table: Identifier::new(name)? }),
            Some((schema, table)) => {
                Some(Self { schema: Some(Identifier::new(schema)?), table: Identifier::new(table)? })
            }
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => write!(f, "{}", self.table),
        }
    }
}

/// The table and its configured columns.
#[derive(Debug, Clone)]
struct Columns {
    table: TableName,
    id: Identifier,
    status: Identifier,
    user: Option<Identifier>,
    /// The column that contains the points or the amount.
    value: Option<Identifier>,
}

/// A row of the payment table.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
struct PaymentRow {
    /// The index of the payment among those that were looked up.
    #[diesel(sql_type = diesel::sql_types::Integer)]
    n: i32,
    /// The ID of the row, in its canonical spelling.
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    id: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    status: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    value: Option<String>,
}

/// The rows of a look-up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rows {
    rows: Vec<PaymentRow>,
    /// Whether the table has the configured column for the points or the amount.
    has_value: bool,
}

/// A payment table. Its calls block the thread.
trait PaymentTable: Send + Sync {
    /// Returns the rows of these payments, in any order.
    fn rows(&self, payments: &[&str]) -> Result<Rows, DatabaseError>;

    /// Verifies that rows can be updated, by an update of no row.
    fn probe_update(&self) -> Result<(), DatabaseError>;

    /// Sets the rows of payments to the status `to` where their current status is one of `from`.
    fn set(&self, payments: &[&str], to: &str, from: &[String]) -> Result<(), DatabaseError>;
}

/// The payment source that reads a payment table.
pub(super) struct SqlSource {
    table: Arc<WithDeadline<dyn PaymentTable>>,
    values: StatusValues,
    has_user: bool,
    valuation: Option<Valuation>,
    timeout: Duration,
    known: Mutex<Option<PaymentId>>,
}

impl SqlSource {
    pub(super) fn new(settings: &SqlSourceSettings, timeout: Duration) -> Self {
        let columns = Columns {
            table: settings.table.clone(),
            id: settings.id_column.clone(),
            status: settings.status_column.clone(),
            user: settings.user_column.clone(),
            value: settings.value_column.clone(),
        };
        let url = settings.url.clone();
        let open = move || -> Arc<dyn PaymentTable> {
            match &url {
                DatabaseUrl::Postgres(uri) => Arc::new(PostgresTable::new(uri, columns.clone(), timeout)),
                DatabaseUrl::Sqlite(file) => Arc::new(SqliteTable::new(file, columns.clone(), timeout)),
            }
        };
        Self {
            table: Arc::new(WithDeadline::new(open, timeout)),
            values: settings.values.clone(),
            has_user: settings.user_column.is_some(),
            valuation: settings.valuation.clone(),
            timeout,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Option<PaymentId>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn rows(&self, payments: Arc<[PaymentId]>) -> Result<Rows, DatabaseError> {
        self.table
            .call(move |table| {
                let ids: Vec<&str> = payments.iter().map(PaymentId::as_str).collect();
                table.rows(&ids)
            })
            .await
    }

    /// Looks up at most [`MOST`] payments in one query. Returns them in order.
    async fn look_up_part(&self, payments: Arc<[PaymentId]>) -> Result<Vec<Payment>, BatchError> {
        let rows = self.rows(Arc::clone(&payments)).await;
        // A probe repeats the last successful look-up.
        if let (Some(first), true) = (payments.first(), rows.is_ok()) {
            *self.known() = Some(first.clone());
        }
        let Rows { rows, has_value } = rows.map_err(batch_error)?;
        let mut of_each: Vec<Vec<PaymentRow>> = vec![Vec::new(); payments.len()];
        for row in rows {
            if let Some(rows) = usize::try_from(row.n).ok().and_then(|n| of_each.get_mut(n)) {
                rows.push(row);
            }
        }
        Ok(of_each.iter().map(|rows| self.payment(rows, has_value)).collect())
    }

    /// Runs the guarded update, and reads the row after it.
    pub(super) async fn set_and_read(&self, payment: &PaymentId, to: RowStatus) -> Result<Payment, BatchError> {
        let payments: Arc<[PaymentId]> = Arc::from([payment.clone()]);
        self.set(Arc::clone(&payments), to).await?;
        let Rows { rows, has_value } = self.rows(payments).await.map_err(batch_error)?;
        Ok(self.payment(&rows, has_value))
    }

    /// Converts the rows of one payment to its result.
    fn payment(&self, rows: &[PaymentRow], has_value: bool) -> Payment {
        let Some((row, others)) = rows.split_first() else { return Payment::new(PaymentStatus::Unknown) };
        let unrecognised = |said: String| Payment { said: Some(said), ..Payment::new(PaymentStatus::Unrecognised) };
        if others.iter().any(|other| PaymentRow { n: row.n, ..other.clone() } != *row) {
            return unrecognised(format!("{} different rows", rows.len()));
        }
        let value = self.valuation.as_ref().map(|valuation| {
            if has_value {
                valuation.of(row.user_id.as_deref(), row.value.as_deref())
            } else {
                valuation.without_column()
            }
        });
        let id = row.id.clone();
        // A row without a user matches no message.
        let user = self.has_user.then(|| row.user_id.clone().unwrap_or_default());
        let Some(word) = &row.status else {
            return Payment { id, user, value, ..unrecognised("NULL".into()) };
        };
        let status = self.values.status(word);
        let said = (status == PaymentStatus::Unrecognised).then(|| quoted(word));
        Payment { id, status, said, user, value }
    }
}

/// Classifies an error of the table. A missing or unreadable table or column is an outage, and not the error of a
/// message.
fn batch_error(error: DatabaseError) -> BatchError {
    match error.class() {
        Class::Outage => BatchError::Outage(error.into_outage(Dependency::PayStatus)),
        // A query changes nothing and involves no constraint, so its error is transient.
        Class::Permanent | Class::Locked | Class::Transient => BatchError::Transient(error.to_string()),
    }
}

/// Returns whether a statement was ended because it took too long. (PostgreSQL's texts are those of an English server;
/// on another server, timeouts of payments reveal a slow table.)
fn is_slow(error: &DatabaseError) -> bool {
    error.to_string().contains("canceling statement")
}

#[async_trait]
impl PaymentSource for SqlSource {
    async fn look_up(
        &self,
        payments: Arc<[PaymentId]>,
        until: Instant,
        answers: Answers<'_>,
    ) -> Result<(), BatchError> {
        for start in (0..payments.len()).step_by(MOST) {
            if Instant::now() > until {
                break;
            }
            let end = payments.len().min(start + MOST);
            let part = if end - start == payments.len() { Arc::clone(&payments) } else { payments[start..end].into() };
            for (index, payment) in self.look_up_part(part).await?.into_iter().enumerate() {
                answers(start + index, Lookup::Known(payment));
            }
        }
        Ok(())
    }

    async fn set(&self, payments: Arc<[PaymentId]>, to: RowStatus) -> Result<(), BatchError> {
        let StatusValues { paid, pending, closed } = self.values.clone();
        let list = match to {
            RowStatus::Paid => paid,
            RowStatus::Closed => closed,
        };
        let Some(value) = list.into_iter().next() else {
            return Err(BatchError::Refused(format!("no configured value represents {to:?}")));
        };
        let set = self.table.call(move |table| {
            let ids: Vec<&str> = payments.iter().map(PaymentId::as_str).collect();
            table.set(&ids, &value, &pending)
        });
        set.await.map_err(batch_error)
    }

    async fn probe_set(&self) -> Result<(), Outage> {
        let updated = self.table.call(PaymentTable::probe_update).await;
        updated.map_err(|error| error.into_outage(Dependency::PayStatus))?;
        self.probe().await
    }

    /// Repeats the query for a payment that was looked up before. If that payment now fails on its own, a query for no
    /// payment verifies that the table is readable. A slow statement never counts as the failure of one payment.
    async fn probe(&self) -> Result<(), Outage> {
        let known = self.known().clone();
        let mut read = self.rows(known.into_iter().collect()).await;
        if read.as_ref().is_err_and(|error| error.class() != Class::Outage && !is_slow(error)) {
            *self.known() = None;
            read = self.rows(Arc::from([])).await;
        }
        read.map(|_| ()).map_err(|error| error.into_outage(Dependency::PayStatus))
    }

    fn max_duration(&self) -> Duration {
        // A probe may need an update and two queries.
        self.timeout * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_nothing_else() {
        for (name, quoted) in [
            ("payments", Some("\"payments\"")),
            ("shop.payments", Some("\"shop\".\"payments\"")),
            ("Order", Some("\"Order\"")),
            ("a\"; DROP TABLE b; --", Some("\"a\"\"; DROP TABLE b; --\"")),
            ("", None),
            ("shop.", None),
            ("a\nb", None),
        ] {
            assert_eq!(TableName::new(name).map(|table| table.to_string()).as_deref(), quoted, "{name}");
        }
        assert!(Identifier::new(&"x".repeat(64)).is_none());
    }
}
