//! `[pay_status]`: the payment source.

mod http;
mod sql;
mod valuation;

use super::keywords::SourceWord;
use crate::{
    config::{
        reader::Reader,
        value::{Setting, Words, shown},
    },
    database::DatabaseUrl,
    domain::status::StatusValues,
    pay_status::settings::PayStatusSettings,
};
use std::path::Path;

/// Settings of other sections that a payment table depends on.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// The URL of the ledger, which is the default of the payment table.
    pub(super) ledger: Option<&'a DatabaseUrl>,
    /// The folder of relative SQLite files.
    pub(super) state_directory: Option<&'a Path>,
    /// `message.max_points`
    pub(super) max_points: i64,
}

/// Reads the section. Returns `None` after a fault that leaves the payment source incomplete.
pub(super) fn pay_status(reader: &mut Reader, context: Context<'_>) -> Option<PayStatusSettings> {
    let source = reader.setting("pay_status.source", SourceWord::None);
    let (uses_sql, uses_http) = match source {
        SourceWord::None => (false, false),
        SourceWord::Sql => (true, false),
        SourceWord::Http => (false, true),
        SourceWord::SqlThenHttp => (true, true),
    };
    let sql = sql::sql(reader, uses_sql, context);
    let http = http::http(reader, uses_http);
    let both = uses_sql && uses_http;
    if both && sql.as_ref().is_some_and(|sql| sql.values.pending.is_empty()) {
        reader.fault(
            "pay_status.sql.pending",
            "must have at least one value with source = \"sql+http\": only a pending row is set to paid",
        );
    }
    Some(match source {
        SourceWord::None => PayStatusSettings::None,
        SourceWord::Sql => PayStatusSettings::Sql(sql?),
        SourceWord::Http => PayStatusSettings::Http(http?),
        SourceWord::SqlThenHttp => PayStatusSettings::SqlThenHttp(sql?, http?),
    })
}

/// Refuses the keys of a source that is not used: they would have no effect.
fn refuse_unused(reader: &mut Reader, section: &str, keys: &[&str], used: bool, sources: &str) {
    for key in keys {
        let key = format!("{section}.{key}");
        if !used && reader.is_given(&key) {
            reader.fault(&key, format!("is used only with pay_status.source = {sources}"));
        }
    }
}

/// Reads a key with a default that is in force only if its source is used.
fn of_source<T: Setting>(
    reader: &mut Reader,
    key: &str,
    used: bool,
    default: T,
    wanted: &str,
    rule: impl Fn(&T) -> bool,
) -> T {
    match reader.optional::<T>(key) {
        Some(value) if rule(&value) => return value,
        Some(value) => reader.fault(key, format!("given {}; must be {wanted}", value.show())),
        None if used => reader.show(key, default.show()),
        None => {}
    }
    default
}

/// Adds a fault if a key is missing that the source requires.
fn required<T>(reader: &mut Reader, key: &str, used: bool, value: Option<T>, example: &str) -> Option<T> {
    if used && value.is_none() && !reader.is_given(key) && !reader.is_given(&format!("{key}_file")) {
        reader.fault(key, format!("is missing; must be given for this pay_status.source, as in {example}"));
    }
    value
}

/// Reads the lists of status values of a source.
fn values(reader: &mut Reader, section: &str, used: bool) -> StatusValues {
    let mut list = |name: &str| reader.optional::<Words>(&format!("{section}.{name}"));
    let (paid, pending, closed) = (list("paid"), list("pending"), list("closed"));
    let key = format!("{section}.paid");
    let is_refused = paid.is_none() && reader.is_given(&key);
    let of = |words: Option<Words>| words.unwrap_or_default().0;
    let values = StatusValues { paid: of(paid), pending: of(pending), closed: of(closed) };
    // A value that is not a list is a fault already.
    if used && values.paid.is_empty() && !is_refused {
        reader.fault(&key, "must have at least one value, as in [\"TRADE_SUCCESS\"]");
    }
    if let Some(word) = values.ambiguous() {
        let word = shown(&format!("{word:?}"));
        reader.fault(
            &key,
            format!("{word} is given twice; each value must be in exactly one of paid, pending and closed"),
        );
    }
    values
}
