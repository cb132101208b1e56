//! The keys of a `[[source]]` of notifications: their schedule, their message types, and what they require of the payment table.

use super::{Context, key};
use crate::{
    config::{
        common::{DELAY, delays},
        keywords::FormatWord,
        reader::Reader,
        value::{Setting, Words},
    },
    domain::{check_schedule::CheckPolicy, notification_source::NotificationKind, retry::Delay},
    pay_status::settings::PayStatusSettings,
};

/// Determines the kind of the notifications. Returns `None` after a fault.
pub(super) fn kind(reader: &mut Reader, number: usize, mark_paid: bool, expire: bool) -> Option<NotificationKind> {
    match (mark_paid, expire) {
        (true, true) => {
            let text = "given together with mark_paid: a paid payment cannot expire; only one of them is allowed";
            reader.fault(&key(number, "expire"), text);
            None
        }
        (true, false) => Some(NotificationKind::Paid),
        (false, true) => Some(NotificationKind::OrderCreated),
        (false, false) => Some(NotificationKind::StatusChanged),
    }
}

/// Reads the schedule of the checks: that of `[compensation]`, or with `expire` the source's own.
pub(super) fn policy(
    reader: &mut Reader,
    number: usize,
    expire: bool,
    context: &Context<'_>,
    delays_before: usize,
) -> CheckPolicy {
    let usual = &context.compensation.policy;
    let (first_key, delays_key) = (key(number, "first"), key(number, "delays"));
    if !expire {
        for key in [&first_key, &delays_key] {
            let _: Option<toml::Value> = reader.optional(key);
            if reader.is_given(key) {
                reader.fault(key, "is used only with expire = true; remove it: [compensation] has the other delays");
            }
        }
        return usual.clone();
    }
    let wanted = format!("{DELAY}, as in \"15m\"");
    let text = |delay: &Delay| delay.as_str().to_owned();
    let first = reader.checked(&first_key, text(usual.first()), &wanted, |text| Delay::parse(text).is_some());
    let others: Vec<String> = usual.delays()[1..].iter().map(text).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let delays = delays(reader, &delays_key, &others);
    let policy = Delay::parse(&first).map(|first| CheckPolicy::new(first, delays, usual.on_unpaid));
    policy.unwrap_or_default().behind(delays_before)
}

/// Reads the message types and business types of pay-result notifications. Returns `None` for other formats.
pub(super) fn notify_types(
    reader: &mut Reader,
    number: usize,
    format: Option<FormatWord>,
) -> Option<(Vec<String>, Vec<String>)> {
    let key = |name: &str| key(number, name);
    let message_types: Option<Words> = reader.optional(&key("message_types"));
    let business_types: Option<Words> = reader.optional(&key("business_types"));
    if format != Some(FormatWord::PayNotify) {
        for name in ["message_types", "business_types"] {
            if format.is_some() && reader.is_given(&key(name)) {
                reader.fault(&key(name), "is used only with format = \"pay_notify\"");
            }
        }
        return None;
    }
    let message_types = message_types.unwrap_or_else(|| Words(vec!["payresult_notify".into()]));
    if !reader.is_given(&key("message_types")) {
        reader.show(&key("message_types"), message_types.show());
    }
    for (name, words, example) in [
        ("message_types", Some(&message_types), "[\"payresult_notify\"]"),
        ("business_types", business_types.as_ref(), "[\"60201\"]"),
    ] {
        let missing = words.is_none() && !reader.is_given(&key(name));
        if missing || words.is_some_and(|words| words.0.is_empty()) {
            reader.fault(&key(name), format!("must have at least one value, as in {example}"));
        }
    }
    Some((message_types.0, business_types?.0))
}

/// Checks that the payment table has what a notification source requires: a notification contains only a payment ID.
pub(super) fn check_payment_table(
    reader: &mut Reader,
    number: usize,
    context: &Context<'_>,
    mark_paid: bool,
    expire: bool,
) {
    let format_key = key(number, "format");
    let sql = match context.pay_status {
        // The faults of the payment source are reported already.
        None => return,
        Some(PayStatusSettings::Sql(sql) | PayStatusSettings::SqlThenHttp(sql, _)) => sql,
        Some(PayStatusSettings::None | PayStatusSettings::Http(_)) => {
            let text = "needs a payment table: pay_status.source must be \"sql\" or \"sql+http\"";
            return reader.fault(&format_key, text);
        }
    };
    // The fault of a column that is given is reported already.
    let is_given = |name: &str| reader.is_given(&format!("pay_status.sql.{name}"));
    if sql.valuation.is_none() && !is_given("points_column") && !is_given("amount_column") {
        reader.fault(
            &format_key,
            "needs the user and the points of a payment: [pay_status.sql] must have user_column, and points_column or \
             amount_column",
        );
    }
    if expire && matches!(context.pay_status, Some(PayStatusSettings::SqlThenHttp(..))) {
        let text = "needs pay_status.source = \"sql\": an answer of the gateway does not close the row of a payment";
        reader.fault(&key(number, "expire"), text);
    }
    if (mark_paid || expire) && sql.values.pending.is_empty() {
        let setting = if mark_paid { "mark_paid" } else { "expire" };
        let text = format!("must have at least one value with {setting} = true: only a pending row is changed");
        reader.fault("pay_status.sql.pending", text);
    }
    if expire && sql.values.closed.is_empty() {
        reader.fault(
            "pay_status.sql.closed",
            "must have at least one value with expire = true: an expired row is set to the first value",
        );
    }
}
