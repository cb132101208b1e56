//! `[[source]]`: further queues of points messages, and queues of notifications of a payment service.

mod distinct;
mod notification;

use super::keywords::FormatWord;
use crate::{
    broker::{BrokerSettings, ExchangeType, QueueType, SourceKind, SourceSettings},
    config::{common::name, reader::Reader, value::Setting},
    domain::{
        component::Component,
        notification::NotificationFormat,
        notification_source::{NotificationKind, NotificationSource},
        retry::RetryPolicy,
    },
    pay_status::settings::PayStatusSettings,
    pipeline::settings::CompensationSettings,
};

/// Settings of other sections that the sources must agree with.
pub(super) struct Context<'a> {
    pub(super) broker: Option<&'a BrokerSettings>,
    pub(super) retry: &'a RetryPolicy,
    pub(super) compensation: &'a CompensationSettings,
    pub(super) pay_status: Option<&'a PayStatusSettings>,
    /// The exchange of events, if they are enabled.
    pub(super) events: Option<&'a str>,
}

/// The key of a source, as in `source.0.name`.
fn key(number: usize, name: &str) -> String {
    format!("source.{number}.{name}")
}

/// Reads every source. Returns `None` after a fault that leaves a source incomplete.
pub(super) fn all(reader: &mut Reader, context: &Context<'_>) -> Option<Vec<SourceSettings>> {
    let mut sources = Vec::new();
    let mut is_complete = true;
    // The delays of the sources follow those of `[compensation]`.
    let mut delays = context.compensation.policy.delays().len();
    for number in 0..reader.sections("source") {
        if !reader.has_section(&format!("source.{number}")) {
            let text = "is missing, but one with a higher number is given; must be numbered from 0, without a gap";
            reader.fault(&format!("source.{number}"), text);
            is_complete = false;
            continue;
        }
        let source = one(reader, number, context, delays);
        if let Some(SourceKind::Notification(NotificationSource {
            kind: NotificationKind::OrderCreated, policy, ..
        })) = source.as_ref().map(|source| &source.kind)
        {
            delays += policy.delays().len();
        }
        is_complete &= source.is_some();
        sources.extend(source.map(|source| (number, source)));
    }
    distinct::distinct(reader, &sources, context);
    is_complete.then(|| sources.into_iter().map(|(_, source)| source).collect())
}

fn one(reader: &mut Reader, number: usize, context: &Context<'_>, delays_before: usize) -> Option<SourceSettings> {
    let key = |name: &str| key(number, name);
    let name = source_name(reader, &key("name"));
    let (queue_type, declare) = context.broker.map_or((QueueType::Quorum, true), |it| (it.queue_type, it.declare));
    let exchange = required(reader, &key("exchange"), "pay.direct");
    let exchange_type = reader.setting(&key("exchange_type"), ExchangeType::Direct);
    let routing_key = routing_key(reader, &key("routing_key"), exchange_type);
    let queue = required(reader, &key("queue"), "trade.pay.success.queue");
    let queue_type = reader.setting(&key("queue_type"), queue_type);
    let declare = reader.setting(&key("declare"), declare);
    let kind = kind(reader, number, name.as_ref(), context, delays_before);
    Some(SourceSettings {
        name: name?,
        exchange: exchange?,
        exchange_type,
        routing_key,
        queue: queue?,
        queue_type,
        declare,
        kind: kind?,
    })
}

/// Reads the routing key, which a fanout exchange does not need.
fn routing_key(reader: &mut Reader, key: &str, exchange_type: ExchangeType) -> String {
    let routing_key = match exchange_type {
        ExchangeType::Fanout => reader.setting(key, String::new()),
        ExchangeType::Direct | ExchangeType::Topic => required(reader, key, "pay.success").unwrap_or_default(),
    };
    if routing_key.len() > 255 {
        reader.fault(key, "has more than 255 bytes");
    }
    routing_key
}

/// Reads the kind of the source and the keys that depend on it.
fn kind(
    reader: &mut Reader,
    number: usize,
    name: Option<&String>,
    context: &Context<'_>,
    delays_before: usize,
) -> Option<SourceKind> {
    let key = |name: &str| key(number, name);
    let word = reader.optional::<FormatWord>(&key("format"));
    if word.is_none() && !reader.is_given(&key("format")) {
        reader.fault(&key("format"), format!("is missing; must be {}", FormatWord::WANTED));
    }
    let mark_paid = reader.setting(&key("mark_paid"), false);
    let expire = reader.setting(&key("expire"), false);
    let policy = notification::policy(reader, number, expire, context, delays_before);
    let types = notification::notify_types(reader, number, word);
    let format = match word? {
        FormatWord::Credit => {
            for name in ["mark_paid", "expire"] {
                if reader.is_given(&key(name)) {
                    reader.fault(&key(name), "is used only with format = \"payment_id\" or \"pay_notify\"");
                }
            }
            return Some(SourceKind::Credit);
        }
        FormatWord::PaymentId => NotificationFormat::PaymentId,
        FormatWord::PayNotify => {
            let (message_types, business_types) = types?;
            NotificationFormat::PayNotify { message_types, business_types }
        }
    };
    notification::check_payment_table(reader, number, context, mark_paid, expire);
    let kind = notification::kind(reader, number, mark_paid, expire)?;
    Some(SourceKind::Notification(NotificationSource { name: name?.clone(), format, kind, policy }))
}

/// Reads the name of a source, which is a label of metrics, the value of a header, and a field of log lines.
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
        reader.fault(key, format!("given {name:?}, which is reserved in metrics and logs; must be another name"));
    }
    Some(name)
}

/// Reads a required name.
fn required(reader: &mut Reader, key: &str, example: &str) -> Option<String> {
    if reader.is_given(key) {
        return Some(name(reader, key, example));
    }
    // The key is read nevertheless, so that it is known.
    let none: Option<String> = reader.optional(key);
    reader.fault(key, format!("is missing; must be given, as in {example:?}"));
    none
}
