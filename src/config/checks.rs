//! `[compensation]` and `[pay_status]`: how credits are checked against their payments, and what knows about those.

use super::{SourceWord, UnpaidWord};
use crate::{
    config::{
        common::{delays, masked, number},
        reader::Reader,
        value::{Setting, Text, Words, shown},
    },
    database::DatabaseUrl,
    domain::{
        check::OnUnpaid,
        check_schedule::CheckPolicy,
        id_rule::{IdPattern, IdRule},
        retry::Delay,
        status::StatusValues,
        valuation::{Decimal, Rule, Valuation},
    },
    files::is_pem,
    pay_status::{
        Header, Identifier, TableName, UrlTemplate,
        settings::{HttpFiles, HttpSourceSettings, PayStatusSettings, SqlSourceSettings},
    },
    pipeline::settings::CompensationSettings,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub(super) fn compensation(reader: &mut Reader) -> CompensationSettings {
    let wanted = "a delay: a whole number and ms, s, m or h, up to 720h, as in \"30s\"";
    let default_first = "30s".to_owned();
    let first = reader.checked("compensation.first", default_first, wanted, |text| Delay::parse(text).is_some());
    let delays = delays(reader, "compensation.delays", &["1m", "5m", "30m", "2h", "12h"]);
    let on_unpaid = match reader.setting("compensation.on_unpaid", UnpaidWord::Reverse) {
        UnpaidWord::Reverse => OnUnpaid::Reverse,
        UnpaidWord::Dead => OnUnpaid::Dead,
    };
    let brake_after = number(reader, "compensation.brake_after", 500, 1..=1_000_000);
    // The default is a delay, and so is whatever the rule lets through.
    let policy = Delay::parse(&first).map(|first| CheckPolicy::new(first, delays, on_unpaid));
    CompensationSettings { policy: policy.unwrap_or_default(), brake_after }
}

/// `None` when something is missing; then a fault is told.
pub(super) fn pay_status(
    reader: &mut Reader,
    ledger: Option<&DatabaseUrl>,
    state_directory: Option<&Path>,
    max_points: i64,
) -> Option<PayStatusSettings> {
    let source = reader.setting("pay_status.source", SourceWord::None);
    let (uses_sql, uses_http) = match source {
        SourceWord::None => (false, false),
        SourceWord::Sql => (true, false),
        SourceWord::Http => (false, true),
        SourceWord::SqlThenHttp => (true, true),
    };
    let sql = sql(reader, uses_sql, ledger, state_directory, max_points);
    let http = http(reader, uses_http);
    let both = uses_sql && uses_http;
    if both && sql.as_ref().is_some_and(|sql| sql.values.pending.is_empty()) {
        reader.fault(
            "pay_status.sql.pending",
            "must have at least one value with source = \"sql+http\": a row is set to paid only from a pending one",
        );
    }
    Some(match source {
        SourceWord::None => PayStatusSettings::None,
        SourceWord::Sql => PayStatusSettings::Sql(sql?),
        SourceWord::Http => PayStatusSettings::Http(http?),
        SourceWord::SqlThenHttp => PayStatusSettings::SqlThenHttp(sql?, http?),
    })
}

/// A key of a source that is not used does nothing: whoever sets it means something else.
fn refuse_unused(reader: &mut Reader, section: &str, keys: &[&str], used: bool, sources: &str) {
    for key in keys {
        let key = format!("{section}.{key}");
        if !used && reader.is_given(&key) {
            reader.fault(&key, format!("is used only with pay_status.source = {sources}"));
        }
    }
}

/// A key with a default that is in force only where its source is used.
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

/// A key that a source must have.
fn required<T>(reader: &mut Reader, key: &str, used: bool, value: Option<T>, example: &str) -> Option<T> {
    if used && value.is_none() && !reader.is_given(key) && !reader.is_given(&format!("{key}_file")) {
        reader.fault(key, format!("is missing; must be given for this pay_status.source, as in {example}"));
    }
    value
}

fn values(reader: &mut Reader, section: &str, used: bool) -> StatusValues {
    let mut list = |name: &str| reader.optional::<Words>(&format!("{section}.{name}"));
    let (paid, pending, closed) = (list("paid"), list("pending"), list("closed"));
    let key = format!("{section}.paid");
    let wrong = paid.is_none() && reader.is_given(&key);
    let of = |words: Option<Words>| words.unwrap_or_default().0;
    let values = StatusValues { paid: of(paid), pending: of(pending), closed: of(closed) };
    // One that is no list is told already.
    if used && values.paid.is_empty() && !wrong {
        reader.fault(&key, "must have at least one value, as in [\"TRADE_SUCCESS\"]");
    }
    if let Some(word) = values.ambiguous() {
        reader.fault(
            &key,
            format!(
                "{} is given twice; each value must stand in one of paid, pending and closed, once",
                shown(&format!("{word:?}"))
            ),
        );
    }
    values
}

fn sql(
    reader: &mut Reader,
    used: bool,
    ledger: Option<&DatabaseUrl>,
    state_directory: Option<&Path>,
    max_points: i64,
) -> Option<SqlSourceSettings> {
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
    let section = "pay_status.sql";
    let url = reader.secret("pay_status.sql.url", |url: &String| masked(url));
    let url = match url {
        None => ledger.cloned(),
        Some((key, url)) => match DatabaseUrl::parse(&url, state_directory) {
            Ok(url) => Some(url.from_file(reader.file_of(&key))),
            Err(error) => {
                reader.fault(&key, error);
                None
            }
        },
    };
    let wanted = "a name of at most 63 bytes";
    let mut column = |key: &str| -> Option<Identifier> {
        let text: String = reader.optional(key)?;
        let name = Identifier::new(&text);
        if name.is_none() {
            reader.fault(key, format!("must be {wanted}"));
        }
        name
    };
    let (id_column, status_column, user_column) = (
        column("pay_status.sql.id_column"),
        column("pay_status.sql.status_column"),
        column("pay_status.sql.user_column"),
    );
    let (points_column, amount_column) =
        (column("pay_status.sql.points_column"), column("pay_status.sql.amount_column"));
    let rule = rule(reader, points_column.is_some(), amount_column.is_some(), max_points);
    let value_column = points_column.or(amount_column);
    let valuation = match (rule, &user_column, &value_column) {
        (Some(rule), Some(user), Some(value)) => Some(Valuation {
            rule,
            max_points,
            user_column: user.as_str().to_owned(),
            value_column: value.as_str().to_owned(),
        }),
        (Some(_), None, Some(_)) if !reader.is_given("pay_status.sql.user_column") => {
            reader.fault(
                "pay_status.sql.user_column",
                "is missing; must be given with points_column or amount_column, or nobody could be credited",
            );
            None
        }
        _ => None,
    };
    let table: Option<String> = reader.optional("pay_status.sql.table");
    let table = table.and_then(|text| {
        let table = TableName::new(&text);
        if table.is_none() {
            reader.fault("pay_status.sql.table", format!("must be {wanted}, perhaps with a schema: shop.payments"));
        }
        table
    });
    let values = values(reader, section, used);
    refuse_unused(reader, section, &KEYS, used, "\"sql\" or \"sql+http\"");
    let table = required(reader, "pay_status.sql.table", used, table, "\"payments\"");
    let id_column = required(reader, "pay_status.sql.id_column", used, id_column, "\"id\"");
    let status_column = required(reader, "pay_status.sql.status_column", used, status_column, "\"status\"");
    used.then_some(())?;
    Some(SqlSourceSettings {
        url: url?,
        table: table?,
        id_column: id_column?,
        status_column: status_column?,
        user_column,
        value_column: value_column.filter(|_| valuation.is_some()),
        valuation,
        values,
    })
}

/// How a payment's record becomes points.
fn rule(reader: &mut Reader, has_points: bool, has_amount: bool, max_points: i64) -> Option<Rule> {
    let key = |name: &str| format!("pay_status.sql.{name}");
    let rate: Option<Text> = reader.optional(&key("points_per_unit"));
    let mut bound = |name: &str, least: i64| {
        let bound: i64 = reader.optional(&key(name))?;
        let fits = (least..=max_points).contains(&bound);
        if !fits {
            let text =
                format!("given {bound}; must be a whole number from {least} to {max_points} (message.max_points)");
            reader.fault(&key(name), text);
        }
        fits.then_some(bound)
    };
    let (min, max) = (bound("min", 0), bound("max", 1));
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        reader.fault(&key("min"), format!("given {min}; must be at most max, which is {max}"));
    }
    if has_points && has_amount {
        reader.fault(&key("amount_column"), "given together with points_column; must be one of them");
        return None;
    }
    if has_amount {
        let Some(Text(rate)) = rate else {
            if !reader.is_given(&key("points_per_unit")) {
                reader.fault(&key("points_per_unit"), "is missing; must be given with amount_column, as in \"0.01\"");
            }
            return None;
        };
        return match Decimal::rate(&rate) {
            Ok(rate) if !rate.is_zero() => Some(Rule::PerUnit { rate, min: min.unwrap_or(0), max }),
            Ok(_) => {
                reader.fault(&key("points_per_unit"), "is 0; must be more, as in \"0.01\"");
                None
            }
            Err(error) => {
                reader.fault(&key("points_per_unit"), format!("given {}; {error}", shown(&format!("{rate:?}"))));
                None
            }
        };
    }
    for name in ["points_per_unit", "min", "max"] {
        if reader.is_given(&key(name)) {
            reader.fault(&key(name), "is used only with amount_column; must be left out");
        }
    }
    has_points.then_some(Rule::Points)
}

/// RFC 6901: nothing, or names behind slashes, in which a `~` stands for itself as `~0`, and for a slash as `~1`.
fn is_pointer(text: &str) -> bool {
    let escapes = text.replace("~0", "").replace("~1", "");
    (text.is_empty() || text.starts_with('/')) && !escapes.contains('~')
}

/// Of the gateway's URL the host is no secret; a key may stand anywhere behind it.
fn masked_path(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}/***"),
        None => format!("{scheme}://{authority}/***"),
    }
}

/// A header's name is no secret, its value may be.
fn masked_headers(headers: &[String]) -> Vec<String> {
    headers.iter().map(|line| format!("{}: ***", line.split(':').next().unwrap_or_default())).collect()
}

fn http(reader: &mut Reader, used: bool) -> Option<HttpSourceSettings> {
    const KEYS: [&str; 12] = [
        "url",
        "url_file",
        "status_pointer",
        "paid",
        "pending",
        "closed",
        "timeout",
        "concurrency",
        "headers",
        "headers_file",
        "ca_file",
        "id_pattern",
    ];
    let section = "pay_status.http";
    let url = reader.secret("pay_status.http.url", |url: &String| masked_path(url));
    let mut files = HttpFiles::default();
    let url = url.and_then(|(key, url)| match UrlTemplate::parse(&url) {
        Ok(url) => {
            files.url = reader.file_of(&key);
            Some(url)
        }
        Err(error) => {
            reader.fault(&key, error);
            None
        }
    });
    let status_pointer: Option<String> = reader.optional("pay_status.http.status_pointer");
    if status_pointer.as_ref().is_some_and(|pointer| !is_pointer(pointer)) {
        reader.fault("pay_status.http.status_pointer", "must be a JSON Pointer such as \"/data/status\" (RFC 6901)");
    }
    let times = Duration::from_millis(100)..=Duration::from_secs(30);
    let wanted = "a duration from 100ms to 30s, as in \"5s\"";
    let timeout =
        of_source(reader, "pay_status.http.timeout", used, Duration::from_secs(5), wanted, |it| times.contains(it));
    let wanted = "a whole number from 1 to 256";
    let concurrency =
        of_source(reader, "pay_status.http.concurrency", used, 16_i64, wanted, |it| (1..=256).contains(it));
    let concurrency = usize::try_from(concurrency).unwrap_or(1);
    let headers = reader.secret("pay_status.http.headers", |headers: &Vec<String>| masked_headers(headers));
    let headers: Vec<Header> = headers.map_or_else(Vec::new, |(key, lines)| {
        files.headers = reader.file_of(&key);
        let mut headers = Vec::with_capacity(lines.len());
        for (index, line) in lines.iter().enumerate() {
            match Header::parse(line) {
                Ok(header) => headers.push(header),
                Err(error) => reader.fault(&key, format!("header {} of {}: {error}", index + 1, lines.len())),
            }
        }
        headers
    });
    let ca = ca(reader);
    files.ca = reader.optional("pay_status.http.ca_file");
    if ca.is_some() && url.as_ref().is_some_and(|url| !url.is_tls()) {
        reader.fault(
            "pay_status.http.ca_file",
            "is used only with an https:// URL; must be left out, or the URL is wrong",
        );
    }
    let payment_ids = id_rule(reader);
    let values = values(reader, section, used);
    refuse_unused(reader, section, &KEYS, used, "\"http\" or \"sql+http\"");
    let url = required(reader, "pay_status.http.url", used, url, "\"https://pay.example/payments/{payment_id}\"");
    let status_pointer = required(reader, "pay_status.http.status_pointer", used, status_pointer, "\"/status\"");
    used.then_some(())?;
    Some(HttpSourceSettings {
        url: url?,
        status_pointer: status_pointer?,
        values,
        timeout,
        concurrency,
        headers,
        ca,
        files,
        payment_ids,
    })
}

/// Which payment ids may be put into the URL.
fn id_rule(reader: &mut Reader) -> IdRule {
    let key = "pay_status.http.id_pattern";
    let Some(text) = reader.optional::<String>(key) else { return IdRule::UrlSafe };
    match IdPattern::new(&text) {
        Ok(pattern) => IdRule::Matching(pattern),
        Err(error) => {
            reader.fault(key, format!("given {}; {error}", shown(&format!("{text:?}"))));
            IdRule::UrlSafe
        }
    }
}

fn ca(reader: &mut Reader) -> Option<Vec<u8>> {
    let key = "pay_status.http.ca_file";
    let file: PathBuf = reader.optional(key)?;
    match std::fs::read(&file) {
        Ok(bytes) if is_pem(key, &bytes) => Some(bytes),
        Ok(_) => {
            reader.fault(key, format!("{} holds no PEM of a certificate", file.display()));
            None
        }
        Err(error) => {
            reader.fault(key, format!("{} cannot be read: {error}", file.display()));
            None
        }
    }
}
