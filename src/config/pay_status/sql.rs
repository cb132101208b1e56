//! `[pay_status.sql]`: the payment table.

use super::{Context, refuse_unused, required, valuation::Columns, values};
use crate::{
    config::{masking::masked, reader::Reader},
    database::DatabaseUrl,
    pay_status::{Identifier, TableName, settings::SqlSourceSettings},
};

const SECTION: &str = "pay_status.sql";

const KEYS: [&str; 14] = [
    "url",
    "url_file",
    "table",
    "id_column",
    "status_column",
    "user_column",
    "points_column",
    "amount_column",
    "points_per_unit",
    "min",
    "max",
    "paid",
    "pending",
    "closed",
];

const WANTED: &str = "a name of at most 63 bytes";

/// Reads the section. Returns `None` if the payment table is not used, or after a fault.
pub(super) fn sql(reader: &mut Reader, used: bool, context: Context<'_>) -> Option<SqlSourceSettings> {
    let url = url(reader, context);
    let mut column = |name: &str| column(reader, &format!("{SECTION}.{name}"));
    let (id_column, status_column) = (column("id_column"), column("status_column"));
    let columns =
        Columns { user: column("user_column"), points: column("points_column"), amount: column("amount_column") };
    let valuation = columns.valuation(reader, context.max_points);
    let table = table(reader);
    let values = values(reader, SECTION, used);
    refuse_unused(reader, SECTION, &KEYS, used, "\"sql\" or \"sql+http\"");
    let table = required(reader, "pay_status.sql.table", used, table, "\"payments\"");
    let id_column = required(reader, "pay_status.sql.id_column", used, id_column, "\"id\"");
    let status_column = required(reader, "pay_status.sql.status_column", used, status_column, "\"status\"");
    used.then_some(())?;
    Some(SqlSourceSettings {
        url: url?,
        table: table?,
        id_column: id_column?,
        status_column: status_column?,
        value_column: columns.value().cloned().filter(|_| valuation.is_some()),
        user_column: columns.user,
        valuation,
        values,
    })
}

fn url(reader: &mut Reader, context: Context<'_>) -> Option<DatabaseUrl> {
    let Some((key, url)) = reader.secret("pay_status.sql.url", |url: &String| masked(url)) else {
        return context.ledger.cloned();
    };
    match DatabaseUrl::parse(&url, context.state_directory) {
        Ok(url) => Some(url.from_file(reader.file_of(&key))),
        Err(error) => {
            reader.fault(&key, error);
            None
        }
    }
}

fn column(reader: &mut Reader, key: &str) -> Option<Identifier> {
    let text: String = reader.optional(key)?;
    let name = Identifier::new(&text);
    if name.is_none() {
        reader.fault(key, format!("must be {WANTED}"));
    }
    name
}

fn table(reader: &mut Reader) -> Option<TableName> {
    let text: String = reader.optional("pay_status.sql.table")?;
    let table = TableName::new(&text);
    if table.is_none() {
        reader.fault("pay_status.sql.table", format!("must be {WANTED}, optionally with a schema: shop.payments"));
    }
    table
}
