//! `[[source]]`: further queues of points messages, and of notifications of the payment side.

use super::FormatWord;
use crate::{
    broker::{BrokerSettings, ExchangeType, QueueType, SourceKind, SourceSettings, check_delay_queue, retry_queue},
    config::{
        common::{delays, name},
        reader::Reader,
        value::{Setting, Words, shown},
    },
    domain::{
        check_schedule::CheckPolicy,
        component::Component,
        notification::NotificationFormat,
        notification_source::{NotificationKind, NotificationSource},
        retry::{Delay, RetryPolicy},
    },
    pay_status::settings::PayStatusSettings,
    pipeline::settings::CompensationSettings,
};

/// What a source's settings must agree with.
pub(super) struct Context<'a> {
    pub(super) broker: Option<&'a BrokerSettings>,
    pub(super) retry: &'a RetryPolicy,
    pub(super) compensation: &'a CompensationSettings,
    pub(super) pay_status: Option<&'a PayStatusSettings>,
    /// The exchange of events, where there is one.
    pub(super) events: Option<&'a str>,
}

/// Every source. `None` when something is missing; then a fault is told.
pub(super) fn all(reader: &mut Reader, context: &Context<'_>) -> Option<Vec<SourceSettings>> {
    let mut sources = Vec::new();
    let mut whole = true;
    // The delays of all policies stand one after the other.
    let mut delays = context.compensation.policy.delays().len();
    for number in 0..reader.sections("source") {
        if !reader.has_section(&format!("source.{number}")) {
            let text = "is missing, but one with a higher number is given; must be numbered from 0, without a gap";
            reader.fault(&format!("source.{number}"), text);
            whole = false;
            continue;
        }
        let source = one(reader, number, context, delays);
        if let Some(SourceKind::Notification(NotificationSource {
            kind: NotificationKind::OrderCreated, policy, ..
        })) = source.as_ref().map(|source| &source.kind)
        {
            delays += policy.delays().len();
        }
        whole &= source.is_some();
        sources.extend(source.map(|source| (number, source)));
    }
    distinct(reader, &sources, context);
    whole.then(|| sources.into_iter().map(|(_, source)| source).collect())
}

fn one(reader: &mut Reader, number: usize, context: &Context<'_>, delays_before: usize) -> Option<SourceSettings> {
    let key = |name: &str| format!("source.{number}.{name}");
    let source_name = source_name(reader, &key("name"));
    let (queue_type, declare) = context.broker.map_or((QueueType::Quorum, true), |it| (it.queue_type, it.declare));
    let exchange = required(reader, &key("exchange"), "pay.direct");
    let exchange_type = reader.setting(&key("exchange_type"), ExchangeType::Direct);
    let routing_key = match exchange_type {
        // An empty one is as good as any other.
        ExchangeType::Fanout => reader.setting(&key("routing_key"), String::new()),
        ExchangeType::Direct | ExchangeType::Topic => {
            required(reader, &key("routing_key"), "pay.success").unwrap_or_default()
        }
    };
    if routing_key.len() > 255 {
        reader.fault(&key("routing_key"), "has more than 255 bytes");
    }
    let queue = required(reader, &key("queue"), "trade.pay.success.queue");
    let queue_type = reader.setting(&key("queue_type"), queue_type);
    let declare = reader.setting(&key("declare"), declare);
    let format = reader.optional::<FormatWord>(&key("format"));
    if format.is_none() && !reader.is_given(&key("format")) {
        reader.fault(&key("format"), format!("is missing; must be {}", FormatWord::WANTED));
    }
    let mark_paid = reader.setting(&key("mark_paid"), false);
    let expire = reader.setting(&key("expire"), false);
    let policy = policy(reader, number, expire, context, delays_before);
    let types = notify_types(reader, number, format);
    let format = match format? {
        FormatWord::Credit => {
            for name in ["mark_paid", "expire"] {
                if reader.is_given(&key(name)) {
                    reader.fault(&key(name), "is used only with format = \"payment_id\" or \"pay_notify\"");
                }
            }
            None
        }
        FormatWord::PaymentId => Some(NotificationFormat::PaymentId),
        FormatWord::PayNotify => {
            let (message_types, business_types) = types?;
            Some(NotificationFormat::PayNotify { message_types, business_types })
        }
    };
    let kind = match format {
        None => SourceKind::Credit,
        Some(format) => {
            looks_up(reader, &key("format"), context, mark_paid, expire);
            let kind = match (mark_paid, expire) {
                (true, true) => {
                    reader.fault(
                        &key("expire"),
                        "given together with mark_paid: what is paid cannot expire; must be one of them",
                    );
                    return None;
                }
                (true, false) => NotificationKind::Paid,
                (false, true) => NotificationKind::OrderCreated,
                (false, false) => NotificationKind::StatusChanged,
            };
            SourceKind::Notification(NotificationSource { name: source_name.clone()?, format, kind, policy })
        }
    };
    Some(SourceSettings {
        name: source_name?,
        exchange: exchange?,
        exchange_type,
        routing_key,
        queue: queue?,
        queue_type,
        declare,
        kind,
    })
}

/// It is a label, a header, and a part of logs.
fn source_name(reader: &mut Reader, key: &str) -> Option<String> {
    let name: Option<String> = reader.optional(key);
    if name.is_none() && !reader.is_given(key) {
        reader.fault(key, "is missing; must be given, as in \"trade\"");
    }
    let name = name?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
        reader.fault(key, "must be 1 to 64 letters, digits, '-', '_' or '.'");
        return None;
    }
    if [Component::Credits, Component::Checks, Component::Relay].iter().any(|component| component.label() == name) {
        reader.fault(
            key,
            format!("given {name:?}, which means something else in metrics and logs; must be another name"),
        );
    }
    Some(name)
}

fn required(reader: &mut Reader, key: &str, example: &str) -> Option<String> {
    if reader.is_given(key) {
        return Some(name(reader, key, example));
    }
    // Known all the same, so that it is no unknown key where it is missing.
    let none: Option<String> = reader.optional(key);
    reader.fault(key, format!("is missing; must be given, as in {example:?}"));
    none
}

/// Those of `[compensation]`, unless the source has its own.
fn policy(
    reader: &mut Reader,
    number: usize,
    expire: bool,
    context: &Context<'_>,
    delays_before: usize,
) -> CheckPolicy {
    let key = |name: &str| format!("source.{number}.{name}");
    let (first_key, delays_key) = (key("first"), key("delays"));
    let usual = &context.compensation.policy;
    if !expire {
        for key in [&first_key, &delays_key] {
            let _: Option<toml::Value> = reader.optional(key);
            if reader.is_given(key) {
                reader.fault(key, "is used only with expire = true; must be left out, [compensation] has the others");
            }
        }
        return usual.clone();
    }
    let wanted = "a delay: a whole number and ms, s, m or h, up to 720h, as in \"15m\"";
    let text = |delay: &Delay| delay.as_str().to_owned();
    let first = reader.checked(&first_key, text(usual.first()), wanted, |text| Delay::parse(text).is_some());
    let others: Vec<String> = usual.delays()[1..].iter().map(text).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let delays = delays(reader, &delays_key, &others);
    let policy = Delay::parse(&first).map(|first| CheckPolicy::new(first, delays, usual.on_unpaid));
    policy.unwrap_or_default().behind(delays_before)
}

/// The message and business types of a pay-result notification.
fn notify_types(reader: &mut Reader, number: usize, format: Option<FormatWord>) -> Option<(Vec<String>, Vec<String>)> {
    let key = |name: &str| format!("source.{number}.{name}");
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

/// A notification says no more than which payment: the rest must be known.
fn looks_up(reader: &mut Reader, key: &str, context: &Context<'_>, mark_paid: bool, expire: bool) {
    let sql = match context.pay_status {
        // What is wrong with it is told already.
        None => return,
        Some(PayStatusSettings::Sql(sql) | PayStatusSettings::SqlThenHttp(sql, _)) => sql,
        Some(PayStatusSettings::None | PayStatusSettings::Http(_)) => {
            let text = "needs the payment's own record: pay_status.source must be \"sql\" or \"sql+http\"";
            return reader.fault(key, text);
        }
    };
    // What is wrong with a column that is given is told already.
    let columns =
        |names: [&str; 2], reader: &Reader| names.iter().any(|name| reader.is_given(&format!("pay_status.sql.{name}")));
    let given = columns(["points_column", "amount_column"], reader);
    if sql.valuation.is_none() && !given {
        reader.fault(
            key,
            "needs to know whom to credit and how much: [pay_status.sql] must have user_column, and points_column or \
             amount_column",
        );
    }
    let needed = |list: &[String], name: &str, reader: &mut Reader| {
        if list.is_empty() {
            let why = if mark_paid { "mark_paid" } else { "expire" };
            let text = format!("must have at least one value with {why} = true: a row is set only from a pending one");
            reader.fault(&format!("pay_status.sql.{name}"), text);
        }
    };
    if expire && matches!(context.pay_status, Some(PayStatusSettings::SqlThenHttp(..))) {
        let key = key.replace(".format", ".expire");
        reader.fault(&key, "needs pay_status.source = \"sql\": what a gateway says does not close the payment's row");
    }
    if mark_paid || expire {
        needed(&sql.values.pending, "pending", reader);
    }
    if expire && sql.values.closed.is_empty() {
        reader.fault(
            "pay_status.sql.closed",
            "must have at least one value with expire = true: its first one is what an expired row is set to",
        );
    }
}

/// The delays of `[retry]`, each once. A further queue has its own delay queues, and each of them has one delay.
fn distinct_delays<'a>(reader: &mut Reader, retry: &'a RetryPolicy, has_sources: bool) -> Vec<&'a Delay> {
    let mut delays: Vec<&Delay> = Vec::new();
    for delay in retry.delays() {
        if !delays.contains(&delay) {
            delays.push(delay);
        } else if has_sources {
            let text = format!("has {} twice; with [[source]] each delay must be given once", delay.as_str());
            reader.fault("retry.delays", text);
        }
    }
    delays
}

/// No two sources have one name, and no queue is another one's.
fn distinct(reader: &mut Reader, sources: &[(usize, SourceSettings)], context: &Context<'_>) {
    let Some(broker) = context.broker else { return };
    let BrokerSettings { credit_queue, check_queue, dead_queue, .. } = broker;
    let mut taken = vec![credit_queue.clone(), check_queue.clone(), dead_queue.clone()];
    for of in [credit_queue, check_queue] {
        taken.extend(context.retry.delays().iter().map(|delay| retry_queue(of, delay)));
    }
    let own = sources.iter().filter_map(|(_, source)| match &source.kind {
        SourceKind::Notification(notification) => Some(notification.policy.delays()),
        SourceKind::Credit => None,
    });
    let checks = context.compensation.policy.delays().iter().chain(own.flatten());
    taken.extend(checks.map(|delay| check_delay_queue(check_queue, delay)));
    if context.events == Some(broker.exchange.as_str()) {
        reader.fault("events.exchange", "is broker.exchange, which is of another type; must be another exchange");
    }
    let delays = distinct_delays(reader, context.retry, !sources.is_empty());
    let mut names: Vec<&str> = Vec::new();
    let mut exchanges: Vec<(&str, ExchangeType)> = vec![(broker.exchange.as_str(), ExchangeType::Direct)];
    exchanges.extend(context.events.map(|events| (events, ExchangeType::Topic)));
    for (number, source) in sources {
        let key = |name: &str| format!("source.{number}.{name}");
        if names.contains(&source.name.as_str()) {
            reader.fault(
                &key("name"),
                format!("given {:?}, the name of another source; must be another one", source.name),
            );
        }
        names.push(&source.name);
        let retries = delays.iter().map(|delay| retry_queue(&source.queue, delay));
        for name in std::iter::once(source.queue.clone()).chain(retries) {
            if name.len() > 255 {
                let text =
                    format!("is too long for the name of a delay queue, {name}; that must have at most 255 bytes");
                reader.fault(&key("queue"), text);
                break;
            }
            if taken.contains(&name) {
                let given = shown(&format!("{name:?}"));
                let text =
                    format!("needs the queue {given}, which is another queue's name; must be a queue of its own");
                reader.fault(&key("queue"), text);
                break;
            }
            taken.push(name);
        }
        match exchanges.iter().find(|(name, _)| *name == source.exchange) {
            Some((_, other)) if *other != source.exchange_type => reader.fault(
                &key("exchange_type"),
                format!(
                    "given {:?}; exchange {} is configured elsewhere as {:?}; must be the same",
                    source.exchange_type.as_str(),
                    shown(&source.exchange),
                    other.as_str()
                ),
            ),
            Some(_) => {}
            None => exchanges.push((&source.exchange, source.exchange_type)),
        }
    }
    if let Some(long) = taken.iter().find(|name| name.len() > 255 && name.starts_with(check_queue.as_str())) {
        let text = format!("is too long for the name of its delay queue {long}; that must have at most 255 bytes");
        reader.fault("broker.check_queue", text);
    }
}
